"""Fits the Ethos-U cost model to Vela, and judges it on what it has not seen.

  python -m benchmarks.cost_model          judge: experiments/results/
  python -m benchmarks.cost_model --fit    first fit s8bqat_jax/npu/ethos.json
  python -m benchmarks.cost_model --extend first fit the kinds of operation that
                                           it lacks; its constants stay

Machines: Ethos-U55-128, U65-512 and U85-512, as Vela costs them by default.
Weights: Gaussian, rounded to 8 bits or to 2^n Lloyd-Max centroids on the int8
grid. Fitted on single products and other operations of a grid of shapes, on
networks of a few widths; judged on other shapes, other widths and other
networks, 5 bits among them, and on the step functions of the published
recognizer. An operation's error is |estimate / Vela - 1|, a model's likewise of
the sum; operations that Vela fuses into others (0 cycles) count in the sums
only, those that it leaves to the CPU nowhere. Needs the export extra.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import matplotlib
import numpy as np
from absl import app, flags

from benchmarks import vela_cases
from benchmarks.vela_cases import Case
from experiments import plots, results
from s8bqat_jax.export import tflite
from s8bqat_jax.npu import ethos, fit, vela

matplotlib.use('Agg')
from matplotlib import pyplot  # noqa: E402

_FIT = flags.DEFINE_bool('fit', False, 'Fit and write the constants first.')
_EXTEND = flags.DEFINE_bool('extend', False, 'Fit missing kinds only.')

CLOCKS = {'ethos-u55-128': 5e8, 'ethos-u65-512': 1e9, 'ethos-u85-512': 1e9}
MULTIPLIERS = {'ethos-u55-128': 128, 'ethos-u65-512': 512, 'ethos-u85-512': 512}


def study(case: Case, failed: list[str]) -> dict[str, list[fit.Sample]]:
  """A case's operations with what Vela says of them, per machine."""
  fn = case.make()
  data, works, found = tflite.export(fn).data, ethos.works(fn), {}
  for target in MULTIPLIERS:
    try:
      report = vela.report(data, target)
    except ValueError as e:
      failed.append(f'{case.group} {case.name}, {case.bits} bits: {e}')
    else:
      found[target] = fit.samples(works, report)
  return found


def _learn(
  cases: Iterable[Case],
  known: dict[str, dict[str, list[float]]],
  failed: list[str],
) -> None:
  """Fits what is not known, and writes all."""
  learned: dict[str, list[fit.Sample]] = {t: [] for t in MULTIPLIERS}
  for case in cases:
    for target, found in study(case, failed).items():
      learned[target] += [s for s in found if s.whole or not known[target]]
  fit.save(
    ethos.CONSTANTS,
    {
      t: fit.fit(t, CLOCKS[t], MULTIPLIERS[t], learned[t], known[t])
      for t in MULTIPLIERS
    },
    made_by='python -m benchmarks.cost_model --fit',
  )
  ethos.machines.cache_clear()


def main(_) -> None:
  results.revision()
  failed: list[str] = []
  if _FIT.value:
    _learn(vela_cases.fitted(), {t: {} for t in MULTIPLIERS}, failed)
  if _FIT.value or _EXTEND.value:
    known = {name: m.constants for name, m in ethos.machines().items()}
    _learn(vela_cases.fitted_later(), known, failed)
  rows: list[dict[str, Any]] = []
  ops: dict[tuple[str, str], list[float]] = {}
  for case in vela_cases.unseen():
    for target, samples in study(case, failed).items():
      machine = ethos.machines()[target]
      found = [s for s in samples if s.whole]
      if not any(s.cycles for s in found):
        continue
      ours = [ethos.cost(s.work, machine).cycles for s in found]
      theirs = [s.cycles for s in found]
      for estimate, s in zip(ours, found):
        if s.cycles:
          error = abs(estimate / s.cycles - 1)
          ops.setdefault((target, s.work.kind), []).append(error)
      metrics = {
        'cycles': sum(ours),
        'vela_cycles': sum(theirs),
        'error': sum(ours) / sum(theirs) - 1,
      }
      rows.append(
        {
          'system': target,
          'method': case.group,
          'case': case.name,
          'bits': case.bits,
          'metrics': metrics,
        }  # fmt: skip
      )
  comparisons: list[dict[str, Any]] = [
    {
      'a': 'estimate',
      'b': 'vela',
      'metric': 'mean absolute error',
      'system': target,
      'method': what,
      'level': level,
      'relative': mean,
      'largest': largest,
      'count': count,
    }  # fmt: skip
    for level, errors in (
      ('model', _grouped(rows, lambda row: row['method'])),
      ('operation', ops),
      ('machine', _grouped(rows, _of_machine)),
    )
    for (target, what), (mean, largest, count) in _means(errors).items()
  ]
  for c in comparisons:
    print(
      f'{c["system"]:14} {c["level"]:9} {c["method"]:26} '
      f'{100 * c["relative"]:6.1f}% (largest {100 * c["largest"]:.0f}%, '
      f'{c["count"]} cases)'
    )
  print('\n'.join(failed))
  path = results.write(
    'cost_model',
    rows,
    comparisons=[*comparisons, *_side_by_side(ops)],
    not_run=failed,
  )
  _plot(comparisons, path.with_suffix('.png'))


