"""Two language models, mixed word by word."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple, Protocol

import numpy as np
import scipy.optimize

_EDGE = 1e-3  # least share of either


class WordModel(Protocol):
  """What a mixture asks of a language model."""

  def word_log_probs(self, text: str) -> np.ndarray:
    """Natural log-probabilities of a sentence's words, and of its end."""


class Known(NamedTuple):
  """A model of sentences that it was asked about before.

  Attributes:
    log_probs: natural log-probabilities of each sentence's words and its end.
  """

  log_probs: Mapping[str, np.ndarray]

  def word_log_probs(self, text: str) -> np.ndarray:
    """Natural log-probabilities of a sentence's words, and of its end."""
    return self.log_probs[text]

  def log_prob(self, text: str) -> float:
    """Natural log-probability of a sentence, its end included."""
    return float(self.log_probs[text].sum())


class Mixture(NamedTuple):
  """Two models, their probabilities averaged.

  Attributes:
    first: a model.
    second: another.
    share: of the first, between 0 and 1.
  """

  first: WordModel
  second: WordModel
  share: float

  def word_log_probs(self, text: str) -> np.ndarray:
    """Natural log-probabilities of a sentence's words, and of its end."""
    a_W = self.first.word_log_probs(text)
    return mix(a_W, self.second.word_log_probs(text), self.share)

  def log_prob(self, text: str) -> float:
    """Natural log-probability of a sentence, its end included."""
    return float(self.word_log_probs(text).sum())


def fit(first: WordModel, second: WordModel, texts: Iterable[str]) -> Mixture:
  """Returns the mixture whose share makes sentences likeliest.

  Args:
    first: a model.
    second: another.
    texts: what neither was trained on.

  Raises:
    ValueError: without sentences.
  """
  texts = list(texts)
  if not texts:
    raise ValueError('no sentences to fit the share of a mixture on')
  a_W, b_W = (
    np.concatenate([m.word_log_probs(text) for text in texts])
    for m in (first, second)
  )
  found = scipy.optimize.minimize_scalar(
    lambda share: -mix(a_W, b_W, share).sum(),
    bounds=(_EDGE, 1 - _EDGE),
    method='bounded',
  )
  return Mixture(first, second, float(found.x))


def mix(a_W: np.ndarray, b_W: np.ndarray, share: float) -> np.ndarray:
  """Returns log(share exp(a) + (1 - share) exp(b)).

  Args:
    a_W: log-probabilities of words under one model.
    b_W: of the same words under another.
    share: of the one.

  Raises:
    ValueError: if they are of other words, or it is no share of both.
  """
  if a_W.shape != b_W.shape or not 0 < share < 1:
    raise ValueError(
      'expected log-probabilities of the same words and a share between 0 and '
      f'1, got shapes {a_W.shape} and {b_W.shape} and a share of {share}'
    )
  return np.logaddexp(np.log(share) + a_W, np.log1p(-share) + b_W)
