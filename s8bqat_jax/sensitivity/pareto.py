"""Every best allocation at once: score against bytes (or cycles)."""

import dataclasses

import numpy as np

from s8bqat_jax.sensitivity import allocation as allocation_lib

Allocation = allocation_lib.Allocation
Table = allocation_lib.Table


@dataclasses.dataclass(frozen=True)
class ParetoFront:
  """All allocations that no other beats in both score and cost.

  Has the length of a sequence of `Allocation`, and its items one at a time,
  from the cheapest to the best. The arrays are for plotting; an allocation is
  put together when asked for.
  """

  score_P: np.ndarray  # strictly falling
  cost_P: np.ndarray  # strictly rising
  _options: allocation_lib.Options
  _stages: tuple[tuple[np.ndarray, np.ndarray], ...]  # (entry, parent) [P_t]

  def __len__(self) -> int:
    return len(self.cost_P)

  def __getitem__(self, index: int) -> Allocation:
    point = range(len(self))[index]
    chosen = []
    for entry_P, parent_P in reversed(self._stages):
      chosen.append(entry_P[point])
      point = parent_P[point]
    return self._options.allocation(np.array(chosen[::-1]))

  def within(self, budget: float) -> Allocation:
    """The best allocation that costs at most `budget`.

    Args:
      budget: in the unit of the front's costs.

    Returns:
      That allocation.

    Raises:
      InfeasibleError: if none costs so little.
    """
    index = int(np.searchsorted(self.cost_P, budget, side='right')) - 1
    if index < 0:
      raise allocation_lib.InfeasibleError(
        f'a budget of {budget:,.0f} is below the smallest possible total, '
        f'{self.cost_P[0]:,.0f}'
      )
    return self[index]


def pareto_front(
  scores: Table,
  sizes: Table,
  cycles: Table | None = None,
  *,
  against: str = 'bytes',
  max_points: int = 1_000_000,
) -> ParetoFront:
  """The exact front of total score against total bytes, or cycles.

  Tensors are added one by one, keeping only the undominated partial choices.
  Their number is bounded by the distinct totals of the cost, a few thousand
  for a network of repeated shapes.

  Args:
    scores: see `allocate`.
    sizes: see `allocate`.
    cycles: see `allocate`; needed for `against='cycles'`.
    against: `'bytes'` or `'cycles'`.
    max_points: refuse to hold a larger front.

  Returns:
    The `ParetoFront`.

  References:
    Nemhauser and Ullmann 1969.
  """
  options = allocation_lib.read_options(scores, sizes, cycles)
  costs = {'bytes': options.bytes_N, 'cycles': options.cycles_N}
  option_cost_N = costs.get(against)
  if option_cost_N is None:
    raise ValueError(
      f'against={against!r}: expected bytes, or cycles with the table given'
    )
  score_P, cost_P = np.zeros(1), np.zeros(1)
  stages = []
  for tensor in range(len(options.tensors)):
    entry_C = np.flatnonzero(options.tensor_N == tensor)
    # All pairs of a partial choice and an option of this tensor: [P, C].
    score_PC = (score_P[:, None] + options.score_N[entry_C]).ravel()
    cost_PC = (cost_P[:, None] + option_cost_N[entry_C]).ravel()
    order = np.lexsort((score_PC, cost_PC))
    best_before = np.minimum.accumulate(score_PC[order])
    keep = np.ones(len(order), bool)
    keep[1:] = score_PC[order][1:] < best_before[:-1]
    kept = order[keep]
    if len(kept) > max_points:
      raise ValueError(
        f'the front has {len(kept):,} partial choices after '
        f'{tensor + 1} of {len(options.tensors)} tensors, more than '
        f'max_points={max_points:,}; call allocate() per budget instead, or '
        'round the sizes'
      )
    stages.append((entry_C[kept % len(entry_C)], kept // len(entry_C)))
    score_P, cost_P = score_PC[kept], cost_PC[kept]
  return ParetoFront(score_P, cost_P, options, tuple(stages))
