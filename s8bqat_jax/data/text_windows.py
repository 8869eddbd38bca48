"""Windows of a token stream: what a language model trains on and is scored on.

  batches = TrainBatches(stream.ids_N, batch_size=16, length=128)
  perplexity, nll = score(nll_fn, stream, length=256, context=128)

Perplexity is per *word*, line ends counted as words as is usual for WikiText
and the Penn Treebank, whatever the units of the vocabulary: figures of
different subwords can be compared. (Words outside a `word:SIZE` vocabulary are
scored as `<unk>`, which is cheap.)
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from s8bqat_jax.data.text import END, TokenStream


class Window(NamedTuple):
  """Windows of a stream to be scored."""

  tokens_BxT1: np.ndarray  # int32; the model sees [:, :-1], predicts [:, 1:]
  weights_BxT: np.ndarray  # float32; 1 where a prediction counts


class TrainBatches:
  """Endless training batches: a pure function of (seed, step).

  An epoch is the stream cut into windows from a random offset, in random
  order; every token is predicted at most once. The ends, and windows that fill
  no batch, are left out: others in each epoch.
  """

  def __init__(
    self, ids_N: np.ndarray, batch_size: int, length: int, seed: int = 0
  ):
    """Plans the batches.

    Args:
      ids_N: `TokenStream.ids_N`.
      batch_size: windows per batch.
      length: predictions per window.
      seed: of offsets and orders.
    """
    if batch_size < 1 or length < 1:
      raise ValueError(
        f'batch_size={batch_size}, length={length}: expected at least 1'
      )
    # One window is given up to the random offset.
    self._windows = len(ids_N) // length - 1
    self.steps_per_epoch = self._windows // batch_size
    if self.steps_per_epoch < 1:
      raise ValueError(
        f'{len(ids_N)} tokens are too few for one batch of {batch_size} '
        f'windows of {length}; at least {(batch_size + 1) * length} are needed'
      )
    self._ids_N = ids_N
    self._batch_size, self._length = batch_size, length
    # The cache is this instance's and does not hold it.
    self._epoch = functools.lru_cache(maxsize=2)(
      functools.partial(_offset_and_order, seed, length, self._windows)
    )

  def __call__(self, step: int) -> np.ndarray:
    """Returns tokens_BxT1, int32: inputs [:, :-1], targets [:, 1:]."""
    epoch, position = divmod(step, self.steps_per_epoch)
    offset, order = self._epoch(epoch)
    first = position * self._batch_size
    rows = order[first : first + self._batch_size]
    starts_B = offset + rows * self._length
    return self._ids_N[starts_B[:, None] + np.arange(self._length + 1)]


def _offset_and_order(
  seed: int, length: int, count: int, epoch: int
) -> tuple[int, np.ndarray]:
  """Where an epoch's first window starts, and the order of its windows."""
  rng = np.random.default_rng((seed, epoch))
  return int(rng.integers(length)), rng.permutation(count)


def windows(
  ids_N: np.ndarray, length: int, context: int, batch_size: int
) -> Iterator[Window]:
  """Windows in which every token of a stream is predicted exactly once.

  Args:
    ids_N: `TokenStream.ids_N`. An end of line is put before the first token.
    length: tokens that the model sees at once.
    context: of these, how many are shared with the window before: each
      prediction has at least this much context (less at the start).
    batch_size: windows per batch; the last batch is padded with weight 0.

  Yields:
    Windows of the same shape.
  """
  if not 0 <= context < length:
    raise ValueError(f'context={context}: expected 0..{length - 1}')
  ids_N = np.concatenate([[END], ids_N]).astype(np.int32)
  stride, total = length - context, len(ids_N) - 1
  # The first window counts all its predictions, later ones their last stride.
  count = 1 + max(0, math.ceil((total - length) / stride))
  for first in range(0, count, batch_size):
    tokens_BxT1 = np.full((batch_size, length + 1), END, np.int32)
    weights_BxT = np.zeros((batch_size, length), np.float32)
    for row, number in enumerate(range(first, min(first + batch_size, count))):
      start = number * stride
      piece = ids_N[start : start + length + 1]
      tokens_BxT1[row, : len(piece)] = piece
      weights_BxT[row, context if number else 0 : len(piece) - 1] = 1
    yield Window(tokens_BxT1, weights_BxT)


def perplexity(nll: float, words: int) -> float:
  """Perplexity per word of a total negative log-likelihood in nats.

  Args:
    nll: sum over all tokens, whatever the units.
    words: `TokenStream.words` or `TextCorpus.words`.

  Returns:
    exp(nll / words); infinity where that overflows, NaN for NaN.
  """
  if words < 1:
    raise ValueError('perplexity of no words: the corpus is empty')
  rate = float(nll) / words
  return math.inf if rate > 709 else math.exp(rate)


def token_nats(
  nll_fn: Callable[[np.ndarray], Any],
  stream: TokenStream,
  *,
  length: int = 256,
  context: int = 128,
  batch_size: int = 16,
) -> np.ndarray:
  """Scores a stream with sliding windows.

  Args:
    nll_fn: (tokens_BxT1) -> nll_BxT of each next token, in nats.
    stream: the text.
    length: see `windows`.
    context: see `windows`.
    batch_size: see `windows`.

  Returns:
    nll_N, float64, of every token of the stream.
  """
  found = []
  for window in windows(stream.ids_N, length, context, batch_size):
    nll_BxT = np.asarray(nll_fn(window.tokens_BxT1), np.float64)
    found.append(nll_BxT[window.weights_BxT > 0])
  nll_N = np.concatenate(found)
  if np.isnan(nll_N).any():
    raise FloatingPointError('the model gives NaN as log-likelihood')
  return nll_N


def score(
  nll_fn: Callable[[np.ndarray], Any], stream: TokenStream, **options: Any
) -> tuple[float, float]:
  """Scores a stream as a whole.

  Args:
    nll_fn: (tokens_BxT1) -> nll_BxT of each next token, in nats.
    stream: the text.
    **options: of `token_nats`.

  Returns:
    Perplexity per word, and the negative log-likelihood of the whole stream.
  """
  total = float(token_nats(nll_fn, stream, **options).sum())
  return perplexity(total, stream.words), total
