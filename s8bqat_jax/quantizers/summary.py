"""A tensor of any size as at most 65,536 weighted points on a line.

One-dimensional quantizers need only the distribution of the weights. Up to
65,536 of them the points are the sorted weights themselves. Beyond, sorting is
what takes the time (80 times longer than a histogram on a CPU), so two passes
of counting place bins where the weights are, and each bin stands at the mean
of its weights.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from s8bqat_jax.quantizers import tree as trees

SIZE = 1 << 16


class Points(NamedTuple):
  """Weighted points in ascending order.

  Attributes:
    means_M: float32, the positions.
    counts_M: int32, how many weights each stands for; 0 is padding.
  """

  means_M: Any
  counts_M: Any


def summarize(w: jax.Array) -> Points:
  """Returns the weighted points of a tensor.

  Args:
    w: at least one finite weight, any shape and floating dtype.

  Returns:
    Points of fixed length SIZE, so that what follows compiles once.
  """
  x_N = jnp.ravel(trees.whole(w)).astype(jnp.float32)
  n = x_N.size
  if n > SIZE:
    return _histogram(x_N)
  x_N = jnp.sort(x_N)
  # Equal weights are one point.
  index_N = jnp.cumsum(jnp.diff(x_N, prepend=x_N[:1]) > 0)
  means = jnp.full(SIZE, x_N[-1]).at[index_N].set(x_N)
  return Points(means, jnp.zeros(SIZE, jnp.int32).at[index_N].add(1))


def _histogram(x_N: jax.Array) -> Points:
  """Returns SIZE bins, narrow where weights are dense.

  The first pass counts in SIZE / 2 equal bins between the extremes. The second
  divides every bin that holds weights; the other SIZE / 2 bins are shared out
  by the cube root of the counts, the density of optimal centroids (Panter and
  Dite 1951), so that outliers cost the bulk no resolution.
  """
  # Scaled by a power of two, which is exact, so that no range overflows.
  _, exponent = jnp.frexp(jnp.max(jnp.abs(x_N)))
  x_N = jnp.ldexp(x_N, -exponent)
  even = SIZE // 2
  low, high = jnp.min(x_N), jnp.max(x_N)
  width = (high - low) / even
  per_unit = jnp.where(high > low, even / (high - low), 0.0)
  bin_N = jnp.clip(((x_N - low) * per_unit).astype(jnp.int32), 0, even - 1)
  counts = jnp.zeros(even, jnp.int32).at[bin_N].add(1)

  density = jnp.cbrt(counts.astype(jnp.float32))
  share = jnp.floor((SIZE - even) * (density / jnp.sum(density)))
  # Rounding in the sum of shares must not push the last bins out.
  share = jnp.maximum(share.astype(jnp.int32) - 1, 0)
  parts = jnp.where(counts > 0, 1 + share, 0)
  start = jnp.cumsum(parts) - parts

  offset_N = x_N - (low + bin_N * width)
  parts_N = parts[bin_N]
  part_N = jnp.clip((offset_N * per_unit * parts_N).astype(jnp.int32), 0)
  index_N = start[bin_N] + jnp.minimum(part_N, parts_N - 1)
  counts = jnp.zeros(SIZE, jnp.int32).at[index_N].add(1)
  # Sums of offsets lose less than sums of weights.
  sums = jnp.zeros(SIZE, jnp.float32).at[index_N].add(offset_N)
  first = jnp.repeat(
    low + jnp.arange(even) * width, parts, total_repeat_length=SIZE
  )
  means = first + sums / jnp.maximum(counts, 1)
  means = jax.lax.cummax(jnp.where(counts > 0, means, low))
  return Points(jnp.ldexp(jnp.minimum(means, high), exponent), counts)
