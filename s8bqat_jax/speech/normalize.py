"""Feature normalization that gives a stream the same values as the file.

`GlobalNorm` uses the mean and deviation of a training corpus, accumulated
batch by batch. `running_mean` subtracts the mean of the frames so far, which
removes a channel's coloring without looking ahead.

Dimension key: B batch, T frames, F features.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Moments(NamedTuple):
  """Count, mean and sum of squared deviations; float64 NumPy."""

  frames: int
  mean_F: np.ndarray
  m2_F: np.ndarray


class GlobalNorm(NamedTuple):
  """(x - mean) / deviation with the statistics of a corpus."""

  mean_F: np.ndarray
  deviation_F: np.ndarray

  def __call__(self, feats_BxTxF: jax.Array) -> jax.Array:
    """Normalizes any [..., F]; frames beyond a length become garbage."""
    mean_F = jnp.asarray(self.mean_F, jnp.float32)
    deviation_F = jnp.asarray(self.deviation_F, jnp.float32)
    return (feats_BxTxF - mean_F) / deviation_F

  def to_config(self) -> dict[str, Any]:
    """Returns plain lists, for a JSON file."""
    return {
      'mean': np.asarray(self.mean_F, np.float64).tolist(),
      'deviation': np.asarray(self.deviation_F, np.float64).tolist(),
    }

  @classmethod
  def from_config(cls, config: dict[str, Any]) -> GlobalNorm:
    """Rebuilds what `to_config` wrote."""
    return cls(np.array(config['mean']), np.array(config['deviation']))


def zero_moments(num_features: int) -> Moments:
  """The moments of no frames."""
  return Moments(0, np.zeros(num_features), np.zeros(num_features))


def accumulate(moments: Moments, feats_BxTxF: Any, lengths_B: Any) -> Moments:
  """Adds the valid frames of a batch.

  Args:
    moments: so far.
    feats_BxTxF: features.
    lengths_B: frames of each row.

  Returns:
    The moments of both, combined without cancellation.

  References:
    T. Chan, G. Golub, R. LeVeque, Updating Formulae and a Pairwise Algorithm
    for Computing Sample Variances, 1979.
  """
  feats = np.asarray(feats_BxTxF, np.float64)
  valid_BxT = np.arange(feats.shape[1]) < np.asarray(lengths_B)[:, None]
  frames_NxF = feats[valid_BxT]
  count = len(frames_NxF)
  if count == 0:
    return moments
  mean_F = frames_NxF.mean(0)
  total = moments.frames + count
  shift_F = mean_F - moments.mean_F
  m2_F = moments.m2_F + ((frames_NxF - mean_F) ** 2).sum(0)
  return Moments(
    total,
    moments.mean_F + shift_F * count / total,
    m2_F + shift_F**2 * moments.frames * count / total,
  )


def global_norm(moments: Moments, *, floor: float = 1e-3) -> GlobalNorm:
  """The normalization that makes these frames zero mean, unit variance.

  Args:
    moments: of a training corpus.
    floor: smallest deviation, for a feature that never changes.

  Returns:
    A `GlobalNorm`.
  """
  if moments.frames < 2:
    raise ValueError(
      f'{moments.frames} frames have no deviation: accumulate at least 2'
    )
  deviation_F = np.sqrt(moments.m2_F / moments.frames)
  return GlobalNorm(moments.mean_F, np.maximum(deviation_F, floor))


class RunningSum(NamedTuple):
  """Carry of `running_mean`."""

  sum_BxF: jax.Array
  frames: jax.Array


def initial_sum(
  prior_F: Any, batch_size: int, *, frames: int = 50
) -> RunningSum:
  """The carry before any frame: as if `frames` frames of the prior were heard.

  Args:
    prior_F: mean expected before any frame is heard, as a corpus's.
    batch_size: B.
    frames: weight of the prior; 50 frames are half a second.

  Returns:
    The carry of `running_mean`.
  """
  prior_F = jnp.asarray(prior_F, jnp.float32)
  sum_BxF = jnp.broadcast_to(prior_F * frames, [batch_size, *prior_F.shape])
  return RunningSum(sum_BxF, jnp.asarray(frames, jnp.float32))


def running_mean(
  carry: RunningSum, feats_BxTxF: jax.Array
) -> tuple[RunningSum, jax.Array]:
  """Subtracts from each frame the mean of all frames up to it.

  Args:
    carry: from `initial_sum` or the previous chunk.
    feats_BxTxF: the whole utterance or the next frames of it.

  Returns:
    The next carry and feats_BxTxF.
  """
  T = feats_BxTxF.shape[1]
  sums_BxTxF = carry.sum_BxF[:, None] + jnp.cumsum(feats_BxTxF, axis=1)
  counts_T = carry.frames + jnp.arange(1, T + 1)
  normalized = feats_BxTxF - sums_BxTxF / counts_T[:, None]
  next_sum_BxF = carry.sum_BxF + feats_BxTxF.sum(axis=1)
  return RunningSum(next_sum_BxF, carry.frames + T), normalized
