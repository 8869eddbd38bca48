"""MRACos: the multi-regional absolute cosine that gathers weights at centroids.

Centroids cut the line into regions. For a weight w between the centroids l and
r = l + d, with m midway and u = w - m,

  value(w) = (d / pi)^p |cos(pi u / d)|  =  (d / pi)^p sin(pi |w - q| / d)

with q the centroid nearer to w. It is zero at every centroid and largest
midway; its slope is zero midway and largest at the centroids: a weight decides
slowly and then locks. Along its gradient flow tan(pi u / 2 d) grows as e^t,
where t is the time times (d / pi)^(p - 2), until it is +-1 at the centroid,
which happens in finite time. `flow` takes that step exactly.

Beyond the outermost centroids, at a distance x, the value is x D / pi + x^2 / 2
with D the mean width: the slope of a region at its centroid, and from there a
pull that grows linearly, so that x + D / pi shrinks as e^-t and C = 4 brings
home whatever lies within 17 widths. Under a constant slope the same C moves
weights by 1.3 widths, and the outliers, which a network needs most, jump when
codes are frozen.

Published: a multi-regional absolute-cosine regularizer in the loss pulls each
weight to its nearest Lloyd-Max centroid. Our reconstruction: the formula about
the midpoint, its weight (d / pi)^p with p = 2 (every region locks at the same
rate; p = 0 is the bare cosine and locks narrow regions first), the pull
outside the outermost centroids, the zero gradient at a centroid, the coupling
by flow, and the schedule.

References:
  Zhen et al., Sub-8-Bit Quantization Aware Training for 8-Bit Neural Network
  Accelerator with On-Device Speech Recognition, Interspeech 2022,
  arXiv:2206.15408.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from s8bqat_jax.artifacts import qtensor
from s8bqat_jax.quantizers import codebook as books
from s8bqat_jax.quantizers import lift, schedules, trig, types
from s8bqat_jax.quantizers import rules as rule_lib
from s8bqat_jax.quantizers.lloyd_max import fit as fit_lloyd_max

FLOW, LOSS = 'flow', 'loss'


def mracos(
  rules: rule_lib.Rules,
  *,
  pressure: optax.ScalarOrSchedule,
  power: float = 2.0,
  coupling: str = FLOW,
  fit: Callable[[jax.Array, int], books.Codebook] = fit_lloyd_max,
  quantize: Callable[
    [jax.Array, books.Codebook], qtensor.QTensor
  ] = books.quantize,
) -> types.Quantizer:
  """Gathers weights at the centroids that are fitted to the initial weights.

  The forward pass sees the float weights, so evaluate what `encode` returns.
  The weights should be float32: the pull of one step is a small part of a
  region, and bfloat16 rounds it away.

  Args:
    rules: bits for every weight, or a sequence of `Rule`.
    pressure: strength of the pull, number or schedule; `pressure_schedule`
      makes one from a single hyperparameter.
    power: p, the exponent of a region's width.
    coupling: 'flow' moves the weights after the optimizer's step by the exact
      gradient flow for the time pressure * learning rate. 'loss' adds pressure
      times the sum of `value` to the loss; under Adam its strength is then
      nearly lost, for Adam divides it by the gradient's own size.
    fit: (w, levels) -> Codebook.
    quantize: (w, Codebook) -> QTensor of the nearest centroids.

  Returns:
    The Quantizer. Metrics: `offset`, the mean distance to the nearest centroid
    in widths of the region (0 to 0.5), and `locked`, the share of weights that
    equal a centroid.

  Raises:
    ValueError: if `coupling` is neither of the two.

  References:
    Zhen et al., arXiv:2206.15408; see the head of this file for what of it is
    published. Decoupling as in Loshchilov and Hutter, Decoupled Weight Decay
    Regularization, arXiv:1711.05101.
  """
  if coupling not in (FLOW, LOSS):
    raise ValueError(f"coupling must be 'flow' or 'loss', got {coupling!r}")

  def penalty(w, state, spec, ctx):
    del spec
    w, left, right, width = _surroundings(w, state.carried)
    strength = schedules.at(pressure, ctx.step)
    return strength * jnp.sum(value(w, left, right, width, power))

  def after_update(w, state, spec, ctx):
    del spec
    x, left, right, width = _surroundings(w, state.carried)
    time = schedules.at(pressure, ctx.step) * ctx.learning_rate
    x = flow(x, left, right, width, time, power)
    return x.astype(w.dtype), state, jnp.zeros((), bool)

  def metrics(w, state, spec):
    del spec
    w, left, right, _ = _surroundings(w, state.carried)
    inside, d, u, _ = _locate(w, left, right)
    offset = jnp.where(inside, 0.5 - jnp.abs(u) / d, 0.0)
    locked = (w == left) | (w == right)
    return {'offset': jnp.mean(offset), 'locked': jnp.mean(locked)}

  return lift.lift_tensor(
    rules,
    init=lambda w, spec: types.State(carried=fit(w, spec.levels)),
    quantize=lambda w, state, spec: quantize(w, state.carried),
    penalty=penalty if coupling == LOSS else None,
    after_update=after_update if coupling == FLOW else None,
    metrics=metrics,
  )


def _surroundings(w: jax.Array, codebook: books.Codebook) -> Any:
  """Returns (w, left, right, mean width) in float32."""
  left, right = books.regions(w, codebook)
  low, high = (x.astype(jnp.float32) for x in books.ends(codebook))
  width = (high - low) / (len(codebook.values) - 1)
  w, left, right = (x.astype(jnp.float32) for x in (w, left, right))
  return w, left, right, width


@functools.partial(jax.custom_jvp, nondiff_argnums=(4,))
def value(
  w: jax.Array,
  left: jax.Array,
  right: jax.Array,
  width: jax.Array,
  power: float = 2.0,
) -> jax.Array:
  """Returns the penalty of every weight; centroids count as constants.

  A region's weight (d / pi)^p is scaled by (width / pi)^(2 - p): a region of
  average width counts alike under every p, and one strength serves them all.

  Args:
    w: weights, any shape.
    left: the highest centroid not above each weight, shape of `w`; below all
      centroids the lowest one.
    right: the lowest centroid above each weight, shape of `w`; above all
      centroids the highest one, so that outside left == right.
    width: average width of the regions of this codebook, scalar; or one for
      each of its scales, broadcastable to `w`.
    power: p.

  Returns:
    Penalties, the shape of `w`.
  """
  inside, d, _, outside = _locate(w, left, right)
  # About the centroid rather than the midpoint: 0 there, to the last bit.
  distance = jnp.maximum(jnp.minimum(w - left, right - w), 0.0)
  bump = (d / jnp.pi) ** 2 * _relative(d, width, power - 2.0)
  bump = bump * jnp.sin(jnp.pi * distance / d)
  beyond = (width / jnp.pi + outside / 2) * outside
  return jnp.where(inside, bump, jnp.where(width > 0, beyond, 0.0))


@value.defjvp
def _value_jvp(power, primals, tangents):
  # Autodiff of the literal |cos| is one-sided at a centroid and would push
  # every snapped weight the same way.
  w, left, right, width = primals
  out = value(w, left, right, width, power)
  return out, slope(w, left, right, width, power) * tangents[0]


def slope(
  w: jax.Array,
  left: jax.Array,
  right: jax.Array,
  width: jax.Array,
  power: float = 2.0,
) -> jax.Array:
  """Returns the derivative of `value` by `w`; exactly 0 at a centroid.

  Args:
    w: weights, any shape.
    left: as in `value`.
    right: as in `value`.
    width: as in `value`.
    power: p.

  Returns:
    Slopes, the shape of `w`.
  """
  inside, d, u, outside = _locate(w, left, right)
  bump = -d / jnp.pi * _relative(d, width, power - 2.0)
  bump = bump * jnp.sin(jnp.pi * u / d)
  pull = (width / jnp.pi + outside) * jnp.sign(w - left) * (width > 0)
  at_centroid = (w == left) | (w == right)
  return jnp.where(at_centroid, 0.0, jnp.where(inside, bump, pull))


def flow(
  w: jax.Array,
  left: jax.Array,
  right: jax.Array,
  width: jax.Array,
  time: jax.Array,
  power: float = 2.0,
) -> jax.Array:
  """Returns the weights after following -`slope` for `time`, exactly.

  tan(pi u' / 2 d) = clip(e^c tan(pi u / 2 d), -1, 1) between two centroids,
  c = time (d / width)^(p - 2); outside x' + D / pi = e^-time (x + D / pi).

  Args:
    w: weights, any shape.
    left: as in `value`.
    right: as in `value`.
    width: as in `value`.
    time: how long, scalar.
    power: p.

  Returns:
    The new weights; one that arrives is equal to its centroid.
  """
  inside, d, u, outside = _locate(w, left, right)
  # e^80 takes all but a weight exactly midway to its centroid, and is finite.
  c = jnp.minimum(time * _relative(d, width, power - 2.0), 80.0)
  tangent = trig.tan(jnp.pi / 2 * u / d)
  # The difference of two arctangents, so that a small step keeps its digits
  # and none at all leaves the weight as it is.
  turn = trig.arctan(
    tangent * jnp.expm1(c) / (1.0 + tangent * tangent * jnp.exp(c))
  )
  nearest = jnp.where(u < 0, left, right)
  arrived = jnp.abs(tangent) * jnp.exp(c) >= 1.0
  inner = jnp.where(arrived, nearest, w + 2.0 / jnp.pi * d * turn)
  walk = -jnp.expm1(-time) * (outside + width / jnp.pi) * (width > 0)
  outer = jnp.where(outside <= walk, left, w - jnp.sign(w - left) * walk)
  return jnp.where(inside, inner, outer).astype(w.dtype)


def _locate(w, left, right):
  """Returns (inside, region width, offset from midpoint, distance outside)."""
  d = right - left
  inside = d > 0
  d = jnp.where(inside, d, 1.0)
  u = jnp.clip(w - (left + d / 2), -d / 2, d / 2)
  return inside, d, u, jnp.where(inside, 0.0, jnp.abs(w - left))


def _relative(d, width, exponent):
  if exponent == 0.0:
    return 1.0
  return (d / jnp.where(width > 0, width, 1.0)) ** exponent


def pressure_schedule(
  total: float,
  total_steps: int,
  learning_rate: optax.ScalarOrSchedule,
  until: float = 0.8,
) -> optax.Schedule:
  """Returns the schedule that spreads `total` over training.

  It rises quadratically from zero until `until` of the steps and then stays,
  and is scaled such that the sum over all steps of pressure times learning
  rate is `total`. As a decoupled weight decay does, the flow moves weights by
  pressure times learning rate, hence by `total` over the whole training:
  e^total is how much closer to its centroid a weight's tan(pi u / 2 d) gets
  if the task does not object.

  Args:
    total: the one hyperparameter, whatever the bits, tensors, model size,
      steps and learning rate; 4 is a good start.
    total_steps: steps of the training.
    learning_rate: of that training, number or schedule, as `make_step` gets.
    until: fraction of the steps after which the pressure stays.

  Returns:
    An optax schedule: step -> pressure.

  Raises:
    ValueError: if there are no steps or the learning rate is never positive.

  References:
    Decoupled weight decay: Loshchilov and Hutter, arXiv:1711.05101. The ramp
    and its normalization are ours.
  """
  if total_steps < 1:
    raise ValueError(f'total_steps must be at least 1, got {total_steps}')
  if not total >= 0:
    raise ValueError(
      f'total must be 0 or more, got {total}: a pull below it pushes weights '
      'away from their centroids'
    )
  if not 0 < until <= 1:
    raise ValueError(f'until must be in (0, 1], got {until}')

  def ramp(step):
    return jnp.minimum((step + 1.0) / (until * total_steps), 1.0) ** 2

  rates = schedules.values(learning_rate, total_steps)
  area = float(np.sum(schedules.values(ramp, total_steps) * rates))
  if not area > 0:
    raise ValueError(
      'learning_rate must be positive in some step that has pressure; its sum '
      f'over {total_steps} steps weighted by the ramp is {area}'
    )
  return lambda step: total / area * ramp(step)
