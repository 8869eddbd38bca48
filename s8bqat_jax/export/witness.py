"""Whether a runtime computes what our integer program computes.

Every operation is judged by itself: it is evaluated on the very codes that the
runtime fed to it, so that an earlier difference is not counted twice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from s8bqat_jax.export.program import Program, Value


class Agreement(NamedTuple):
  """How two tensors of codes compare.

  Attributes:
    identical: share of equal codes; 1 if there are none.
    largest: largest difference, in units of the last place.
    codes: how many.
  """

  identical: float
  largest: int
  codes: int


class Row(NamedTuple):
  """One operation."""

  op: str
  site: str
  dtype: str
  agreement: Agreement


def compare(ours: Any, theirs: Any) -> Agreement:
  """Compares codes.

  Args:
    ours: integers.
    theirs: integers of the same shape.

  Raises:
    ValueError: the shapes differ.
  """
  a, b = (np.asarray(x).astype(np.int64) for x in (ours, theirs))
  if a.shape != b.shape:
    raise ValueError(f'codes of shapes {a.shape} and {b.shape} do not compare')
  if not a.size:
    return Agreement(1.0, 0, 0)
  return Agreement(float(np.mean(a == b)), int(np.abs(a - b).max()), a.size)


def per_op(
  program: Program, theirs: Callable[[Value], np.ndarray]
) -> list[Row]:
  """Judges every integer primitive of a program that a runtime has run.

  Args:
    program: what was exported.
    theirs: a value's codes in the runtime.

  Returns:
    One Row per result of an integer primitive, in order.
  """
  rows = []
  for op in program.ops:
    if not op.name.startswith('q_'):
      continue
    codes = [v.const if v.const is not None else theirs(v) for v in op.ins]
    for v, ours in zip(op.outs, op.evaluate(*codes)):
      agreement = compare(ours, theirs(v))
      rows.append(Row(op.name, op.site, v.dtype.name, agreement))
  return rows


def summary(rows: Sequence[Row]) -> dict[str, Agreement]:
  """Returns one Agreement per kind of operation, 'q_dot int8' and so on."""
  kinds: dict[str, list[Agreement]] = {}
  for row in rows:
    kinds.setdefault(f'{row.op} {row.dtype}', []).append(row.agreement)
  return {kind: pooled(kinds[kind]) for kind in sorted(kinds)}


def pooled(agreements: Sequence[Agreement]) -> Agreement:
  """Returns the Agreement of all codes together."""
  count = sum(a.codes for a in agreements)
  same = sum(a.identical * a.codes for a in agreements)
  largest = max((a.largest for a in agreements), default=0)
  return Agreement(same / count if count else 1.0, largest, count)
