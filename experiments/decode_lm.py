"""Decodes with a lexicon and a word n-gram: what a small recognizer borrows.

  python -m experiments.decode_lm --model=runs/speechocean/model.safetensors \
    --dev=SPEC --data=SPEC --texts=SPEC --sentences=FILE

The lexicon holds every word of the transcripts of --texts (training data) and
the --words most frequent ones of --sentences (a text file). A trigram of the
transcripts and one of the sentences are mixed by a share that fits the
development transcripts best. A beam search that spells words of the lexicon
only leaves N-best lists; they are ordered by recognizer, trigram and number of
words, whose weights are tuned on --dev. --data is then scored once.

Writes a row for each of greedy, beam, lexicon and lexicon with n-gram to
experiments/results/NAME.json, and prints them.
"""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

import jax
from absl import app, flags

from experiments import (
  integer_recognizer,
  nbest,
  results,
  scoring,
  usage,
)
from experiments import recognizer as recognizer_lib
from s8bqat_jax import data
from s8bqat_jax.data import espeak_texts
from s8bqat_jax.speech import mixture, ngram

_WORKDIR = flags.DEFINE_string('workdir', None, 'Of experiments.train.')
_MODEL = flags.DEFINE_string('model', None, 'A packed file.')
_DEV = flags.DEFINE_string('dev', None, 'Data to tune on.', required=True)
_DATA = flags.DEFINE_string('data', None, 'Data to score.', required=True)
_TEXTS = flags.DEFINE_string(
  'texts', None, 'Data whose transcripts are counted.', required=True
)
_SENTENCES = flags.DEFINE_string('sentences', None, 'Text file, counted too.')
_WORDS = flags.DEFINE_integer('words', 20_000, 'Taken from the text file.')
_ORDER = flags.DEFINE_integer('order', 3, 'Of the n-grams.')
_BEAM = flags.DEFINE_integer('beam', 12, 'Hypotheses kept.')
_BATCH = flags.DEFINE_integer('batch_size', 16, 'Utterances at a time.')
_NAME = flags.DEFINE_string('name', 'decode_lm', 'Of the results file.')


def summary(corpus: data.Corpus, texts: Sequence[str]) -> dict:
  """Returns the scores of one transcript an utterance."""
  return scoring.summarize(scoring.of_texts(corpus, texts))


def main(argv):
  usage.start(argv)
  path = recognizer_lib.find_model(_MODEL.value, _WORKDIR.value)
  model, params, _ = integer_recognizer.load(path)
  tokenizer = nbest.check_spells(model.tokenizer, path)
  dev, scored = data.load(_DEV.value), data.load(_DATA.value)
  texts = data.load(_TEXTS.value).texts_N
  sentences: list[str] = []
  if _SENTENCES.value:
    # What is tuned on or scored must be new to the language model.
    sentences = nbest.unheard(
      espeak_texts.read_sentences(pathlib.Path(_SENTENCES.value)), dev, scored
    )
  task = ngram.NGram(texts, _ORDER.value)
  language: ngram.LanguageModel = task
  share = 1.0
  if sentences:
    general = ngram.NGram(sentences, _ORDER.value)
    language = mixed = mixture.fit(task, general, dev.texts_N)
    share = mixed.share
  weights, automaton = nbest.lexicon(texts, sentences, _WORDS.value, tokenizer)
  search = nbest.Search(model, params, _BEAM.value, _BATCH.value)
  tuned = nbest.tune(
    nbest.unweighted(search(dev, automaton), weights), language, dev.texts_N
  )
  greedy = scoring.Scorer(model, scored, _BATCH.value)
  found = {h.utt_id: h.hypothesis for h in greedy.hypotheses(params, True)}
  spelled = search(scored, automaton)
  decoded = {
    'greedy': [found[u] for u in scored.utt_ids_N],
    f'beam {_BEAM.value}': nbest.choose(search(scored)),
    'lexicon': nbest.choose(spelled),
    'lexicon, n-gram': nbest.choose(
      nbest.unweighted(spelled, weights), language, *tuned
    ),
  }
  rows = [
    {'method': method, 'split': 'eval', 'metrics': summary(scored, chosen)}
    for method, chosen in decoded.items()
  ]
  results.write(
    _NAME.value,
    rows,
    corpus={'spec': scored.spec, 'fingerprint': scored.fingerprint},
    parameters=sum(x.size for x in jax.tree.leaves(params)),
    lexicon_words=len(weights),
    tuned={
      'on': dev.spec,
      'task_share': share,
      'weight': tuned[0],
      'word_bonus': tuned[1],
    },
  )
  print(results.table(rows))


if __name__ == '__main__':
  app.run(main)
