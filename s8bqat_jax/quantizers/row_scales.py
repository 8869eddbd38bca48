"""One table per tensor, one scale per row: centroids of uneven embeddings.

The rows of a language model's embedding differ in length by more than the
levels of few bits can span: under one scale the short ones are all rounding
error. Here the int8 centroids are still those of the tensor, and each index of
its first axis multiplies them by a scale of its own.

The fit is ours: Lloyd-Max centroids of the rows at unit length, and those of
the tensor as it is, each followed by turns of nearest centroids, least-squares
scales and least-squares values; the best of all that was met is kept.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from s8bqat_jax.artifacts import qtensor
from s8bqat_jax.quantizers import codebook as books
from s8bqat_jax.quantizers import lloyd_max

_TURNS = 8


def fit(w: jax.Array, levels: int) -> books.Codebook:
  """Returns centroids and row scales of small squared error.

  Jitted; can be called under jit and vmap. The error is no larger than that of
  `lloyd_max.fit`, whose table is one of those tried. Scales are no subnormal
  numbers; of a row of zeros it is the smallest other one, unless zero is in
  the table, so that it ships as zeros or nearly so.

  Args:
    w: at least one weight, two axes or more, any floating dtype. A row is what
      an index of the first axis holds.
    levels: how many centroids, 2..256.

  Returns:
    A Codebook: int8 values, which may repeat, and scales of shape [R, 1, ..]
    in the dtype of `w`; all of them NaN under jit if `w` holds a NaN or an
    infinity.

  Raises:
    ValueError: as `lloyd_max.fit`, and if `w` has no two axes.
  """
  w = jnp.asarray(w)
  if w.ndim < 2:
    raise ValueError(
      f'a scale per row needs a weight of two axes or more, got shape {w.shape}'
      '; weights that share a table have no rows in common'
    )
  whole = lloyd_max.fit(w, levels)
  even, length = _evened(w)
  rows = lloyd_max.fit(even, levels)
  return _best(w, length, whole, rows)


@jax.jit
def improve(w: jax.Array, book: books.Codebook) -> books.Codebook:
  """One turn of alternation: least-squares scales, then values.

  Args:
    w: the weights.
    book: int8 values and row scales to start from.

  Returns:
    The Codebook. Neither step can increase the error, but for rounding values
    to the int8 grid and scales to their dtype.
  """
  x = w.astype(jnp.float32)
  axes = tuple(range(1, w.ndim))
  # In units of each row's largest weight, whose squares exist in float32.
  top = jnp.max(jnp.abs(x), axes, keepdims=True)
  top = jnp.where(top > 0, top, 1.0)
  q = qtensor.look_up(book.values, books.nearest(w, book))
  q = q.astype(jnp.float32)
  dot = jnp.sum(x / top * q, axes, keepdims=True)
  norm = jnp.sum(q * q, axes, keepdims=True)
  scale = top * (jnp.maximum(dot, 0.0) / jnp.where(norm > 0, norm, 1.0))
  scale = jnp.where(norm > 0, scale, book.scale.astype(jnp.float32))
  book = book._replace(scale=_held(scale, book.scale.dtype))
  # Each value is the mean of w / scale over its weights, which count by the
  # square of their scale.
  k = len(book.values)
  codes = books.nearest(w, book).reshape(len(w), -1).astype(jnp.int32)
  scale = book.scale.astype(jnp.float32).reshape(len(w), 1)
  unit = jnp.max(scale)
  share, x = scale / unit, x.reshape(codes.shape) / unit
  sum_of = jax.vmap(lambda c, x: jnp.zeros(k, jnp.float32).at[c].add(x))
  total = jnp.sum(sum_of(codes, share * x), 0)
  count = jnp.sum(sum_of(codes, share * jnp.broadcast_to(share, x.shape)), 0)
  old = book.values.astype(jnp.float32)
  means = jnp.where(count > 0, total / jnp.where(count > 0, count, 1.0), old)
  return books.on_grid(means, jnp.float32(1))._replace(scale=book.scale)


def _held(scale: jax.Array, dtype: Any) -> jax.Array:
  """Returns scales as the artefact will hold them: no zero, no subnormal."""
  return jnp.maximum(scale, jnp.finfo(dtype).tiny).astype(dtype)


@jax.jit
def _evened(w: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Returns rows of root mean square 1, and what it was; zeros stay zeros."""
  x = w.astype(jnp.float32)
  axes = tuple(range(1, w.ndim))
  top = jnp.max(jnp.abs(x), axes, keepdims=True)
  unit = x / jnp.where(top > 0, top, 1.0)
  rms = jnp.sqrt(jnp.mean(unit * unit, axes, keepdims=True))
  return unit / jnp.where(rms > 0, rms, 1.0), top * rms


@jax.jit
def _best(
  w: jax.Array,
  length: jax.Array,
  whole: books.Codebook,
  rows: books.Codebook,
) -> books.Codebook:
  """Alternates from both tables; returns the best book on the way."""
  x = w.astype(jnp.float32)
  top = jnp.max(jnp.abs(x))
  top = jnp.where(top > 0, top, 1.0)

  def error(book):
    off = x / top - books.snap(w, book).astype(jnp.float32) / top
    return jnp.mean(jnp.square(off))

  def turn(_, state):
    book, best, least = state
    book = improve(w, book)
    now = error(book)
    best = jax.tree.map(lambda a, b: jnp.where(now < least, a, b), book, best)
    return book, best, jnp.minimum(now, least)

  def search(values, scale):
    book = books.Codebook(values, _held(scale, w.dtype))
    state = book, book, error(book)
    return jax.lax.fori_loop(0, _TURNS, turn, state)[1:]

  same = jnp.broadcast_to(whole.scale.astype(jnp.float32), length.shape)
  found, errors = jax.lax.map(
    lambda start: search(*start),
    (
      jnp.stack([whole.values, rows.values]),
      jnp.stack([same, length * rows.scale]),
    ),
  )
  return jax.tree.map(lambda x: x[jnp.argmin(errors)], found)
