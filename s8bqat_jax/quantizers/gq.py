"""General Quantizer: soft choices among a few centroids slowly become hard.

Published: no regularizer; softmax annealing from soft to hard compression onto
self-adjustable centroids in a mu-law constrained space; bits may differ per
layer. Our reconstruction: where the centroids start, that they learn by the
gradient of the task, the unit and the schedule of the temperature, the choice
among the nearest few only, and the int8 grid.

References:
  Zhen et al., Sub-8-Bit Quantization for On-Device Speech Recognition: a
  Regularization-Free Approach, SLT 2022, arXiv:2210.09188.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from s8bqat_jax.artifacts import qtensor
from s8bqat_jax.quantizers import codebook as books
from s8bqat_jax.quantizers import lift, types
from s8bqat_jax.quantizers import rules as rule_lib
from s8bqat_jax.quantizers.lloyd_max import fit as fit_lloyd_max
from s8bqat_jax.quantizers.straight_through import replace

_NEIGHBORS = 4
_UNTIL = 0.8  # of the steps, then the choice stays hard


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def compand(x: jax.Array, mu: float) -> jax.Array:
  """Returns F(x) = sgn(x) ln(1 + mu |x|) / ln(1 + mu), the mu-law.

  Args:
    x: values, mostly in [-1, 1], which F maps to itself.
    mu: curvature; small weights are told apart better if it is larger.

  Returns:
    Values of the same sign, the shape of `x`.

  References:
    Zhen et al., arXiv:2210.09188: the space its centroids lie in.
  """
  return jnp.sign(x) * jnp.log1p(mu * jnp.abs(x)) / np.log1p(mu)


@compand.defjvp
def _compand_jvp(mu, primals, tangents):
  # Autodiff of sgn(x) f(|x|) gives 0 at 0, and zero weights would stay so.
  (x,), (dx,) = primals, tangents
  slope = mu / np.log1p(mu) / (1.0 + mu * jnp.abs(x))
  return compand(x, mu), slope * dx


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def expand(y: jax.Array, mu: float) -> jax.Array:
  """Returns the inverse of `compand`.

  Args:
    y: companded values.
    mu: curvature.

  Returns:
    Values of the same sign, the shape of `y`.
  """
  return jnp.sign(y) * jnp.expm1(np.log1p(mu) * jnp.abs(y)) / mu


@expand.defjvp
def _expand_jvp(mu, primals, tangents):
  (y,), (dy,) = primals, tangents
  rate = np.log1p(mu)
  return expand(y, mu), rate / mu * jnp.exp(rate * jnp.abs(y)) * dy


def gq(
  rules: rule_lib.Rules,
  *,
  total_steps: int,
  mu: float = 255.0,
  hardness: tuple[float, float] = (2.0, 200.0),
) -> types.Quantizer:
  """Softmax annealing onto centroids that learn.

  A weight is seen as w_hat = F^-1(sum_j p_j c_j), p_j ~ exp(-a |F(w) - c_j|)
  over the nearest few centroids c_j, all in units of the tensor's largest
  magnitude at the start. Centroids are learned state, so they train by
  `learned_tx` of `make_step`.

  Args:
    rules: bits for every weight, or a sequence of `Rule`.
    total_steps: steps of the training.
    mu: curvature of the mu-law.
    hardness: a at the first step and from 80% of the steps on, in units of
      1 / mean distance between centroids; it grows geometrically.

  Returns:
    The Quantizer. Metric: `offset`, the mean distance between the companded
    weight and its nearest centroid in units of their mean distance.

  Raises:
    ValueError: if there are no steps or hardness is not positive.

  References:
    Zhen et al., arXiv:2210.09188; see the head of this file for what of it is
    published.
  """
  if total_steps < 1:
    raise ValueError(f'total_steps must be at least 1, got {total_steps}')
  if not min(hardness) > 0:
    raise ValueError(f'hardness must be positive, got {hardness}')
  first, last = hardness

  def init(w, spec):
    real = books.centroids(fit_lloyd_max(w, spec.levels)).astype(jnp.float32)
    unit = jnp.max(jnp.abs(w)).astype(jnp.float32)
    unit = jnp.where(unit > 0, unit, 1.0)
    return types.State(compand(real / unit, mu), unit)

  def codebook(state, dtype) -> books.Codebook:
    """The centroids as they ship, on the int8 grid."""
    real = expand(state.learned, mu) * state.carried
    scale = jnp.max(jnp.abs(real)) / books.INT8_MAX
    scale = jnp.maximum(scale, jnp.finfo(dtype).tiny).astype(dtype)
    return books.on_grid(real, scale)

  def on_grid(state, dtype) -> jax.Array:
    """The companded centroids, sorted; gradients pass through the rounding."""
    shipped = books.centroids(codebook(state, dtype)).astype(jnp.float32)
    shipped = compand(shipped / state.carried, mu)
    return replace(jnp.sort(state.learned), shipped)

  def quantize(w, state, spec):
    # Nearest in the companded space, where training chooses.
    del spec
    book = codebook(state, w.dtype)
    y = compand(w.astype(jnp.float32) / state.carried, mu)
    codes = books.nearest(y, books.Codebook(on_grid(state, w.dtype), 1.0))
    return qtensor.QTensor(codes, book.scale, book.values, len(book.values))

  def view(w, state, spec, ctx):
    c = on_grid(state, w.dtype)
    y = compand(w.astype(jnp.float32) / state.carried, mu)
    a = _hardness(ctx.step) / _mean_distance(c)
    few = min(_NEIGHBORS, spec.levels)
    start = _first_neighbor(w, codebook(state, w.dtype), few)
    near = [qtensor.look_up(c, start + i) for i in range(few)]
    return (expand(_mix(y, near, a), mu) * state.carried).astype(w.dtype)

  def _hardness(step):
    done = jnp.minimum(step / (_UNTIL * total_steps), 1.0)
    return first * (last / first) ** done

  def metrics(w, state, spec):
    del spec
    c = on_grid(state, w.dtype)
    y = compand(w.astype(jnp.float32) / state.carried, mu)
    snapped = books.snap(y, books.Codebook(c, jnp.ones((), jnp.float32)))
    return {'offset': jnp.mean(jnp.abs(y - snapped)) / _mean_distance(c)}

  return lift.lift_tensor(
    rules, init=init, quantize=quantize, view=view, metrics=metrics
  )


def _first_neighbor(w: jax.Array, book: books.Codebook, few: int) -> jax.Array:
  """Returns the index of the first of the `few` centroids around each weight.

  Companding keeps the order, so weights are compared with the centroids as
  they ship: on the int8 grid that is one look into a table.
  """
  w, book = jax.lax.stop_gradient((w, book))
  return jnp.clip(books.above(w, book) - few // 2, 0, len(book.values) - few)


def _mix(y: jax.Array, near: Sequence[jax.Array], a: jax.Array) -> jax.Array:
  """Returns the mean of some centroids, weighted by softmax(-a |y - c|).

  Written out, so that it is one loop over the weights: XLA reduces a stack of
  a few large arrays about ten times more slowly on a CPU.
  """
  scores = [-a * jnp.abs(y - x) for x in near]
  highest = jax.lax.stop_gradient(functools.reduce(jnp.maximum, scores))
  shares = [jnp.exp(score - highest) for score in scores]
  total = functools.reduce(jnp.add, shares)
  return functools.reduce(jnp.add, map(jnp.multiply, shares, near)) / total


def _mean_distance(c_K: jax.Array) -> jax.Array:
  distance = jax.lax.stop_gradient(c_K[-1] - c_K[0]) / (len(c_K) - 1)
  return jnp.where(distance > 0, distance, 1.0)
