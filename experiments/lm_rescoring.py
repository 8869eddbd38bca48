"""What language models are for: word error rates of a recognizer's lists.

Every packed file orders the same N-best lists, alone and mixed word by word
with an n-gram of the training text; weights are tuned on development data.
Intervals are over articles, as those of perplexity are: what one language
model knows and another does not is what is said, whoever says it.
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
  lm_matrix,
  rescoring,
  results,
  scoring,
)
from experiments.stage_cache import RESULT, cached
from s8bqat_jax.data import corpus as corpus_lib
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
      train_text: that the n-gram counts, and words of a lexicon come from.
      folder: where the lists are kept.

    Raises:
      FileNotFoundError: if the recognizer is not there.
      ValueError: if it does not spell, or development data and what is scored
        are the same.
    """
    if not pathlib.Path(config.recognizer).is_file():
      raise FileNotFoundError(
        f'config.rescore.recognizer is {config.recognizer!r}, which is no '
        "file: give a packed recognizer, or '' for no rescoring"
      )
    self._order, self._text = config.order, train_text.fingerprint
    self._lists = rescoring.Rescorer(
      config.recognizer,
      config.dev,
      config.eval,
      folder,
      text=train_text,
      words=config.words,
      beam=config.beam,
    )
    if self._lists.dev.fingerprint == self._lists.scored.fingerprint:
      raise ValueError(
        f'config.rescore.dev ({config.dev!r}) and .eval are one corpus: '
        'weights are tuned on data that nothing is scored on'
      )
    self._clusters_N = _articles(self._lists.scored.texts_N, config.text)

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
        metrics |= self._rates(key, found)
        metrics |= {f'{key}_{name}': x for name, x in tuned.items()}
      np.save(folder / f'{ERRORS}.npy', np.stack(errors))
      return metrics

    folder = self._folder(path)
    found = cached(folder, self.about, work)
    for spent in ('seconds', 'revision'):
      found.pop(spent)
    return {**found, ERRORS: str(folder / f'{ERRORS}.npy')}

  def done(self, path: pathlib.Path) -> bool:
    """Whether the error rates of a file are there."""
    return (self._folder(path) / RESULT).exists()

  def _folder(self, path: pathlib.Path) -> pathlib.Path:
    return path.parent / f'rescored-{results.config_hash(self.about)}'

  @functools.cached_property
  def about(self) -> dict[str, Any]:
    """All that error rates depend on beside the file, wherever it is."""
    return {
      'dev': self._lists.about(self._lists.dev),
      'eval': self._lists.about(self._lists.scored),
      'text': self._text,
      'articles': corpus_lib.fingerprint(self._clusters_N),
      'order': self._order,
    }

  def references(self) -> list[dict[str, Any]]:
    """Returns rows of what there is without a Transformer."""
    found = {
      'first of the list': self._lists.first_of_lists(),
      f'{self._order}-gram': self._lists.chosen(self._ngram).hypotheses,
      'oracle': self._lists.best_of_lists(),
    }
    return [{'method': n, **self._rates(ALONE, of)} for n, of in found.items()]

  def comparisons(
    self,
    metrics: Mapping[tuple[Any, int], Mapping[str, Any]],
    asked: Iterable[tuple[Any, Any]],
    planned: Sequence[int],
  ) -> list[dict[str, Any]]:
    """Compares cells pairwise over the seeds that both have.

    Args:
      metrics: of each cell and seed.
      asked: pairs (base, other); those without a common seed are left out.
      planned: seeds without which, and at least three, nothing is claimed.
    """
    words_N = [len(text.split()) for text in self._lists.scored.texts_N]
    found = []
    for base, cell, seeds in lm_matrix.common_seeds(metrics, asked):
      a_KxSxN, b_KxSxN = (
        np.stack([np.load(metrics[one, s][ERRORS]) for s in seeds], 1)
        for one in (base, cell)
      )
      for metric, a_SxN, b_SxN in zip((ALONE, MIXED), a_KxSxN, b_KxSxN):
        if not a_SxN.any():
          continue  # nothing to be relative to
        compared = significance.compare(a_SxN, b_SxN, words_N, self._clusters_N)
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
            'complete': lm_matrix.complete(seeds, planned),
            'a_per_seed': rates[0],
            'b_per_seed': rates[1],
            **scoring.relative(compared),
          }
        )
    return found

  def _rates(
    self, key: str, found: Sequence[scoring.Hypothesis]
  ) -> dict[str, Any]:
    counts = scoring.count(found)
    interval = significance.rate_interval(
      counts.word_errors_N, counts.words_N, self._clusters_N
    )
    return {
      key: 100 * counts.wer,
      f'{key}_ci95': results.percent(interval),
      'rescored_words': int(counts.words_N.sum()),
      'articles': len(set(self._clusters_N)),
      'speakers': len({h.speaker for h in found}),
    }

  @functools.cached_property
  def _ngram(self) -> mixture.Known:
    return self._lists.counted(self._order)


def _articles(transcripts: Sequence[str], spec: str) -> Sequence[str]:
  """Returns the article of each transcript, or the transcript itself.

  Args:
    transcripts: what is said.
    spec: of the text whose lines they are; '' if there is none.
  """
  found: dict[str, str] = {}
  if spec:
    corpus = text_lib.load_text(spec)
    for line, article in zip(corpus.lines, corpus.articles):
      found.setdefault(line, str(article))
  return [found.get(text, text) for text in transcripts]


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
