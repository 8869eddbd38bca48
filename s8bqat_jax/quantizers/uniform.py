"""Uniform grids: one step size per tensor or channel, codes around zero.

This is the INT8 QAT baseline (8 bits), n-bit uniform QAT, and, with
`entropy_scale`, a coarse step inside int8 whose few used codes compress well.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from s8bqat_jax.artifacts import qtensor
from s8bqat_jax.quantizers import codebook as books
from s8bqat_jax.quantizers import lift, types
from s8bqat_jax.quantizers import rules as rule_lib
from s8bqat_jax.quantizers import tree as trees
from s8bqat_jax.quantizers.straight_through import straight_through

# (w, levels, channel_axis) -> scale
ScaleFit = Callable[[jax.Array, int, int | None], jax.Array]
# Steps to try, in units of the one that spans the range, then of the best. The
# optimum for heavy tails lies far below 1; 1/50 covers all that was ever seen.
_WIDE = np.geomspace(0.02, 1.0, 64)
_NARROW = np.geomspace(0.94, 1.06, 32)
_POLISH = 4


def quantize(w: jax.Array, scale: jax.Array, levels: int) -> qtensor.QTensor:
  """Rounds weights to the nearest point of a uniform grid.

  Args:
    w: float weights.
    scale: positive step, broadcastable to `w`.
    levels: 2..256. Two levels are the centroids -1 and +1 (zero counts as
      positive), more of them the integers of `qtensor.uniform_range`.

  Returns:
    The QTensor; ties round to even.
  """
  scale = jnp.asarray(scale, w.dtype)
  if levels == 2:
    codes = (w >= 0).astype(jnp.uint8)
    return qtensor.QTensor(codes, scale, jnp.array([-1, 1], jnp.int8), 2)
  low, high = qtensor.uniform_range(levels)
  codes = jnp.clip(jnp.round(books.in_steps(w, scale)), low, high)
  return qtensor.QTensor(codes.astype(jnp.int8), scale, None, levels)


def book(
  w: jax.Array, levels: int, channel_axis: int | None = None
) -> books.Codebook:
  """Returns the uniform grid of least squared error as centroids.

  Args:
    w: float weights.
    levels: 2..256.
    channel_axis: the axis that keeps a step of its own; None for one step.
  """
  values = jnp.array(grid(levels), jnp.int8)
  return books.Codebook(values, mse_scale(w, levels, channel_axis))


def grid(levels: int) -> list[int]:
  """Returns -1, 1 (binary), -1, 0, 1 (ternary), or n-bit integers.

  Args:
    levels: 2..256.
  """
  if levels == 2:
    return [-1, 1]
  low, high = qtensor.uniform_range(levels)
  return list(range(low, high + 1))


def max_scale(
  w: jax.Array, levels: int, channel_axis: int | None = None
) -> jax.Array:
  """Returns the step that puts the largest magnitude on the highest code.

  Args:
    w: float weights.
    levels: 2..256.
    channel_axis: the axis that keeps a step of its own; None for one step.

  Returns:
    The step, broadcastable to `w` and in its dtype.
  """
  trees.check_fit(w, levels)
  largest = jnp.max(jnp.abs(w), axis=_others(w, channel_axis), keepdims=True)
  return _finish(largest / _highest(levels), w, channel_axis)


def percentile_scale(percentile: float) -> ScaleFit:
  """Returns a fit that lets the largest magnitudes saturate.

  Args:
    percentile: the percentile of |w| that gets the highest code, in (0, 100].

  Returns:
    A ScaleFit.

  Raises:
    ValueError: if `percentile` is out of its range.
  """
  if not 0 < percentile <= 100:
    raise ValueError(f'percentile must be in (0, 100], got {percentile}')

  def fit(w, levels, channel_axis=None):
    trees.check_fit(w, levels)
    magnitude = jnp.abs(trees.whole(w).astype(jnp.float32))
    axes = _others(w, channel_axis)
    largest = jnp.percentile(magnitude, percentile, axis=axes, keepdims=True)
    # Where so many weights are zero, the others are not cut off.
    maximum = jnp.max(magnitude, axis=axes, keepdims=True, initial=0.0)
    largest = jnp.where(largest > 0, largest, maximum)
    return _finish(largest / _highest(levels), w, channel_axis)

  return fit


@functools.partial(jax.jit, static_argnums=(1, 2))
def mse_scale(
  w: jax.Array, levels: int, channel_axis: int | None = None
) -> jax.Array:
  """Returns the step with the least squared error, by search.

  The error has many shallow minima, so steps down to a fiftieth of the one that
  spans the range are tried, then steps around the best; that one improves by
  turns of rounding and least squares. At one bit the optimum is known: the mean
  magnitude.

  Args:
    w: float weights.
    levels: 2..256.
    channel_axis: the axis that keeps a step of its own; None for one step.

  Returns:
    The step, broadcastable to `w` and in its dtype.

  References:
    Max, Quantizing for Minimum Distortion, 1960, which tabulates the step for a
    Gaussian. The search is ours.
  """
  trees.check_fit(w, levels)
  axes = _others(w, channel_axis)
  x = w.astype(jnp.float32)
  # Scaled by a power of two, which is exact, so that squares exist.
  _, exponent = jnp.frexp(jnp.max(jnp.abs(x), axes, keepdims=True))
  x = jnp.ldexp(x, -exponent)
  if levels == 2:
    mean = jnp.mean(jnp.abs(x), axes, keepdims=True)
    return _finish(jnp.ldexp(mean, exponent), w, channel_axis)
  widest = max_scale(x, levels, channel_axis)
  widest = jnp.reshape(widest, _reduced_shape(w, channel_axis))

  def error(scale):
    off = x - qtensor.dequantize(quantize(x, scale, levels))
    return jnp.sum(off * off, axes, keepdims=True)

  def consider(best, scale):
    scale_error = error(scale)
    better = scale_error < best[1]
    return (
      jnp.where(better, scale, best[0]),
      jnp.where(better, scale_error, best[1]),
    )

  def search(best, shares):
    around, shares = best[0], jnp.asarray(shares, jnp.float32)
    return jax.lax.fori_loop(
      0,
      shares.size,
      lambda i, best: consider(best, around * shares[i]),
      best,
    )

  best = search((widest, jnp.full_like(widest, jnp.inf)), _WIDE)
  best = search(best, _NARROW)

  def polish(_, best):
    codes = quantize(x, best[0], levels).codes.astype(jnp.float32)
    dot = jnp.sum(codes * x, axes, keepdims=True)
    norm = jnp.sum(codes * codes, axes, keepdims=True)
    return consider(best, jnp.where(dot > 0, dot / norm, best[0]))

  best = jax.lax.fori_loop(0, _POLISH, polish, best)
  return _finish(jnp.ldexp(best[0], exponent), w, channel_axis)


def entropy_scale(bits_per_weight: float) -> ScaleFit:
  """Returns a fit for a coarse step: codes of a wanted entropy.

  A uniform grid whose codes are entropy-coded beats Lloyd-Max centroids of
  the same rate, but only if the step is chosen for the rate and not for the
  range. Give it 256 levels: codes stay int8 and most of them are never used.

  Args:
    bits_per_weight: empirical entropy that the codes should have, above 0.

  Returns:
    A ScaleFit. Where the range of codes or the weights themselves allow less
    entropy (all weights equal, say), the step ends at the finest that spans
    the range.

  References:
    Gish and Pierce, Asymptotically Efficient Quantizing, IEEE Transactions on
    Information Theory, 1968.
  """
  if bits_per_weight <= 0:
    raise ValueError(f'bits_per_weight must be above 0, got {bits_per_weight}')

  def fit(w, levels, channel_axis=None):
    if channel_axis is not None:
      raise ValueError(
        'entropy_scale fits one step per tensor; leave channel_axis at None'
      )
    if levels < 3:
      raise ValueError(
        'entropy_scale coarsens the codes of a grid that has a zero: expected '
        f'at least 3 levels, got {levels}'
      )
    return _entropy_scale(w, levels, bits_per_weight)

  return fit


@functools.partial(jax.jit, static_argnums=(1,))
def _entropy_scale(w, levels, wanted):
  x = trees.whole(w).astype(jnp.float32)
  finest = max_scale(x, levels)
  low, high = qtensor.uniform_range(levels)

  def entropy(scale):
    codes = quantize(x, scale, levels).codes.astype(jnp.int32)
    # Whole numbers: in float32 a count would stop at 2^24.
    count = jnp.zeros(high - low + 1, jnp.int32)
    count = count.at[(codes - low).ravel()].add(1)
    share = count.astype(jnp.float32) / float(x.size)
    return -jnp.sum(jax.scipy.special.xlogy(share, share)) / jnp.log(2.0)

  # Bisection of the logarithm of the step: entropy falls as the step grows. It
  # stops at 0.2%: entropy is a staircase, and going on would end on a stair,
  # with a weight exactly between two codes.
  def halve(_, bounds):
    fine, coarse = bounds
    middle = (fine + coarse) / 2
    too_fine = entropy(jnp.exp(middle)) > wanted
    return jnp.where(too_fine, middle, fine), jnp.where(
      too_fine, coarse, middle
    )

  fine = jnp.log(finest)
  bounds = fine, fine + jnp.log(4.0 * _highest(levels))
  fine, _ = jax.lax.fori_loop(0, 12, halve, bounds)
  return _finish(jnp.exp(fine), w, None)


def uniform(
  rules: rule_lib.Rules,
  *,
  scale: ScaleFit = max_scale,
  channel_axis: int | None = None,
  refit_every: int = 1,
) -> types.Quantizer:
  """Straight-through training on a uniform grid.

  Args:
    rules: bits for every weight, or a sequence of `Rule`.
    scale: how the step is fitted: `max_scale`, `percentile_scale(p)`,
      `mse_scale` or `entropy_scale(bits)`. Below 4 bits the step that spans
      the largest weight is far too long for the others: take `mse_scale`.
    channel_axis: the axis that keeps a step of its own (-1: one per output
      channel of a Flax kernel); None for one step per tensor.
    refit_every: the step follows the weights every so many updates; 0 keeps
      the one fitted to the initial weights. A search is worth doing rarely.

  Returns:
    The Quantizer.

  Raises:
    ValueError: if `refit_every` is less than 0.

  References:
    Jacob et al., Quantization and Training of Neural Networks for Efficient
    Integer-Arithmetic-Only Inference, CVPR 2018, arXiv:1712.05877.
  """

  if refit_every < 0:
    raise ValueError(f'refit_every must be 0 or more, got {refit_every}')

  def fit(w: jax.Array, spec: rule_lib.Spec) -> jax.Array:
    return scale(w, spec.levels, channel_axis)

  def after_update(w, state, spec, ctx):
    if refit_every == 1:
      state = types.State((), fit(w, spec))
    elif refit_every:
      state = types.State(
        (),
        jax.lax.cond(
          (ctx.step + 1) % refit_every == 0,
          lambda: fit(w, spec),
          lambda: state.carried,
        ),
      )
    return w, state, jnp.zeros((), bool)

  return straight_through(
    lift.lift_tensor(
      rules,
      init=lambda w, spec: types.State((), fit(w, spec)),
      quantize=lambda w, state, spec: quantize(w, state.carried, spec.levels),
      after_update=after_update,
    )
  )


def _highest(levels: int) -> int:
  return max(qtensor.uniform_range(levels)[1], 1)


def _others(w: jax.Array, channel_axis: int | None) -> tuple[int, ...]:
  """The axes that share a step."""
  if channel_axis is not None and not -w.ndim <= channel_axis < w.ndim:
    raise ValueError(
      f'channel_axis={channel_axis}: a weight of shape {w.shape} has no such '
      'axis; -1 is the last of any, and `by_path` gives weights methods of '
      'their own'
    )
  kept = None if channel_axis is None else range(w.ndim)[channel_axis]
  return tuple(axis for axis in range(w.ndim) if axis != kept)


def _reduced_shape(w: jax.Array, channel_axis: int | None) -> tuple[int, ...]:
  shared = _others(w, channel_axis)
  return tuple(1 if axis in shared else n for axis, n in enumerate(w.shape))


def _finish(
  scale: jax.Array, w: jax.Array, channel_axis: int | None
) -> jax.Array:
  """Above zero even for weights that are all zero, in the dtype of `w`."""
  tiny = jnp.finfo(w.dtype).tiny
  scale = jnp.maximum(scale.astype(w.dtype), tiny)
  return scale.reshape(()) if channel_axis is None else scale
