"""Lloyd-Max centroids: the k values that represent a tensor best.

Published (Zhen et al. 2022): S8BQAT's centroids come from the converged
float baseline by Lloyd-Max theory, "with practical adaptations". Ours: the
optimum is found by dynamic programming rather than by iteration, and on the
int8 grid the *constrained* problem is solved (which k of the 256 grid values,
for the best of several scales), rather than rounding the free solution.
"""

from __future__ import annotations

import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from s8bqat_jax.quantizers import codebook as codebook_lib
from s8bqat_jax.quantizers import segments, summary
from s8bqat_jax.quantizers import tree as trees

Grid = Literal['int8'] | None

# Grid steps tried, in units of the one whose 127 steps reach the outermost free
# centroid: over a wide range first, then between the best and its neighbours.
# The error is a jagged function of the step where weights come in tight groups.
# Both hold 1: weights that are on a grid keep it, and nothing found is lost.
_SCALES = np.stack(
  [
    np.sort(np.append(np.geomspace(0.25, 1.5, 23), 1.0)),
    np.sort(np.append(np.geomspace(0.922, 1.085, 23), 1.0)),
  ]
)

_GRID = np.arange(codebook_lib.INT8_MIN, codebook_lib.INT8_MAX + 1)
_HALVES = np.arange(2 * _GRID[0], 2 * _GRID[-1] + 2)


def fit(
  w: jax.Array, levels: int, *, grid: Grid = 'int8'
) -> codebook_lib.Codebook:
  """Returns the centroids of least squared error.

  Jitted; can be called under jit and vmap. Under them a tensor that holds a
  NaN or an infinity gets a NaN scale; outside it is an error. A scale is no
  subnormal number: in float16, weights below 0.01 have few grid steps.

  Args:
    w: at least one weight, any shape and floating dtype.
    levels: how many centroids, 2..256.
    grid: 'int8' takes centroids from the int8 grid of one scale per tensor,
      which is chosen too; all `levels` of them differ. None leaves them free;
      with fewer distinct weights than levels some centroids repeat.

  Returns:
    A Codebook: int8 values and a scale, or float values and scale 1, in the
    dtype of `w`.

  References:
    Lloyd, "Least squares quantization in PCM", 1957/1982; Max, "Quantizing
    for minimum distortion", 1960; Zhen et al., arXiv 2206.15408.
  """
  w = jnp.asarray(w)
  trees.check_fit(w, levels)
  if grid not in ('int8', None):
    raise ValueError(f"grid must be 'int8' or None, got {grid!r}")
  # In parts, so that fits share what is compiled: the first is of all tensors
  # of one shape, the line of all, its segments of all with as many levels.
  points, finite = _summarize(w)
  line = _line(points)
  free_K = _segment(line, levels)
  found = _codebook(line, free_K, finite, grid, w.dtype)
  if not isinstance(found.scale, jax.core.Tracer) and np.isnan(found.scale):
    raise ValueError(
      f'weights of shape {w.shape} hold NaN or infinity: no centroids fit'
    )
  return found


def distortion(w: jax.Array, codebook: codebook_lib.Codebook) -> jax.Array:
  """Returns the mean squared error of snapping `w`, a float32 scalar.

  Args:
    w: weights of any shape and floating dtype.
    codebook: a Codebook.

  Returns:
    The mean of (w - snap(w))^2.
  """
  snapped = codebook_lib.snap(w, codebook).astype(jnp.float32)
  return jnp.mean(jnp.square(jnp.asarray(w).astype(jnp.float32) - snapped))


@jax.jit
def _summarize(w: jax.Array) -> tuple[summary.Points, jax.Array]:
  return summary.summarize(w), jnp.all(jnp.isfinite(w))


_line = jax.jit(segments.line)


@functools.partial(jax.jit, static_argnums=1)
def _segment(line: segments.Line, levels: int) -> jax.Array:
  return segments.segment(line, levels)[0]


@functools.partial(jax.jit, static_argnums=(3, 4))
def _codebook(
  line: segments.Line,
  free_K: jax.Array,
  finite: jax.Array,
  grid: Grid,
  dtype: Any,
) -> codebook_lib.Codebook:
  if grid is None:
    values, scale = free_K.astype(dtype), jnp.ones((), dtype)
  else:
    values, scale = _fit_on_grid(line, free_K, dtype)
  return codebook_lib.Codebook(values, jnp.where(finite, scale, jnp.nan))


