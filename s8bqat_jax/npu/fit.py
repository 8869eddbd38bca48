"""Fits the constants of ethos.py to what Vela reports."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import optimize

from s8bqat_jax import files
from s8bqat_jax.npu import ethos
from s8bqat_jax.npu.ethos import Ethos, Work
from s8bqat_jax.npu.vela import VelaOp, VelaReport


class Sample(NamedTuple):
  """One operation and what Vela says of it.

  Attributes:
    work: the operation.
    cycles: of all of Vela's operations that it became.
    encoded: bytes of its weights, where it is alone in its program; else 0.
    whole: nothing of it is left to the CPU, which Vela does not cost.
  """

  work: Work
  cycles: float
  encoded: int
  whole: bool = True


def samples(works: Sequence[Work], report: VelaReport) -> list[Sample]:
  """Matches operations with Vela's rows, by the name of the result.

  Vela names a product after what it fused into it (a gelu, a reshape): such a
  row counts for the product. Rows of other names are steps towards the next
  named row of the same operator, or else a part of what was named before.

  Args:
    works: of one program.
    report: of its .tflite, whose inner tensors are called 'result/1' ...

  Returns:
    One Sample per operation; cycles are 0 where Vela fused it into another.
  """
  rows = _by_name(report, {v.name for w in works for v in w.op.outs})
  taken = [[r for v in w.op.outs for r in rows.get(v.name, [])] for w in works]
  for i, work in enumerate(works):
    if work.depth and not taken[i]:
      j = _follower(works, i, taken)
      if j is not None:
        # The rest are operations of their own.
        taken[i], taken[j] = taken[j][:1], taken[j][1:]
  single = sum(w.weights > 0 for w in works) == 1
  found = []
  for work, mine in zip(works, taken):
    cycles = sum(r.cycles for r in mine)
    encoded = report.weight_bytes if work.weights and single else 0
    whole = all(r.on_npu for r in mine)
    found.append(Sample(work, cycles, encoded, whole))
  return found


def _by_name(report: VelaReport, names: set[str]) -> dict[str, list[VelaOp]]:
  """Rows by the name of the result that they belong to."""
  own = [row.name.split('/')[0] for row in report.ops]
  found: dict[str, list[VelaOp]] = {}
  last = ''
  for i, row in enumerate(report.ops):
    name = own[i]
    if name not in names:
      after = next((j for j in range(i, len(own)) if own[j] in names), None)
      same = after is not None and report.ops[after].operator == row.operator
      name = own[after] if after is not None and same else last
    else:
      last = name
    found.setdefault(name, []).append(row)
  return found


def _follower(works, i: int, taken) -> int | None:
  """The first operation after a product, on its result, that has rows."""
  reached = set(works[i].op.outs)
  for j in range(i + 1, len(works)):
    if reached.intersection(works[j].op.ins):
      if taken[j]:
        return None if works[j].macs else j
      reached.update(works[j].op.outs)
  return None


def fit(
  name: str,
  clock_hz: float,
  multipliers: int,
  data: Iterable[Sample],
  known: Mapping[str, list[float]] | None = None,
) -> Ethos:
  """Returns the machine that explains the samples best.

  Relative errors count, so that small operations weigh as much as large ones.
  Elementwise and reducing kinds: non-negative least squares. Products with
  weights: the longest of three linear parts, by alternating between which part
  is the longest and least squares, then all constants together.

  Args:
    name: of the machine.
    clock_hz: cycles per second.
    multipliers: int8 multiply-accumulates per cycle.
    data: the sweep.
    known: constants to keep: only other kinds are fitted.
  """
  data = list(data)
  constants = dict(known or {})
  coded = [s for s in data if s.encoded]
  if 'weight bytes' not in constants:
    constants['weight bytes'] = _rounded(
      _solve(
        np.asarray([s.work.weight_features() for s in coded], np.float64),
        np.asarray([s.encoded for s in coded], np.float64),
      )
    )
  machine = Ethos(name, clock_hz, multipliers, constants)
  for kind in sorted({s.work.kind for s in data}):
    if kind in constants or f'{kind} compute' in constants:
      continue
    mine = [s for s in data if s.work.kind == kind]
    fused = [s.cycles == 0 for s in mine]
    if 0 < sum(fused) < len(mine) / 2 and known:
      # Fused here and there: what they cost where they are not.
      mine = [s for s in mine if s.cycles > 0]
    if mine[0].work.weights:
      # Fused into an operation that has no time of its own: nothing to learn.
      mine = [s for s in mine if s.cycles > 0]
      parts = _longest(
        [
          [s.work.compute_features(multipliers) for s in mine],
          [
            s.work.stream_features(ethos.weight_bytes(s.work, machine))
            for s in mine
          ],
          [s.work.map_features() for s in mine],
        ],
        np.asarray([s.cycles for s in mine]),
      )
      for part, values in zip(('compute', 'weights', 'maps'), parts):
        constants[f'{kind} {part}'] = _rounded(values)
    else:
      features = np.asarray([s.work.plain_features() for s in mine], np.float64)
      cycles = np.asarray([s.cycles for s in mine])
      constants[kind] = _rounded(_solve(features, cycles))
  return machine


# Below this many cycles an absolute error counts, not a relative one.
_SMALL = 50.0
_ALTERNATIONS = 30
# Shares of the memory parts to start from: which part binds is not known.
_STARTS = ((1.0, 0.5), (1.0, 0.9), (0.5, 1.0), (1.0, 0.1))


def _solve(features: np.ndarray, targets: np.ndarray) -> np.ndarray:
  """Non-negative least squares of relative errors."""
  weight = 1 / np.maximum(targets, _SMALL)
  scale = np.maximum(np.abs(features).max(axis=0), 1e-30)
  x, _ = optimize.nnls(features / scale * weight[:, None], targets * weight)
  return x / scale


def _longest(features: Any, cycles: np.ndarray) -> list[np.ndarray]:
  """Constants x of cycles ~ max over parts of features @ x."""
  parts = [np.asarray(f, np.float64) for f in features]
  alone = [_solve(f, cycles) for f in parts]
  found = []
  for shares in _STARTS:
    start = [alone[0], *(x * share for x, share in zip(alone[1:], shares))]
    values = _polished(parts, cycles, _alternated(parts, cycles, start))
    found.append((_error(parts, cycles, values), values))
  return min(found, key=lambda f: f[0])[1]


def _error(parts, cycles: np.ndarray, values) -> float:
  estimate = np.max([f @ x for f, x in zip(parts, values)], axis=0)
  return float(np.mean(np.abs(estimate / cycles - 1)))


def _alternated(parts, cycles: np.ndarray, values) -> list[np.ndarray]:
  values, best = list(values), (_error(parts, cycles, values), list(values))
  for _ in range(_ALTERNATIONS):
    estimates = np.stack([f @ x for f, x in zip(parts, values)])
    longest = estimates.argmax(axis=0)
    for i, f in enumerate(parts):
      # Those it decides, and those it exceeds though it should not.
      mine = (longest == i) | (estimates[i] > 0.98 * cycles)
      if mine.sum() >= 3:
        values[i] = (values[i] + _solve(f[mine], cycles[mine])) / 2
    error = _error(parts, cycles, values)
    if error < best[0]:
      best = error, list(values)
  return best[1]


def _polished(parts, cycles: np.ndarray, values) -> list[np.ndarray]:
  """Least squares of the logarithm; squares keep constants non-negative."""
  peaks = [np.abs(f).max(axis=0) for f in parts]
  # What no sample has costs nothing: its constant can't be known.
  scales = [np.where(p > 0, p, np.inf) for p in peaks]
  floor = 1e-3 * np.median(cycles)
  start = [np.sqrt(np.maximum(x * p, floor)) for x, p in zip(values, peaks)]
  ends = np.cumsum([len(x) for x in start])[:-1]

  def constants(roots):
    return [r**2 / s for r, s in zip(np.split(roots, ends), scales)]

  def residuals(roots):
    estimates = [f @ x for f, x in zip(parts, constants(roots))]
    return np.log(np.max(estimates, axis=0) / cycles)

  result = optimize.least_squares(
    residuals, np.concatenate(start), loss='soft_l1', f_scale=0.05, max_nfev=200
  )
  return constants(result.x)


def _rounded(values: np.ndarray) -> list[float]:
  return [float(f'{v:.6g}') for v in values]


def save(
  path: os.PathLike | str, machines: Mapping[str, Ethos], **about: Any
) -> None:
  """Writes constants, and how they came to be, as JSON."""
  content = {
    **about,
    'machines': {
      name: {
        'clock_hz': m.clock_hz,
        'multipliers': m.multipliers,
        'constants': m.constants,
      }
      for name, m in machines.items()
    },
  }
  files.write_text(path, json.dumps(content, indent=1) + '\n')
