"""What language models are for: word error rates of a recognizer's lists.

Every packed file orders the same N-best lists, alone and mixed word by word
with an n-gram of the training text; weights are tuned on development data.
"""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import ml_collections
import numpy as np

from experiments import (
  language_model,
  rescoring,
  results,
  scoring,
)
from experiments.stage_cache import cached
from s8bqat_jax import data
from s8bqat_jax.data import text as text_lib
from s8bqat_jax.speech import mixture, significance

ALONE, MIXED = 'wer', 'wer_mixed'
ERRORS = 'word_errors'  # a row's file of errors, [ALONE and MIXED, utterance]


class Rescoring:
  """The lists of `config.rescore`, and what files make of them."""

  def __init__(
    self,
    config: ml_collections.ConfigDict,
    train_text: text_lib.TextCorpus,
    folder: pathlib.Path,
  ):
    """Loads the corpora; nothing is searched before it is asked for.

    Args:
      config: the section.
      train_text: that the n-gram counts.
      folder: where the lists are kept.

    Raises:
      FileNotFoundError: if the recognizer is not there.
      ValueError: if development data and what is scored are the same.
    """
    if not pathlib.Path(config.recognizer).is_file():
      raise FileNotFoundError(
        f'config.rescore.recognizer is {config.recognizer!r}, which is no '
        "file: give a packed recognizer, or '' for no rescoring"
      )
    if config.dev == config.eval:
      raise ValueError(
        f'config.rescore.dev and .eval are both {config.dev!r}: weights are '
        'tuned on data that nothing is scored on'
      )
    self._config, self._train_text = config, train_text
    self._lists = rescoring.Rescorer(
      config.recognizer,
      data.load(config.dev),
      data.load(config.eval),
      folder,
      beam=config.beam,
    )

  def evaluate(self, path: pathlib.Path) -> dict[str, Any]:
    """Returns the error rates of a packed language model, found once.

    Args:
      path: of the file; what is found is kept in a folder beside it.
    """

    def work(folder):
      made, params, _ = language_model.load(path)
      alone = self._lists.known(made, params)
      both = self._lists.mixed(alone, self._ngram)
      errors, metrics = [], dict[str, Any]()
      for key, model in ((ALONE, alone), (MIXED, both)):
        found, tuned = self._lists.chosen(model)
        errors.append(scoring.count(found).word_errors_N)
        metrics |= _rates(key, found)
        metrics |= {f'{key}_{name}': x for name, x in tuned.items()}
      np.save(folder / f'{ERRORS}.npy', np.stack(errors))
      return metrics

    about = {**self._config.to_dict(), **self.fingerprints()}
    folder = path.parent / f'rescored-{results.config_hash(about)}'
    found = cached(folder, about, work)
    for spent in ('seconds', 'revision'):
      found.pop(spent)
    return {**found, ERRORS: str(folder / f'{ERRORS}.npy')}

  def fingerprints(self) -> dict[str, str]:
    """Returns what all of this depends on, by its fingerprint."""
    return {
      'recognizer': results.file_hash(self._lists.path),
      'dev_fingerprint': self._lists.dev.fingerprint,
      'eval_fingerprint': self._lists.scored.fingerprint,
      'text_fingerprint': self._train_text.fingerprint,
    }

  def references(self) -> list[dict[str, Any]]:
    """Returns rows of what there is without a Transformer."""
    found = {
      'first of the list': self._lists.first_of_lists(),
      f'{self._config.order}-gram': self._lists.chosen(self._ngram).hypotheses,
      'oracle': self._lists.best_of_lists(),
    }
    return [{'method': n, **_rates(ALONE, of)} for n, of in found.items()]

  def comparisons(
    self,
    metrics: Mapping[tuple[Any, int], Mapping[str, Any]],
    asked: Iterable[tuple[Any, Any]],
  ) -> list[dict[str, Any]]:
    """Compares cells pairwise over the seeds that both have.

    Args:
      metrics: of each cell and seed.
      asked: pairs (base, other); those without a common seed are left out.
    """
    corpus = self._lists.scored
    words_N = [len(text.split()) for text in corpus.texts_N]
    found = []
    for base, cell in asked:
      seeds = sorted(
        {s for c, s in metrics if c == base}
        & {s for c, s in metrics if c == cell}
      )
      if not seeds:
        continue
      a_KxSxN, b_KxSxN = (
        np.stack([np.load(metrics[one, s][ERRORS]) for s in seeds], 1)
        for one in (base, cell)
      )
      for metric, a_SxN, b_SxN in zip((ALONE, MIXED), a_KxSxN, b_KxSxN):
        if not a_SxN.any():
          continue  # nothing to be relative to
        compared = significance.compare(
          a_SxN, b_SxN, words_N, corpus.speakers_N
        )
        rates = [
          (100 * x.sum(1) / max(sum(words_N), 1)).tolist()
          for x in (a_SxN, b_SxN)
        ]
        found.append(
          {
            'a': str(base),
            'b': str(cell),
            'metric': metric,
            'seeds': seeds,
            'a_per_seed': rates[0],
            'b_per_seed': rates[1],
            **scoring.relative(compared),
          }
        )
    return found

  @functools.cached_property
  def _ngram(self) -> mixture.Known:
    return self._lists.counted(self._train_text.lines, self._config.order)


def _rates(key: str, found: Sequence[scoring.Hypothesis]) -> dict[str, Any]:
  of_all = scoring.summarize(found)
  return {
    key: of_all['wer'],
    f'{key}_ci95': of_all['ci95'],
    'rescored_words': of_all['words'],
    'speakers': of_all['speakers'],
  }


def make(
  config: ml_collections.ConfigDict,
  train_text: text_lib.TextCorpus,
  folder: pathlib.Path,
) -> Rescoring | None:
  """Returns the rescoring of a config, None if it names no recognizer.

  Args:
    config: of the experiment.
    train_text: of its language models.
    folder: where lists are kept.
  """
  if not config.rescore.recognizer:
    return None
  return Rescoring(config.rescore, train_text, folder)
