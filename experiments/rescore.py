"""Orders a recognizer's N-best lists by language models, and compares these.

  python -m experiments.rescore --model=asr.safetensors \
    --dev=SPEC --data=SPEC --lm=large.safetensors,small.safetensors \
    --sentences='text:FILE?form=spoken' --runs=runs/rescore

The lists are searched once and kept in --runs. Each language model of --lm is
used alone and, with --sentences, mixed word by word with an n-gram of these;
the mixture's share fits the development transcripts best, and the weights of
language model and words have the fewest errors on the development lists. --data
is then scored once. Writes experiments/results/NAME.json: a row for each
system, and every language model compared with the first.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import scipy.optimize
from absl import app, flags

from experiments import (
  decode_lm,
  integer_recognizer,
  language_model,
  results,
  scoring,
  trainer,
)
from s8bqat_jax import data
from s8bqat_jax.data import text as text_lib
from s8bqat_jax.speech import ngram, significance

_MODEL = flags.DEFINE_string('model', None, 'A packed recognizer.')
_LM = flags.DEFINE_list('lm', [], 'Packed language models.')
_DEV = flags.DEFINE_string('dev', None, 'Data to tune on.')
_DATA = flags.DEFINE_string('data', None, 'Data to score.')
_SENTENCES = flags.DEFINE_string('sentences', None, 'Text spec of an n-gram.')
_ORDER = flags.DEFINE_integer('order', 4, 'Of the n-gram.')
_BEAM = flags.DEFINE_integer('beam', 16, 'Hypotheses kept.')
_BATCH = flags.DEFINE_integer('batch_size', 16, 'Utterances at a time.')
_RUNS = flags.DEFINE_string('runs', 'runs/rescore', 'Where lists are kept.')
_NAME = flags.DEFINE_string('name', 'rescore', 'Of the results file.')

NBests = Sequence[Sequence[ngram.Candidate]]


class Mixture:
  """Sentence probabilities of a network and an n-gram, mixed word by word."""

  def __init__(
    self,
    neural: Mapping[str, np.ndarray],
    count: ngram.NGram | None,
    share: float = 1.0,
  ):
    """Mixes what is already known of some sentences.

    Args:
      neural: log-probabilities of each sentence's words and its end.
      count: the n-gram.
      share: of the network.
    """
    self._neural, self._count, self.share = neural, count, share
    self._counted: dict[str, np.ndarray] = {}

  def log_prob(self, text: str) -> float:
    """Natural log-probability of a sentence, its end included."""
    neural_W = self._neural[text]
    if self._count is None or self.share == 1:
      return float(neural_W.sum())
    return float(mix(neural_W, self.counted(text), self.share).sum())

  def counted(self, text: str) -> np.ndarray:
    """Log-probabilities of a sentence's words under the n-gram."""
    assert self._count is not None
    if text not in self._counted:
      self._counted[text] = self._count.word_log_probs(text)
    return self._counted[text]

  def fitted(self, texts: Iterable[str]) -> Mixture:
    """Returns the mixture whose share makes texts likeliest."""
    texts = list(texts)
    neural_W = np.concatenate([self._neural[text] for text in texts])
    counted_W = np.concatenate([self.counted(text) for text in texts])
    best = scipy.optimize.minimize_scalar(
      lambda share: -mix(neural_W, counted_W, share).sum(),
      bounds=(1e-3, 1 - 1e-3),
      method='bounded',
    )
    found = Mixture(self._neural, self._count, float(best.x))
    found._counted = self._counted
    return found


def mix(a_W: np.ndarray, b_W: np.ndarray, share: float) -> np.ndarray:
  """Returns log(share exp(a) + (1 - share) exp(b))."""
  return np.logaddexp(np.log(share) + a_W, np.log1p(-share) + b_W)


def read_lists(path: pathlib.Path) -> list[list[ngram.Candidate]]:
  """Reads N-best lists, one JSON line an utterance."""
  lines = path.read_text().splitlines()
  return [[ngram.Candidate(*c) for c in json.loads(line)] for line in lines]