def _grouped(rows, kind) -> dict[tuple[str, str], list[float]]:
  """Absolute errors of each system by the kind of row."""
  errors: dict[tuple[str, str], list[float]] = {}
  for row in rows:
    error = abs(row['metrics']['error'])
    errors.setdefault((row['system'], kind(row)), []).append(error)
  return errors


def _of_machine(row) -> str:
  """Networks, the published model among them; layers, operations alone."""
  if row['method'] in vela_cases.OPERATIONS:
    return 'operations'
  return 'layers' if row['method'] in vela_cases.LAYERS else 'networks'


def _means(errors) -> dict[tuple[str, str], tuple[float, float, int]]:
  return {
    key: (float(np.mean(e)), float(np.max(e)), len(e))
    for key, e in sorted(errors.items())
  }


def _side_by_side(ops) -> list[dict[str, Any]]:
  """One comparison per kind of operation: its mean and largest errors."""
  found = []
  for kind in sorted({kind for _, kind in ops}):
    line: dict[str, Any] = {'a': 'estimate', 'b': 'vela', 'method': kind}
    line |= {'metric': 'mean absolute error', 'level': 'kind'}
    for target in MULTIPLIERS:
      if errors := ops.get((target, kind)):
        machine = target.split('-')[1]
        line[machine] = float(np.mean(errors))
        line[f'{machine} largest'] = float(np.max(errors))
    found.append(line)
  return found


_TICKS = (0, 5, 10, 30, 100, 300)


def _plot(comparisons, path) -> None:
  """Mean errors as bars, the largest as marks: models, then operations."""
  figure, axes = pyplot.subplots(2, 1, figsize=(15, 11), layout='constrained')
  for axis, level in zip(axes, ('model', 'operation')):
    mine = [c for c in comparisons if c['level'] == level]
    names = sorted({c['method'] for c in mine})
    for i, target in enumerate(MULTIPLIERS):
      found = [c for c in mine if c['system'] == target]
      places = [names.index(c['method']) + 0.27 * (i - 1) for c in found]
      means = [100 * c['relative'] for c in found]
      axis.bar(places, means, 0.25, label=f'{target}, mean')
      largest = [100 * c['largest'] for c in found]
      label = 'largest' if i == len(MULTIPLIERS) - 1 else None
      axis.plot(places, largest, 'k_', markersize=7, label=label)
    axis.axhline(10, color='gray', linewidth=0.8, linestyle=':')
    small = {'rotation': 90, 'fontsize': 7} if len(names) > 20 else {}
    axis.set_xticks(
      range(len(names)), names, **{'rotation': 30, 'ha': 'right', **small}
    )
    axis.set_ylabel('relative error of cycles, %')
    axis.set_title(f'|estimate / Vela - 1| per {level}, cases not fitted')
    # Linear up to 10%, which is where it begins to matter by how much.
    axis.set_yscale('symlog', linthresh=10)
    axis.set_yticks(_TICKS, [str(t) for t in _TICKS])
    axis.set_ylim(0, 150 * max(c['largest'] for c in mine))
  axes[0].legend(fontsize=9)
  plots.save(figure, path)


if __name__ == '__main__':
  app.run(main)
