"""Tables that ADMM projects onto: levels and a scale, shared by some weights.

Projection is by alternating minimization: with the codes fixed the scale (or
each centroid) is a least-squares problem with a closed form, with those fixed
every weight takes its nearest entry. Neither turn can increase the error, but
for rounding centroids to the int8 grid, which may cost up to half a step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from s8bqat_jax.artifacts import qtensor
from s8bqat_jax.quantizers import codebook as books
from s8bqat_jax.quantizers import row_scales, uniform
from s8bqat_jax.quantizers.lloyd_max import distortion
from s8bqat_jax.quantizers.lloyd_max import fit as fit_lloyd_max

_CANDIDATES = 96
_TURNS = 4  # of alternation
_LANES = 256  # partial sums: a single one of many weights loses its digits


Fit = Callable[[jax.Array, int], books.Codebook]


class Table(NamedTuple):
  """A kind of table.

  Attributes:
    fit: (weights, levels) -> Codebook, from nothing.
    improve: (weights, Codebook) -> Codebook by a few alternations.
    ship: (w, Codebook) -> QTensor.
  """

  fit: Callable[[Sequence[jax.Array], int], books.Codebook]
  improve: Callable[[Sequence[jax.Array], books.Codebook], books.Codebook]
  ship: Callable[[jax.Array, books.Codebook], qtensor.QTensor]


def table(kind: str, fit: Fit | None = None) -> Table:
  """Returns a kind of table by name.

  Args:
    kind: 'uniform', 'powers_of_two' or 'lloyd_max'.
    fit: (w, levels) -> Codebook on the int8 grid, where 'lloyd_max' starts;
      None is `lloyd_max.fit`. It gets the weight as it is, or all weights of a
      group in one row.

  Returns:
    The Table.

  Raises:
    ValueError: if there is no such table, or `fit` is not for it.
  """
  if fit is not None and kind != 'lloyd_max':
    raise ValueError(f"fit is for the table 'lloyd_max', not for {kind!r}")
  if kind == 'uniform':
    return Table(_on_grid, improve_scale, _ship_uniform)
  if kind == 'powers_of_two':
    return Table(_on_powers, improve_scale, books.quantize)
  if kind == 'lloyd_max':
    return Table(_jointly(fit), improve_centroids, books.quantize)
  raise ValueError(
    f"table must be 'uniform', 'powers_of_two' or 'lloyd_max', got {kind!r}"
  )


def power_levels(levels: int) -> list[int]:
  """Returns 0, +-1, +-2, +-4, ...; if even, one more power below than above.

  Args:
    levels: 2..16 (2 gives -1, 1).

  Returns:
    Sorted levels that fit int8.
  """
  if levels == 2:
    return [-1, 1]
  below, above = levels // 2, (levels - 1) // 2
  if levels > 16:
    raise ValueError(
      f'powers of two fit int8 up to 16 levels (4 bits), got {levels} levels'
    )
  low = [-(2**i) for i in reversed(range(below))]
  return [*low, 0, *(2**i for i in range(above))]


@jax.jit
def improve_scale(
  weights: Sequence[jax.Array], book: books.Codebook
) -> books.Codebook:
  """Alternates scale = <w, q> / <q, q> and q = nearest levels of w / scale.

  Args:
    weights: the tensors that share the table.
    book: levels and the scale to start from.

  Returns:
    The Codebook with a scale that is no worse.
  """

  def turn(_, scale):
    dot = norm = jnp.zeros((), jnp.float32)
    for w in weights:
      codes = books.nearest(w, books.Codebook(book.values, scale))
      q = qtensor.look_up(book.values, codes).astype(jnp.float32)
      dot += jnp.sum(w.astype(jnp.float32) * q)
      norm += jnp.sum(q * q)
    better = (dot > 0) & (norm > 0)
    new = jnp.where(better, dot / jnp.where(better, norm, 1.0), scale)
    return jnp.maximum(new, jnp.finfo(scale.dtype).tiny).astype(scale.dtype)

  scale = jax.lax.fori_loop(0, _TURNS, turn, jnp.asarray(book.scale))
  return books.Codebook(book.values, scale)


@jax.jit
def improve_centroids(
  weights: Sequence[jax.Array], book: books.Codebook
) -> books.Codebook:
  """One turn of Lloyd's iteration on the int8 grid.

  Args:
    weights: the tensors that share the table.
    book: the centroids to start from.

  Returns:
    The Codebook whose centroids are the means of the weights nearest to the
    old ones, rounded to the grid. The grid's step grows if they leave it; the
    scales of a table of row scales follow their rows.
  """
  if jnp.ndim(book.scale):
    (w,) = weights
    return row_scales.improve(w, book)
  k = len(book.values)
  totals = jnp.zeros(k * _LANES, jnp.float32)
  count = jnp.zeros(k, jnp.int32)
  for w in weights:
    codes = books.nearest(w, book).ravel().astype(jnp.int32)
    lanes = jnp.arange(w.size, dtype=jnp.int32) % _LANES
    at = codes * _LANES + lanes
    totals = totals.at[at].add(w.astype(jnp.float32).ravel())
    count = count.at[codes].add(1)
  total = jnp.sum(totals.reshape(k, _LANES), axis=1)
  old = books.centroids(book).astype(jnp.float32)
  means = jnp.where(count > 0, total / jnp.maximum(count, 1), old)
  ends = means.max() / books.INT8_MAX, means.min() / books.INT8_MIN
  needed = jnp.maximum(*ends)
  scale = jnp.maximum(book.scale, needed.astype(book.scale.dtype))
  return books.on_grid(means, scale)


def _jointly(own: Fit | None):
  def fit(weights: Sequence[jax.Array], levels: int) -> books.Codebook:
    if own is None:
      return fit_lloyd_max(_joined(weights), levels)
    return own(weights[0] if len(weights) == 1 else _joined(weights), levels)

  return fit


def _on_grid(weights: Sequence[jax.Array], levels: int) -> books.Codebook:
  return uniform.book(_joined(weights), levels)


def _on_powers(weights: Sequence[jax.Array], levels: int) -> books.Codebook:
  values_K = jnp.array(power_levels(levels), jnp.int8)
  return _fit_scale(_joined(weights), values_K)


@jax.jit
def _fit_scale(w: jax.Array, values_K: jax.Array) -> books.Codebook:
  """Tries scales all along the range, then alternates from the best."""
  widest = jnp.max(jnp.abs(w)).astype(jnp.float32)
  widest = jnp.where(widest > 0, widest, 1.0)
  # Down to where the largest level is a fiftieth of the largest weight.
  finest = 0.02 / jnp.max(jnp.abs(values_K.astype(jnp.float32)))
  scales = widest * jnp.geomspace(finest, 1.0, _CANDIDATES)
  scales = jnp.maximum(scales, jnp.finfo(w.dtype).tiny).astype(w.dtype)
  errors = jax.lax.map(
    lambda s: distortion(w, books.Codebook(values_K, s)), scales
  )
  best = books.Codebook(values_K, scales[jnp.argmin(errors)])
  return improve_scale([w], best)


def _joined(weights: Sequence[jax.Array]) -> jax.Array:
  return jnp.concatenate([w.ravel() for w in weights])


def _ship_uniform(w: jax.Array, book: books.Codebook) -> qtensor.QTensor:
  if len(book.values) == 2:
    return books.quantize(w, book)
  codes = qtensor.look_up(book.values, books.nearest(w, book))
  return qtensor.QTensor(codes, book.scale, None, len(book.values))
