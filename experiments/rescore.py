"""Orders a recognizer's N-best lists by language models, and compares these.

  python -m experiments.rescore --model=asr.safetensors \
    --dev=SPEC --data=SPEC --lm=large=A.safetensors,small=B.safetensors \
    --sentences='text:FILE?form=spoken' --runs=runs/rescore

The lists are searched once and kept in --runs. Each language model of --lm is
used alone and, with --sentences, mixed word by word with an n-gram of these;
the mixture's share fits the development transcripts best, and the weights of
language model and words have the fewest errors on the development lists. --data
is then scored once. Writes experiments/results/NAME.json: a row for each
system, and every language model compared with the first.
"""

from __future__ import annotations

import pathlib
from typing import Any

import jax
from absl import app, flags

from experiments import (
  integer_recognizer,
  language_model,
  nbest,
  results,
  scoring,
  usage,
)
from experiments import recognizer as recognizer_lib
from s8bqat_jax import data
from s8bqat_jax.data import corpus as corpus_lib
from s8bqat_jax.data import text as text_lib
from s8bqat_jax.speech import mixture, ngram, significance

_MODEL = flags.DEFINE_string('model', None, 'A packed recognizer.')
_LM = flags.DEFINE_list('lm', [], 'Packed language models: NAME=FILE, or FILE.')
_DEV = flags.DEFINE_string('dev', None, 'Data to tune on.')
_DATA = flags.DEFINE_string('data', None, 'Data to score.')
_SENTENCES = flags.DEFINE_string('sentences', None, 'Text spec of an n-gram.')
_ORDER = flags.DEFINE_integer('order', 4, 'Of the n-gram.')
_BEAM = flags.DEFINE_integer('beam', 16, 'Hypotheses kept.')
_BATCH = flags.DEFINE_integer('batch_size', 16, 'Utterances at a time.')
_RUNS = flags.DEFINE_string('runs', 'runs/rescore', 'Where lists are kept.')
_NAME = flags.DEFINE_string('name', 'rescore', 'Of the results file.')


def _lists(search, corpus: data.Corpus, model: pathlib.Path):
  """Searches a corpus, unless that is done."""
  about = {
    'model': str(model),
    'modified': model.stat().st_mtime_ns,
    'data': corpus_lib.cache_key(corpus),
    'beam': _BEAM.value,
  }
  name = f'nbest-{results.config_hash(about)}.jsonl'
  path = pathlib.Path(_RUNS.value) / name
  if not path.exists():
    nbest.write_lists(path, search(corpus))
  return nbest.read_lists(path)


def main(argv):
  usage.start(argv)
  path = recognizer_lib.find_model(_MODEL.value, None)
  files = nbest.named_files(_LM.value)
  recognizer, params, _ = integer_recognizer.load(path)
  dev, scored = (data.load(f.value or '') for f in (_DEV, _DATA))
  search = nbest.Search(recognizer, params, _BEAM.value, _BATCH.value)
  dev_lists, lists = (_lists(search, c, path) for c in (dev, scored))
  texts = {c.text for n in [*dev_lists, *lists] for c in n} | {*dev.texts_N}
  ordered = sorted(texts)
  count = None
  if _SENTENCES.value:
    # What is tuned on or scored must be as new to it as to the others.
    lines = text_lib.load_text(_SENTENCES.value).lines
    counted = ngram.NGram(nbest.unheard(lines, dev, scored), _ORDER.value)
    count = mixture.Known({t: counted.word_log_probs(t) for t in ordered})

  chosen: dict[str, list[str]] = {
    'first of the list': nbest.choose(lists),
    'oracle': nbest.oracle(lists, scored.texts_N),
  }
  about: dict[str, dict[str, Any]] = {name: {} for name in chosen}

  def add(name, language, **found):
    weight, bonus = nbest.tune(dev_lists, language, dev.texts_N)
    chosen[name] = nbest.choose(lists, language, weight, bonus)
    about[name] = {**found, 'weight': weight, 'word_bonus': bonus}

  if count is not None:
    add(f'{_ORDER.value}-gram', count)
  for stem, file in files.items():
    made, lm_params, _ = language_model.load(file)
    scorer = language_model.Scorer(made)
    words = scorer.word_log_probs(jax.device_put(lm_params), ordered)
    alone = mixture.Known(dict(zip(ordered, words)))
    size = pathlib.Path(file).stat().st_size
    add(stem, alone, bytes=size)
    if count is not None:
      both = mixture.fit(alone, count, dev.texts_N)
      add(f'{stem}, {_ORDER.value}-gram', both, bytes=size, share=both.share)

  rows, errors = [], {}
  for name, transcripts in chosen.items():
    hypotheses = scoring.of_texts(scored, transcripts)
    errors[name] = scoring.count(hypotheses)
    metrics = {**scoring.summarize(hypotheses), **about[name]}
    rows.append({'method': name, 'split': 'eval', 'metrics': metrics})
  base = next(iter(files), 'first of the list')
  results.write(
    _NAME.value,
    rows,
    comparisons=[
      _compare(base, name, errors, scored.speakers_N)
      for name in chosen
      # Nothing is relative to no errors.
      if name not in (base, 'oracle') and errors[base].word_errors_N.any()
    ],
    corpus={'spec': scored.spec, 'fingerprint': scored.fingerprint},
    tuned_on={'spec': dev.spec, 'fingerprint': dev.fingerprint},
    beam=_BEAM.value,
  )
  print(results.table(rows))


def _compare(a: str, b: str, errors, speakers_N) -> dict[str, Any]:
  found = significance.compare(
    errors[a].word_errors_N,
    errors[b].word_errors_N,
    errors[a].words_N,
    speakers_N,
  )
  return {
    'a': a,
    'b': b,
    'metric': 'wer',
    **scoring.relative(found),
  }


if __name__ == '__main__':
  flags.mark_flags_as_required(['model', 'dev', 'data'])
  app.run(main)
