"""How many bits each tensor gets: an exact choice under a budget.

One option per tensor is chosen so that the sum of scores is the smallest that
the budget allows. Scores and costs are plain tables,
`{tensor: {bits: number}}`, so any sensitivity and any byte count (that of a
packed file, say) can be given.
"""

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import scipy.optimize
import scipy.sparse

from s8bqat_jax.quantizers import rules as rule_lib

BITS = (*range(1, 9), 16)
Table = Mapping[str, Mapping[int, float]]

# Scores within this relative distance of the best count as equal: what a
# double-precision branch and bound can tell apart, with room to spare.
_TIE = 1e-9


class InfeasibleError(ValueError):
  """No choice of bits fits the budget."""


class Budget(NamedTuple):
  """Limits on the sums of the chosen costs; None is no limit."""

  bytes: float | None = None
  cycles: float | None = None


class Allocation(NamedTuple):
  """One choice of bits for every tensor, and what it sums to."""

  bits: dict[str, int]
  score: float
  bytes: float
  cycles: float | None = None


@dataclasses.dataclass(frozen=True)
class Options:
  """The tables as flat arrays, one entry per (tensor, bits), sorted by both."""

  tensors: tuple[str, ...]
  tensor_N: np.ndarray  # index into tensors
  bits_N: np.ndarray
  score_N: np.ndarray
  bytes_N: np.ndarray
  cycles_N: np.ndarray | None

  def allocation(self, chosen: np.ndarray) -> Allocation:
    """The allocation of `chosen`, one entry index per tensor."""
    return Allocation(
      {self.tensors[self.tensor_N[i]]: int(self.bits_N[i]) for i in chosen},
      float(self.score_N[chosen].sum()),
      float(self.bytes_N[chosen].sum()),
      None if self.cycles_N is None else float(self.cycles_N[chosen].sum()),
    )


def allocate(
  scores: Table,
  sizes: Table,
  budget: float | Budget,
  cycles: Table | None = None,
) -> Allocation:
  """Chooses bits for every tensor: the smallest total score in the budget.

  Exact: an integer program with one binary variable per (tensor, bits). Among
  equal scores the choice has the fewest bytes, then the fewest cycles, then
  gives the alphabetically first tensors fewer bits, so the answer does not
  depend on the order of the tables.

  Args:
    scores: expected harm of each tensor at each width; infinity forbids one.
      A tensor with a single width is pinned to it.
    sizes: packed bytes, the same entries as `scores`.
    budget: bytes in total, or a `Budget` of bytes, cycles, or both.
    cycles: accelerator cycles, the same entries; needed to limit them.

  Returns:
    The best `Allocation`.

  Raises:
    InfeasibleError: when no choice fits the budget.
    ValueError: when the tables do not fit together.

  References:
    The integer program of HAWQ-V3 (Yao et al. 2021) with HAWQ-V2's score; the
    two budgets and the tie-breaking are ours.
  """
  limits = budget if isinstance(budget, Budget) else Budget(bytes=budget)
  options = read_options(scores, sizes, cycles)
  _check_budget(options, limits)
  return options.allocation(_solve(options, limits))


def to_rules(bits: Mapping[str, int]) -> tuple[rule_lib.Rule, ...]:
  """Rules for any quantizer that give each tensor its allocated bits.

  Args:
    bits: `Allocation.bits`.

  Returns:
    One rule per tensor. 16 bits is no quantizer's business and becomes None:
    such a tensor stays as it is, and takes what its `sizes` say only if it is
    cast to 16 bits before the file is written.
  """
  return rule_lib.from_bits(
    {name: None if b == 16 else b for name, b in bits.items()}
  )


def read_options(
  scores: Table, sizes: Table, cycles: Table | None = None
) -> Options:
  """The tables, checked, as flat arrays.

  Args:
    scores: see `allocate`.
    sizes: see `allocate`.
    cycles: see `allocate`.

  Returns:
    The `Options`, in alphabetical order of the tensors.
  """
  if not scores:
    raise ValueError('scores is empty; there is no tensor to give bits to')
  for label, table in (('sizes', sizes), ('cycles', cycles)):
    if table is not None and set(table) != set(scores):
      odd = sorted(set(table) ^ set(scores))
      raise ValueError(
        f'scores and {label} name different tensors: {odd[:4]} are in only '
        'one of them'
      )
  tensors = tuple(sorted(scores))
  rows = []
  for index, name in enumerate(tensors):
    if not scores[name]:
      raise ValueError(f'scores of {name!r} has no widths')
    for bits in sorted(scores[name]):
      if bits not in BITS:
        raise ValueError(
          f'scores of {name!r} has a width of {bits} bits; expected one of '
          f'{BITS}'
        )
      costs = [_cost('sizes', sizes, name, bits)]
      if cycles is not None:
        costs.append(_cost('cycles', cycles, name, bits))
      score = float(scores[name][bits])
      if np.isnan(score) or score == -np.inf:
        raise ValueError(
          f'the score of {name!r} at {bits} bits is {score}; expected a '
          'number, or inf to forbid it'
        )
      if score < np.inf:
        rows.append((index, bits, score, *costs))
    if not rows or rows[-1][0] != index:
      raise ValueError(f'every width of {name!r} is forbidden (score inf)')
  tensor_N, bits_N, score_N, bytes_N, *rest = map(np.array, zip(*rows))
  cycles_N = rest[0] if rest else None
  return Options(tensors, tensor_N, bits_N, score_N, bytes_N, cycles_N)


def _cost(label, table, name, bits):
  value = table[name].get(bits)
  if value is None:
    raise ValueError(f'{label} of {name!r} lacks {bits} bits')
  if not 0 <= value < np.inf:
    raise ValueError(
      f'{label} of {name!r} at {bits} bits is {value}; expected a finite '
      'number, zero or more'
    )
  return float(value)