def write_lists(path: pathlib.Path, lists: NBests) -> None:
  """Writes N-best lists, whole or not at all."""
  path.parent.mkdir(parents=True, exist_ok=True)
  partial = path.with_suffix('.partial')
  partial.write_text(''.join(json.dumps(n) + '\n' for n in lists))
  partial.replace(path)


def oracle(lists: NBests, references: Sequence[str]) -> list[str]:
  """Returns the transcript of each list with the fewest errors."""
  flat = [(r, c.text) for n, r in zip(lists, references) for c in n]
  errors = iter(
    scoring.wer.count_errors(*map(list, zip(*flat))).word_errors_N.tolist()
  )
  counts = [[next(errors) for _ in n] for n in lists]
  return [n[int(np.argmin(c))].text if n else '' for n, c in zip(lists, counts)]


def _lists(search, corpus: data.Corpus, model: pathlib.Path):
  """Searches a corpus, unless that is done."""
  about = {
    'model': str(model),
    'modified': model.stat().st_mtime_ns,
    'data': corpus.fingerprint,
    'beam': _BEAM.value,
  }
  name = f'nbest-{results.config_hash(about)}.jsonl'
  path = pathlib.Path(_RUNS.value) / name
  if not path.exists():
    write_lists(path, search(corpus))
  return read_lists(path)


def main(argv):
  del argv
  trainer.set_up()
  path = pathlib.Path(_MODEL.value)
  recognizer, params, _ = integer_recognizer.load(path)
  dev, scored = data.load(_DEV.value), data.load(_DATA.value)
  search = decode_lm.Search(recognizer, params, _BEAM.value, _BATCH.value)
  dev_lists, lists = (_lists(search, c, path) for c in (dev, scored))
  count = None
  if _SENTENCES.value:
    count = ngram.NGram(
      text_lib.load_text(_SENTENCES.value).lines, _ORDER.value
    )
  texts = {c.text for n in [*dev_lists, *lists] for c in n} | {*dev.texts_N}
  ordered = sorted(texts)

  chosen: dict[str, list[str]] = {
    'first of the list': decode_lm.choose(lists),
    'oracle': oracle(lists, scored.texts_N),
  }
  about: dict[str, dict[str, Any]] = {name: {} for name in chosen}

  def add(name, language, **found):
    weight, bonus = decode_lm.tune(dev_lists, language, dev.texts_N)
    chosen[name] = decode_lm.choose(lists, language, weight, bonus)
    about[name] = {**found, 'weight': weight, 'word_bonus': bonus}

  if count is not None:
    add(f'{_ORDER.value}-gram', count)
  for file in _LM.value:
    made, lm_params, _ = language_model.load(file)
    scorer = language_model.Scorer(made)
    words = scorer.word_log_probs(jax.device_put(lm_params), ordered)
    alone = Mixture(dict(zip(ordered, words)), count)
    size = pathlib.Path(file).stat().st_size
    stem = pathlib.Path(file).stem
    add(stem, alone, bytes=size)
    if count is not None:
      both = alone.fitted(dev.texts_N)
      add(f'{stem}, {_ORDER.value}-gram', both, bytes=size, share=both.share)

  rows, errors = [], {}
  for name, transcripts in chosen.items():
    columns = scored.utt_ids_N, scored.speakers_N, scored.texts_N, transcripts
    hypotheses = [scoring.Hypothesis(*row) for row in zip(*columns)]
    errors[name] = scoring.count(hypotheses)
    metrics = {**scoring.summarize(hypotheses), **about[name]}
    rows.append({'method': name, 'split': 'eval', 'metrics': metrics})
  base = pathlib.Path(_LM.value[0]).stem if _LM.value else 'first of the list'
  results.write(
    _NAME.value,
    rows,
    comparisons=[
      _compare(base, name, errors, scored.speakers_N)
      for name in chosen
      if name not in (base, 'oracle')
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
    'relative': found.relative,
    'ci95': list(found.interval),
    'p': found.p_bootstrap,
    'p_mapsswe': found.p_mapsswe,
  }


if __name__ == '__main__':
  flags.mark_flags_as_required(['model', 'dev', 'data'])
  app.run(main)
