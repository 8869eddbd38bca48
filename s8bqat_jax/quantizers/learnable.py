"""A uniform grid whose step is learned beside the weights: LSQ.

One scale per tensor serves one bit (-1, +1), ternary (-1, 0, +1) and 2..8 bits.
With c(w) the code of w and s the step, the weight seen is s c(w) and

  d/ds = c(w) - w / s   where w / s lies between the lowest and highest code,
  d/ds = c(w)           outside,
  d/dw = 1              everywhere: straight through.

Published: this gradient of the step, its normalization, and (for one bit and
ternary, in speech) one learnable scale per tensor. Our reconstruction: what is
learned is a factor on the initial step, whose magnitude counts, so that Adam's
update is relative and the step stays above zero; the initial step is the
optimum of the squared error (0.80 standard deviations of a Gaussian at one
bit, 1.22 at three levels) and not a multiple of the mean or the deviation.

References:
  Esser et al., Learned Step Size Quantization, ICLR 2020, arXiv:1902.08153.
  Li et al., Towards One-bit ASR, Interspeech 2025, arXiv:2505.21245.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from s8bqat_jax.artifacts import qtensor
from s8bqat_jax.quantizers import lift, types
from s8bqat_jax.quantizers import rules as rule_lib
from s8bqat_jax.quantizers.uniform import ScaleFit, grid, mse_scale, quantize


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def quantized(w: jax.Array, scale: jax.Array, levels: int) -> jax.Array:
  """Returns the grid point of each weight, differentiable by weight and step.

  Args:
    w: float weights.
    scale: positive step, broadcastable to `w`.
    levels: 2..256.

  Returns:
    `dequantize(quantize(w, scale, levels))`, with LSQ's derivatives.

  References:
    Esser et al., arXiv:1902.08153.
  """
  return qtensor.dequantize(quantize(w, scale, levels))


@quantized.defjvp
def _quantized_jvp(levels, primals, tangents):
  w, scale = primals
  q = quantize(w, scale, levels)
  # In float32: in bfloat16 w / scale is off by half a code and the sum over
  # the weights, which is what a step's gradient is, by a fifth and more.
  wide = jnp.promote_types(w.dtype, jnp.float32)
  x, s, by_w, by_s = (a.astype(wide) for a in (w, scale, *tangents))
  codes = qtensor.grid_values(q).astype(wide)
  low, *_, high = grid(levels)
  inside = (low * s <= x) & (x <= high * s)
  by_scale = jnp.where(inside, codes - x / s, codes)
  # LSQ's normalization: the step's gradient, a sum over the weights that share
  # it, should be of the order of a weight's.
  sharing = w.size / scale.size
  by_scale = by_scale * (sharing * max(high, 1)) ** -0.5
  # The value again by the function itself, so that it can be differentiated
  # once more.
  value = quantized(w, scale, levels)
  return value, (by_w + by_scale * by_s).astype(value.dtype)


def step_size(initial: jax.Array, factor: jax.Array) -> jax.Array:
  """Returns learned steps.

  Args:
    initial: where they began.
    factor: what is learned of each; its magnitude counts. In float32, in which
      the product is made: a bfloat16 factor could not move by 0.3%.
  """
  step = (initial * jnp.abs(factor)).astype(initial.dtype)
  return jnp.maximum(step, jnp.finfo(initial.dtype).tiny)


def learnable(
  rules: rule_lib.Rules,
  *,
  scale: ScaleFit = mse_scale,
  channel_axis: int | None = None,
) -> types.Quantizer:
  """Straight-through training on a uniform grid with learned steps.

  Args:
    rules: bits for every weight ('ternary' for three levels), or a sequence of
      `Rule`.
    scale: how the initial step is fitted.
    channel_axis: the axis that keeps a step of its own; None for one per
      tensor.

  Returns:
    The Quantizer; `learned` holds one factor per step, 1 at the start.

  References:
    Esser et al., arXiv:1902.08153; Li et al., arXiv:2505.21245; see the head of
    this file for what of them is published.
  """

  def init(w: jax.Array, spec: rule_lib.Spec) -> types.State:
    initial = scale(w, spec.levels, channel_axis)
    return types.State(jnp.ones(initial.shape, jnp.float32), initial)

  return lift.lift_tensor(
    rules,
    init=init,
    quantize=lambda w, state, spec: quantize(
      w, step_size(state.carried, state.learned), spec.levels
    ),
    view=lambda w, state, spec, ctx: quantized(
      w, step_size(state.carried, state.learned), spec.levels
    ),
  )