def _check_budget(options, limits):
  if limits.bytes is None and limits.cycles is None:
    raise ValueError('the budget limits neither bytes nor cycles')
  if limits.cycles is not None and options.cycles_N is None:
    raise ValueError('the budget limits cycles; pass the table `cycles` too')
  for label, limit, cost_N in _resources(options, limits):
    smallest = _per_tensor(np.minimum, options, cost_N).sum()
    if not limit >= smallest:
      raise InfeasibleError(
        f'a budget of {limit:,.0f} {label} is below the smallest possible '
        f'total, {smallest:,.0f}: raise the budget, or offer fewer bits for '
        'some tensors'
      )


def _resources(options, limits):
  """The limited resources as (label, limit, cost per option)."""
  found = []
  if limits.bytes is not None:
    found.append(('bytes', limits.bytes, options.bytes_N))
  if limits.cycles is not None:
    found.append(('cycles', limits.cycles, options.cycles_N))
  return found


def _per_tensor(ufunc, options, value_N):
  starts = np.searchsorted(options.tensor_N, range(len(options.tensors)))
  return ufunc.reduceat(value_N, starts)


def _solve(options, limits):
  """Entry indices of the best choice, ties broken in stages."""
  program = _Program(options, limits)
  for cost_N in (options.score_N, options.bytes_N, options.cycles_N):
    if cost_N is not None:
      # The excess over each tensor's least: zero or more, and a tensor's
      # constant does not hide small differences.
      least_T = _per_tensor(np.minimum, options, cost_N)
      excess_N = cost_N - least_T[options.tensor_N]
      chosen = program.minimize_precisely(excess_N)
      program.keep_at_most(excess_N, excess_N[chosen].sum(), _TIE)
  # Usually the answer is already unique: one more program says so.
  if program.another_than(chosen) is None:
    return chosen
  for index in range(len(options.tensors)):
    bits_N = np.where(options.tensor_N == index, options.bits_N, 0.0)
    chosen = program.minimize(bits_N)
    program.keep_at_most(bits_N, bits_N[chosen].sum(), _TIE)
  return chosen


class _Program:
  """A multiple-choice knapsack to which constraints are added.

  The solver's tolerances are absolute and about 1e-6, so every row is scaled
  to a limit of `_ROW`, and a choice that overruns a limit by exact arithmetic
  is cut off and the program solved again.
  """

  _ROW = 1e4

  def __init__(self, options, limits):
    self._count = len(options.score_N)
    self._starts = np.searchsorted(
      options.tensor_N, range(len(options.tensors) + 1)
    )
    one_each = scipy.sparse.csr_array(
      (np.ones(self._count), (options.tensor_N, np.arange(self._count)))
    )
    self._constraints = [scipy.optimize.LinearConstraint(one_each, 1, 1)]
    self._caps: list[tuple[np.ndarray, float]] = []
    for _, limit, cost_N in _resources(options, limits):
      self.keep_at_most(cost_N, limit, 0.0)

  def keep_at_most(self, cost_N, limit, slack):
    """From now on the chosen costs sum to at most `limit * (1 + slack)`."""
    cap = limit * (1 + slack)
    self._caps.append((cost_N, cap))
    # An option that alone exceeds the limit needs no larger coefficient.
    row_N = self._ROW * np.minimum(cost_N / cap, 2) if cap else cost_N > 0
    self._constraints.append(
      scipy.optimize.LinearConstraint(
        row_N[None], -np.inf, self._ROW if cap else 0
      )
    )

  def minimize_precisely(self, excess_N):
    """Minimizes to a *relative* precision.

    The solver stops at an absolute gap of 1e-6. So the best total found is
    scaled to one million, and options that alone exceed it, which no better
    choice contains, no longer stretch the range of the coefficients.
    """
    chosen = self.minimize(excess_N / max(excess_N.max(), 1e-300))
    while (best := excess_N[chosen].sum()) > 0:
      improved = self.minimize(np.minimum(excess_N / best, 2) * 1e6)
      if not excess_N[improved].sum() < best * (1 - _TIE):
        break
      chosen = improved
    return chosen

  def minimize(self, cost_N):
    """Entry indices, one per tensor, of the smallest total cost."""
    chosen = self._solve(cost_N, self._constraints)
    if chosen is None:
      # Each budget alone can be met (checked before), so it takes two.
      raise InfeasibleError(
        'no choice of bits meets the budgets of bytes and cycles together; '
        'raise one of them'
      )
    return chosen

  def another_than(self, chosen):
    """A feasible choice that differs from `chosen`, or None."""
    constraints = [*self._constraints, self._cut(chosen)]
    return self._solve(np.zeros(self._count), constraints)

  def _cut(self, chosen):
    mark_N = np.zeros(self._count)
    mark_N[chosen] = 1
    return scipy.optimize.LinearConstraint(
      mark_N[None], -np.inf, len(chosen) - 1
    )

  def _solve(self, cost_N, constraints):
    while True:
      result = scipy.optimize.milp(
        cost_N,
        integrality=np.ones(self._count),
        bounds=scipy.optimize.Bounds(0, 1),
        constraints=constraints,
        options={'mip_rel_gap': 0.0},
      )
      if result.status == 2:  # infeasible
        return None
      if result.x is None:
        raise RuntimeError(f'the integer program failed: {result.message}')
      chosen = np.array(
        [
          start + int(np.argmax(result.x[start:stop]))
          for start, stop in zip(self._starts[:-1], self._starts[1:])
        ]
      )
      if all(row_N[chosen].sum() <= cap for row_N, cap in self._caps):
        return chosen
      constraints = [*constraints, self._cut(chosen)]