def _fit_on_grid(
  line: segments.Line, free_K: jax.Array, dtype: Any
) -> tuple[jax.Array, jax.Array]:
  """Returns the best int8 values of the best of the scales tried."""
  # In units of the line, which neither overflow nor vanish.
  extreme = jnp.max(jnp.abs(jnp.ldexp(free_K, -line.exponent)))
  reach = jnp.where(extreme > 0, extreme, 1.0) / codebook_lib.INT8_MAX

  def one(scale):
    cost, values_K = _values_on_grid(line, scale, len(free_K))
    relative = jnp.ldexp(scale, -line.exponent) / reach
    highest = jnp.max(jnp.abs(values_K.astype(jnp.float32))) * scale
    fits = jnp.isfinite(highest.astype(dtype))
    return jnp.where(fits, cost * jnp.square(relative), jnp.inf), values_K

  def search(around, factors):
    factors = around * factors
    # Rounded as the artefact will hold it, before anything is fitted to it.
    scales = jnp.ldexp(reach * factors, line.exponent).astype(dtype)
    scales = jnp.maximum(scales, jnp.finfo(dtype).tiny).astype(jnp.float32)
    costs, values = jax.lax.map(one, scales)
    best = jnp.argmin(costs)
    return factors[best], (values[best], scales[best])

  _, (values, scales) = jax.lax.scan(
    search, jnp.ones(()), jnp.asarray(_SCALES, jnp.float32)
  )
  return values[-1], scales[-1].astype(dtype)


def _values_on_grid(
  line: segments.Line, scale: jax.Array, levels: int
) -> tuple[jax.Array, jax.Array]:
  """Returns the exact optimum on one grid, by a shortest path over its values.

  Every boundary between two grid values is a whole number of half steps, so
  512 half steps give the exact cost of any two neighbours.

  Args:
    line: weighted points.
    scale: the grid's step.
    levels: how many values to choose.

  Returns:
    (mean squared error in squared steps, int8 [levels] ascending).
  """
  grid_G, half_H = _GRID, _HALVES
  scale = jnp.ldexp(scale, -line.exponent)
  # Half step h holds (h - 1) / 2 < x / scale <= h / 2; the ends all beyond.
  cuts = jnp.searchsorted(line.x_M, half_H[:-1] / 2 * scale, side='right')
  ends = jnp.array([0]), cuts, jnp.array([len(line.x_M)])
  share_H, mean_H, within_H = segments.runs(line, jnp.concatenate(ends))
  # Squared error of each half step's weights, were they sent to each value.
  away_HxG = (mean_H / scale)[:, None] - grid_G
  error_HxG = share_H[:, None] * jnp.square(away_HxG)
  error_HxG += (within_H / scale**2)[:, None]
  above = half_H[:, None] > 2 * grid_G
  # From below, and from above.
  ways_HxGx2 = jnp.stack(
    [
      jnp.where(above, error_HxG, 0.0),
      jnp.where(above, 0.0, error_HxG)[::-1],
    ],
    axis=-1,
  )
  sums_HxGx2 = segments.running_sums(ways_HxGx2, 32)[1:]
  up_HxG, down_HxG = sums_HxGx2[..., 0], sums_HxGx2[::-1, :, 1]
  # Between neighbours i < j the half steps up to i + j belong to i.
  split_GxG = grid_G[:, None] + grid_G - half_H[0]
  cost_GxG = jnp.take_along_axis(up_HxG, split_GxG, axis=0).T
  cost_GxG += jnp.take_along_axis(
    down_HxG, jnp.minimum(split_GxG + 1, len(half_H) - 1), axis=0
  )
  upwards = grid_G[:, None] < grid_G
  cost, path = segments.shortest_path(
    start_G=down_HxG[0],
    end_G=up_HxG[-1],
    cost_of=lambda step: jnp.where(upwards, cost_GxG, jnp.inf),
    steps=levels - 1,
  )
  return cost, jnp.asarray(grid_G, jnp.int8)[path]
