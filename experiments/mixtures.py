"""Sentence probabilities of a network and an n-gram, mixed word by word."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import scipy.optimize

from s8bqat_jax.speech import ngram


class Mixture:
  """A language model for `nbest.choose`, of sentences that are known before."""

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
