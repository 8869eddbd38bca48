"""A codebook: a few sorted centroids per tensor, and where each weight stands.

On the int8 grid every decision boundary (the midpoint of two neighbours) is a
whole number of half grid steps, so one look into a table of 512 half steps
says, exactly, which centroid is nearest: no comparison per centroid. Codebooks
off the grid are searched by bisection, log2 K comparisons.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from s8bqat_jax.artifacts import qtensor
from s8bqat_jax.quantizers import tree as trees

INT8_MIN, INT8_MAX = -128, 127
_LOWEST = INT8_MIN - 1  # the grid's cell below all values


class Codebook(NamedTuple):
  """K centroids: `values * scale`.

  Attributes:
    values: [K], non-decreasing: int8 on the accelerator's grid, or floating
      point without that constraint.
    scale: positive scalar in the dtype of the weights; or, on the grid, one
      scale per channel in any shape that broadcasts against the weights, as in
      a QTensor.
  """

  values: Any
  scale: Any


class Regions(NamedTuple):
  """The two neighbouring centroids around each weight, as real values.

  Inside the codebook's range left <= w < right, where w may also be the right
  centroid itself because `values * scale` was rounded to its dtype. Outside it,
  and at the highest centroid, left == right == the nearest end, so that
  `right > left` tells inside from outside and `right - left` is the width.

  Attributes:
    left: the highest centroid that is not above w.
    right: the lowest centroid above w.
  """

  left: jax.Array
  right: jax.Array


def centroids(codebook: Codebook) -> jax.Array:
  """Returns the K real centroids, in the dtype of the scale.

  Args:
    codebook: a Codebook of one scale.

  Returns:
    [K], the very products that `qtensor.dequantize` forms.

  Raises:
    ValueError: if there is a scale per channel: `entries` and `ends` then say
      what the centroids of each weight are.
  """
  scale = jnp.asarray(codebook.scale)
  if scale.ndim:
    raise ValueError(
      f'a codebook with scales of shape {scale.shape} has no one list of '
      'centroids, expected a scalar scale'
    )
  return jnp.asarray(codebook.values).astype(scale.dtype) * scale


def entries(codes: jax.Array, codebook: Codebook) -> jax.Array:
  """Returns the centroids that codes stand for.

  Args:
    codes: integers in 0..K-1, the shape of the weights.
    codebook: a Codebook.

  Returns:
    Centroids, the shape of `codes` and the dtype of the scale.
  """
  return _scaled(lambda x: qtensor.look_up(x, codes), codebook)


def ends(codebook: Codebook) -> tuple[jax.Array, jax.Array]:
  """Returns the lowest and the highest centroid.

  Args:
    codebook: a Codebook.

  Returns:
    Two arrays of the scale's shape: scalars, or what broadcasts against the
    weights.
  """
  scale = jnp.asarray(codebook.scale)
  values = jnp.asarray(codebook.values).astype(scale.dtype)
  return values[0] * scale, values[-1] * scale


def on_grid(values_K: jax.Array, scale: jax.Array) -> Codebook:
  """Snaps real centroids to the int8 grid of one scale.

  Args:
    values_K: real centroids in any order.
    scale: positive scalar, the grid's step.

  Returns:
    A Codebook with int8 values, rounded to nearest, clipped to the grid and
    sorted; two centroids may fall on one grid point.
  """
  scale = jnp.asarray(scale)
  steps = jnp.asarray(values_K).astype(jnp.float32) / scale.astype(jnp.float32)
  steps = jnp.clip(jnp.round(steps), INT8_MIN, INT8_MAX)
  return Codebook(jnp.sort(steps.astype(jnp.int8)), scale)


@jax.jit
def nearest(w: jax.Array, codebook: Codebook) -> jax.Array:
  """Returns the code of the nearest centroid of each weight.

  A weight halfway between two centroids, as `in_steps` finds it in float32,
  takes the lower one, and equal centroids are all known by the
  first of them, so that the codes of decoded weights are the codes they came
  from, inside jit and outside alike. Weights outside the range take the
  nearest end; NaN takes code 0.

  Args:
    w: weights of any shape and floating dtype.
    codebook: a Codebook.

  Returns:
    uint8 codes, the shape of `w`.
  """
  values = jnp.asarray(codebook.values)
  # Equal centroids share the first one's code.
  first = jnp.searchsorted(values, values).astype(jnp.uint8)
  if values.dtype != jnp.int8:
    exact = _exact(codebook)
    bounds = exact[:-1] / 2 + exact[1:] / 2
    x = jnp.nan_to_num(jnp.asarray(w).astype(jnp.float32), nan=-jnp.inf)
    return qtensor.look_up(first, _search(bounds, x))
  # x > b / 2 exactly when ceil(2 x) > b, for the whole number b = v_i + v_i+1.
  halves = jnp.ceil(2 * in_steps(w, codebook.scale))
  lowest = 2 * INT8_MIN
  steps = values.astype(jnp.int32)
  cells = jnp.arange(lowest, 2 * INT8_MAX + 2)
  table = first[jnp.searchsorted(steps[:-1] + steps[1:], cells)]
  return _look_up(table, halves, lowest)


def above(w: jax.Array, codebook: Codebook) -> jax.Array:
  """Returns how many centroids are not above each weight.

  Args:
    w: weights of any shape and floating dtype.
    codebook: a Codebook.

  Returns:
    int32 in 0..K, the shape of `w`: the index of the lowest centroid above.
  """
  values = jnp.asarray(codebook.values)
  if values.dtype != jnp.int8:
    x = jnp.asarray(w).astype(jnp.float32)
    return _search(_exact(codebook), x, side='right')
  return _look_up(_above_cells(values), _cell(w, codebook), _LOWEST)


def quantize(w: jax.Array, codebook: Codebook) -> qtensor.QTensor:
  """Returns the QTensor of each weight's nearest centroid.

  Args:
    w: weights of any shape and floating dtype.
    codebook: a Codebook.

  Returns:
    A QTensor with K levels; see `nearest` for ties.
  """
  return qtensor.QTensor(
    codes=nearest(w, codebook),
    scale=jnp.asarray(codebook.scale),
    codebook=jnp.asarray(codebook.values),
    levels=len(codebook.values),
  )


def snap(w: jax.Array, codebook: Codebook) -> jax.Array:
  """Returns each weight's nearest centroid: dequantize(quantize(w)).

  Args:
    w: weights of any shape and floating dtype.
    codebook: a Codebook.

  Returns:
    Centroids, the shape of `w`.
  """
  return qtensor.dequantize(quantize(w, codebook))


@jax.jit
def regions(w: jax.Array, codebook: Codebook) -> Regions:
  """Returns the two centroids around each weight.

  Both are the same floats that `snap` returns, so a snapped weight equals its
  left or its right neighbour to the last bit.

  Args:
    w: weights of any shape and floating dtype.
    codebook: a Codebook.

  Returns:
    The Regions: arrays of the shape of `w` and the dtype of the scale.
  """
  values = jnp.asarray(codebook.values)
  last = len(values) - 1
  if values.dtype != jnp.int8:
    right = above(w, codebook)
    left, right = jnp.maximum(right - 1, 0), jnp.minimum(right, last)
    return Regions(entries(left, codebook), entries(right, codebook))
  # Two looks at once rather than one after another.
  right, steps = _above_cells(values), _cell(w, codebook)
  left, right = jnp.maximum(right - 1, 0), jnp.minimum(right, last)
  return Regions(
    _scaled(lambda x: _look_up(x[left], steps, _LOWEST), codebook),
    _scaled(lambda x: _look_up(x[right], steps, _LOWEST), codebook),
  )


def _scaled(
  look: Callable[[jax.Array], jax.Array], codebook: Codebook
) -> jax.Array:
  """Returns what `look` finds in the values, times the scale.

  One scale is multiplied into the K values before the look, which is K
  products rather than one for each weight, and the same floats.
  """
  scale = jnp.asarray(codebook.scale)
  values = jnp.asarray(codebook.values).astype(scale.dtype)
  return look(values) * scale if scale.ndim else look(values * scale)


def _above_cells(values_K: jax.Array) -> jax.Array:
  """Returns how many of some int8 values are not above each whole number."""
  cells = jnp.arange(_LOWEST, INT8_MAX + 1)
  return jnp.searchsorted(values_K.astype(jnp.int32), cells, side='right')


def _cell(w: jax.Array, codebook: Codebook) -> jax.Array:
  # v <= x exactly when v <= floor(x), for whole v.
  return jnp.floor(in_steps(w, codebook.scale))


def _exact(codebook: Codebook) -> jax.Array:
  """Returns the centroids in float32, whatever the dtype of the weights."""
  scale = jnp.asarray(codebook.scale).astype(jnp.float32)
  if scale.ndim:
    raise ValueError(
      f'a codebook off the int8 grid has one scale, got {scale.shape} of them'
    )
  return jnp.asarray(codebook.values).astype(jnp.float32) * scale


def in_steps(w: jax.Array, scale: jax.Array) -> jax.Array:
  """Returns weights in units of their scale, alike inside jit and outside.

  Args:
    w: float weights.
    scale: one, or one for each of a channel, broadcastable to `w`.

  Returns:
    float32, the shape of `w`.

  Raises:
    ValueError: if the scales do not broadcast to the weights.
  """
  # In float32 whatever the dtype: 127 steps need more bits than bfloat16 has.
  # The reciprocal is spelled out because XLA takes it or not, as it likes, and
  # a weight near a tie would get one code inside jit and another outside.
  w, scale = jnp.asarray(w), jnp.asarray(scale).astype(jnp.float32)
  if not qtensor.scales_fit(scale.shape, w.shape):
    raise ValueError(
      f'scales of shape {scale.shape} do not broadcast to weights of shape '
      f'{w.shape}'
    )
  # Of the largest scales it would be too small for a float32.
  shift = jnp.where(scale > 1.0, 2.0**-4, 1.0)
  return (w.astype(jnp.float32) * shift) * (1.0 / (scale * shift))


def _search(sorted_M: jax.Array, x: jax.Array, side: str = 'left') -> jax.Array:
  """searchsorted, laid out over devices as `x` is."""
  found = jnp.searchsorted(
    sorted_M, trees.whole(x), side=side, method='scan_unrolled'
  )
  return trees.shard_like(found, x)


def _look_up(table: jax.Array, cell: jax.Array, lowest: int) -> jax.Array:
  """Returns table[cell - lowest], clipped at both ends; NaN reads the first."""
  cell = jnp.clip(cell - lowest, 0, len(table) - 1)
  return qtensor.look_up(table, jnp.where(jnp.isnan(cell), 0, cell))
