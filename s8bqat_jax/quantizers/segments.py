"""The best K segments of a weighted line: optimal scalar quantization.

An optimal quantizer cuts the sorted weights into K runs and puts each centroid
at its run's mean, so the problem is a shortest path (Bruce 1965; Wu 1991).
The path is exact over 1024 candidate cuts, then refined by exact paths through
windows of ever finer cuts around the last one. Unlike Lloyd's iteration, which
stops at the first local optimum, every pass moves all the cuts at once.

Costs are differences of running sums that share most of their digits, so those
sums are carried in pairs of float32 (Dekker 1971): 48 bits on any device.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from s8bqat_jax.quantizers import summary

_BLOCK = 128  # that running sums are split into; it divides summary.SIZE
_COARSE_CUTS = 1024
_REACH = 12  # a window holds this many cuts on either side
# How far a window reaches into the two runs beside its cut, pass by pass.
_FRACTIONS = (1.0, 0.5, 1.0, 0.5, 0.25, 1.0, 0.5, 0.25, 0.1, 0.04, 0.0, 0.0)

Pair = tuple[jax.Array, jax.Array]  # a value as an unevaluated sum, high + low


class _Sums(NamedTuple):
  """What lies before some cuts."""

  counts: jax.Array  # int32 [...]
  pairs: Pair  # [..., 2]

  def at(self, *index: Any) -> _Sums:
    return jax.tree.map(lambda a: a[index], self)


class Line(NamedTuple):
  """Weighted points and their sums before each of M + 1 cuts.

  Positions are scaled by a power of two, which is exact, to within [-1, 1].
  Sums are of counts, and of x and of x^2 as one array, so that both are looked
  up at once: this code takes longer to compile than to run.
  """

  x_M: jax.Array
  exponent: jax.Array
  sums: _Sums


def line(points: summary.Points) -> Line:
  """Prepares weighted points for `segment` and `runs`.

  Args:
    points: weighted points in ascending order.

  Returns:
    The Line.
  """
  extreme = jnp.max(jnp.abs(points.means_M))
  _, exponent = jnp.frexp(extreme)
  x_M = jnp.ldexp(points.means_M, -exponent)
  first = _times(_pair_of_int(points.counts_M), x_M)
  second = _times(first, x_M)
  both = jax.tree.map(lambda *a: jnp.stack(a, axis=-1), first, second)
  sums = running_sums(both, _BLOCK, _add)
  sums = _Sums(running_sums(points.counts_M, _BLOCK), sums)
  return Line(x_M, exponent, sums)


def running_sums(
  x: Any, block: int, add: Callable[[Any, Any], Any] = operator.add
) -> Any:
  """Sums along the first axis, before each element and after the last.

  On a CPU several times quicker than `jnp.cumsum`, to run and to compile.

  Args:
    x: a tree of arrays [M, ...].
    block: a divisor of M; sums run through blocks side by side.
    add: of two such trees.

  Returns:
    The tree with [M + 1, ...].
  """

  def step(total, x):
    return add(total, x), total

  def zero_like(tree):
    return jax.tree.map(lambda a: jnp.zeros_like(a[0]), tree)

  columns = jax.tree.map(
    lambda a: a.reshape(-1, block, *a.shape[1:]).swapaxes(0, 1), x
  )
  of_blocks, within = jax.lax.scan(step, zero_like(columns), columns)
  total, before = jax.lax.scan(step, zero_like(of_blocks), of_blocks)
  sums = add(before, within)
  return jax.tree.map(
    lambda a, end, like: jnp.concatenate(
      [a.swapaxes(0, 1).reshape(like.shape), end[None]]
    ),
    sums,
    total,
    x,
  )


def segment(points: Line, k: int) -> tuple[jax.Array, jax.Array]:
  """Cuts a weighted line into k runs of least squared error.

  Args:
    points: from `line`.
    k: how many runs.

  Returns:
    centroids_K, the means of the runs in ascending order (a run without
    points repeats its neighbour's), and the cuts, int32 [k + 1].

  References:
    Wu, "Optimal quantization by matrix searching", 1991.
  """
  cuts = _coarse_path(points, _candidates(points), k)
  cuts, _ = jax.lax.scan(
    lambda cuts, fraction: (_refine(points, cuts, fraction), None),
    cuts,
    jnp.asarray(_FRACTIONS, jnp.float32),
  )
  share, means, _ = runs(points, cuts)
  means = jnp.ldexp(means, points.exponent)
  lowest = jnp.min(jnp.where(share > 0, means, jnp.inf))
  return jax.lax.cummax(jnp.where(share > 0, means, lowest)), cuts


def runs(
  points: Line, cuts: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Describes the runs between neighbouring cuts.

  Args:
    points: from `line`.
    cuts: int32 [K + 1], ascending.

  Returns:
    (share_K of all weights, mean_K, squared_error_K about it summed over the
    run and divided by the number of all weights); the latter two in the units
    of `points.x_M`.
  """
  counts, means, costs = _describe(
    points.sums.at(cuts[:-1]), points.sums.at(cuts[1:])
  )
  total = points.sums.counts[-1].astype(jnp.float32)
  return counts / total, means, costs / total


def _candidates(points: Line) -> jax.Array:
  """Returns cuts at the density of optimal centroids, both ends included.

  That density is the cube root of the weights' (Panter and Dite 1951), so a
  block of share p and width d holds p^(1/3) d^(2/3) of them. Blocks are bounded
  by rank and by value: neither alone sees both the bulk and the tails.
  """
  x_M, half = points.x_M, _COARSE_CUTS // 2
  counts = points.sums.counts
  ranks = (jnp.linspace(0.0, 1.0, half) * counts[-1]).astype(jnp.int32)
  blocks = jnp.sort(
    jnp.concatenate(
      [
        jnp.searchsorted(counts, ranks),
        jnp.searchsorted(x_M, jnp.linspace(x_M[0], x_M[-1], half)),
      ]
    )
  )
  share = jnp.diff(counts[blocks]) / counts[-1]
  width = jnp.diff(x_M[jnp.minimum(blocks, len(x_M) - 1)])
  held = jnp.cbrt(share * jnp.square(width))
  held = running_sums(jnp.append(held, 0.0), 32)[:-1]
  even = jnp.linspace(0.0, 1.0, _COARSE_CUTS) * held[-1]
  cuts = jnp.interp(even, held, blocks.astype(jnp.float32))
  cuts = jnp.round(cuts).astype(jnp.int32)
  return cuts.at[0].set(0).at[-1].set(len(x_M))


def _coarse_path(points: Line, cuts_G: jax.Array, k: int) -> jax.Array:
  """Returns the best path over candidate cuts, the same ones for every run."""
  sums_G = points.sums.at(cuts_G)
  every = slice(None)
  _, _, cost_GxG = _describe(sums_G.at(every, None), sums_G.at(None, every))
  at = jnp.arange(len(cuts_G))
  cost_GxG = jnp.where(at[:, None] <= at[None, :], cost_GxG, jnp.inf)
  _, path = shortest_path(
    start_G=jnp.where(at == 0, 0.0, jnp.inf),
    end_G=jnp.where(at == len(cuts_G) - 1, 0.0, jnp.inf),
    cost_of=lambda step: cost_GxG,
    steps=k,
  )
  return cuts_G[path]


def _refine(points: Line, cuts: jax.Array, fraction: jax.Array) -> jax.Array:
  """Returns the best path through windows of cuts around the present ones."""
  k = len(cuts) - 1
  widths = jnp.diff(cuts, prepend=cuts[:1], append=cuts[-1:]) * fraction
  out_T = jnp.arange(1, _REACH + 1, dtype=jnp.int32)
  # Neighbouring cuts at the least, so that the last passes see every point.
  away_KxT = jnp.maximum(
    out_T, (widths[:, None] * out_T / _REACH).astype(jnp.int32)
  )
  cuts_KxT = cuts[:, None] + jnp.concatenate(
    [-away_KxT[:-1, ::-1], jnp.zeros((k + 1, 1), jnp.int32), away_KxT[1:]],
    axis=1,
  )
  cuts_KxT = jnp.clip(cuts_KxT, cuts[0], cuts[-1])
  # The two ends stay where they are.
  cuts_KxT = cuts_KxT.at[jnp.array([0, k])].set(cuts[jnp.array([0, k]), None])
  left, right = cuts_KxT[:-1, :, None], cuts_KxT[1:, None, :]
  _, _, cost_KxTxT = _describe(points.sums.at(left), points.sums.at(right))
  cost_KxTxT = jnp.where(left <= right, cost_KxTxT, jnp.inf)
  _, path = shortest_path(
    start_G=jnp.zeros(cuts_KxT.shape[1]),
    end_G=jnp.zeros(cuts_KxT.shape[1]),
    cost_of=lambda step: cost_KxTxT[step],
    steps=k,
  )
  return jnp.take_along_axis(cuts_KxT, path[:, None], axis=1)[:, 0]


def shortest_path(
  start_G: jax.Array,
  end_G: jax.Array,
  cost_of: Callable[[jax.Array], jax.Array],
  steps: int,
) -> tuple[jax.Array, jax.Array]:
  """Returns the cheapest path of `steps` steps through G states.

  Args:
    start_G: cost of starting in each state.
    end_G: cost of ending in each state.
    cost_of: (step) -> cost_GxG of going from state i to state j.
    steps: how many steps.

  Returns:
    (its cost, its states, int32 [steps + 1]).
  """

  def forward(best_G, step):
    return jnp.min(best_G[:, None] + cost_of(step), axis=0), best_G

  end_cost_G, best_SxG = jax.lax.scan(forward, start_G, jnp.arange(steps))
  end_cost_G = end_cost_G + end_G
  last = jnp.argmin(end_cost_G)

  # Where the path came from is asked along the path only: a minimum
  # vectorizes where an argmin of every state does not.
  def backward(state, step_and_best):
    step, best_G = step_and_best
    return jnp.argmin(best_G + cost_of(step)[:, state]), state

  first, path = jax.lax.scan(
    backward, last, (jnp.arange(steps), best_SxG), reverse=True
  )
  path = jnp.concatenate([first[None], path])
  return end_cost_G[last], path.astype(jnp.int32)


def _describe(
  left: _Sums, right: _Sums
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Describes the points between cuts, the left ones first.

  Args:
    left: of the cuts before.
    right: of the cuts behind; they broadcast.

  Returns:
    (count, mean, squared error about it, which is 0 where there are none).
  """
  count = right.counts - left.counts
  high, low = _minus(right.pairs, left.pairs)
  first, second = ((high[..., i], low[..., i]) for i in (0, 1))
  pair = _pair_of_int(jnp.maximum(count, 1))
  mean = first[0] / pair[0]
  rest = _minus(first, _times(pair, mean))
  mean = mean + rest[0] / pair[0]
  # second - 2 mean first + mean^2 count
  product = _minus(_times(pair, mean), _add(first, first))
  high, low = _add(second, _times(product, mean))
  error = jnp.maximum(high + low, 0.0)
  return count, mean, jnp.where(count > 0, error, 0.0)


def _pair_of_int(n: jax.Array) -> Pair:
  low = n & 0xFFF
  return _add_exactly((n - low).astype(jnp.float32), low.astype(jnp.float32))


def _add_exactly(a: jax.Array, b: jax.Array) -> Pair:
  """a + b without error (Knuth's two-sum)."""
  total = a + b
  b_part = total - a
  return total, (a - (total - b_part)) + (b - b_part)


def _add(a: Pair, b: Pair) -> Pair:
  high, low = _add_exactly(a[0], b[0])
  return _add_exactly(high, low + (a[1] + b[1]))


def _minus(a: Pair, b: Pair) -> Pair:
  return _add(a, (-b[0], -b[1]))


def _times(a: Pair, b: jax.Array) -> Pair:
  """a * b for one float32 b; products of 12-bit halves are exact."""
  product = a[0] * b
  a_high, a_low = _halves(a[0])
  b_high, b_low = _halves(b)
  error = (a_high * b_high - product) + a_high * b_low + a_low * b_high
  return _add_exactly(product, (error + a_low * b_low) + a[1] * b)


def _halves(x: jax.Array) -> Pair:
  bits = jax.lax.bitcast_convert_type(x, jnp.uint32) & jnp.uint32(0xFFFFF000)
  high = jax.lax.bitcast_convert_type(bits, jnp.float32)
  return high, x - high
