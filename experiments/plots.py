"""The pictures of an S8BQAT matrix."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib

matplotlib.use('Agg')
import jax  # noqa: E402
import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402

from experiments import cells  # noqa: E402
from experiments import recognizer as recognizer_lib  # noqa: E402
from experiments.stages import Stages  # noqa: E402
from s8bqat_jax import quantizers, training  # noqa: E402
from s8bqat_jax.artifacts import packed_file, qtensor  # noqa: E402
from s8bqat_jax.quantizers import tree as trees  # noqa: E402

_MARKERS = 'os^vDP*X<>hpd'


def error_against_bytes(
  rows: Sequence[Mapping[str, Any]], path: pathlib.Path
) -> None:
  """Draws WER with its interval against file bytes, a line per method.

  Args:
    rows: of `matrix.rows`.
    path: of the picture.
  """
  pooled = {(r['cell'], r['seed']): r for r in rows}
  shown = [
    r for r in rows if r['seed'] == 'all' or (r['cell'], 'all') not in pooled
  ]
  lines: dict[tuple[str, str], list[Any]] = {}
  for row in shown:
    lines.setdefault((row['size'], row['method']), []).append(row)
  several = len({size for size, _ in lines}) > 1
  figure, axes = plt.subplots(figsize=(8, 5), layout='constrained')
  for i, ((size, method), of_line) in enumerate(lines.items()):
    of_line.sort(key=lambda row: row['metrics']['bytes'])
    x = [row['metrics']['bytes'] / 1000 for row in of_line]
    y = np.array([row['metrics']['wer'] for row in of_line])
    ends = np.array([row['metrics']['ci95'] for row in of_line]).T
    axes.errorbar(
      x,
      y,
      # The estimate may lie a hair outside a bootstrap interval.
      np.maximum([y - ends[0], ends[1] - y], 0),
      marker=_MARKERS[i % len(_MARKERS)],
      color=plt.get_cmap('tab20')(i % 20),
      capsize=3,
      lw=1,
      label=f'{size} {method}' if several else method,
    )
    for row, at, wer in zip(of_line, x, y):
      axes.annotate(
        str(row['bits']), (at, wer), (3, 3), textcoords='offset points',
        fontsize=7,
      )  # fmt: skip
  axes.set(xscale='log', xlabel='bytes of the file, kB', ylabel='WER, %')
  highest = max(row['metrics']['wer'] for row in shown)
  lowest = min(row['metrics']['wer'] for row in shown)
  if highest > 5 * max(lowest, 0.1):
    axes.set(yscale='log')
  axes.legend(fontsize=8)
  _save(figure, path)


def distances(
  stages: Stages, found: Mapping[cells.Job, Any], path: pathlib.Path
) -> None:
  """Draws each method's distance between weights and their codes over time.

  Args:
    stages: where the metrics of training are.
    found: the jobs to show; of each cell the first.
    path: of the picture; none is drawn if no job was trained.
  """
  first: dict[cells.Cell, cells.Job] = {}
  for job in found:
    first.setdefault(job.cell, job)
  figure, axes = plt.subplots(figsize=(8, 5), layout='constrained')
  for i, (cell, job) in enumerate(first.items()):
    records = training.read_metrics(stages.train_folder(job) / 'metrics.jsonl')
    curve = [
      (r['step'], r['quantizer/distance'])
      for r in records
      if r.get('quantizer/distance', 0) > 0
    ]
    if curve:
      color = plt.get_cmap('tab20')(i % 20)
      label = f'{cell.size} {cell.label}, {cell.bits} bits'
      axes.plot(*zip(*curve), color=color, label=label)
  if axes.lines:
    axes.set(xlabel='step', ylabel='|w - what ships| / |w|', yscale='log')
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=110)
  plt.close(figure)


def histograms(
  stages: Stages, found: Mapping[cells.Job, Any], path: pathlib.Path
) -> None:
  """Draws the weights before and after S8BQAT, with the centroids.

  Args:
    stages: where the model files are.
    found: the jobs; of each bit width the first S8BQAT one is shown, in its
      largest tensor.
    path: of the picture; none is drawn without such a job.
  """
  shown: dict[int, cells.Job] = {}
  for job in found:
    if job.cell.method == 's8bqat':
      shown.setdefault(job.cell.bits, job)
  if not shown:
    return
  figure, grid = plt.subplots(
    len(shown),
    2,
    figsize=(9, 2.6 * len(shown)),
    squeeze=False,
    sharex='row',
    layout='constrained',
  )
  for (before, after), job in zip(grid, shown.values()):
    _, params, _ = recognizer_lib.load(stages.float_model(job))
    packed = packed_file.load(stages.train(job)['file'])
    encoded = trees.quantized(packed.tree)
    name = max(encoded, key=lambda n: encoded[n].size)
    q, w = encoded[name], np.ravel(trees.named(params)[name])
    values = np.ravel(jax.device_get(qtensor.dequantize(q)))
    book = quantizers.centroids(job.cell.bits).init({name: w.reshape(q.shape)})
    fitted = book.carried[name]
    fitted = np.asarray(fitted.values, np.float32) * float(fitted.scale)
    low, high = np.quantile(w, [0.0005, 0.9995])
    edges = np.linspace(low, high, 101)
    before.hist(w, edges, color='tab:gray')
    for value in fitted:
      before.axvline(value, color='tab:red', lw=0.6)
    before.set(title=f'{name}: float, and Lloyd-Max centroids', yticks=[])
    points, counts = np.unique(values, return_counts=True)
    after.vlines(points, 0, counts, color='tab:blue', lw=2)
    after.set(title=f'after S8BQAT at {q.bits} bits, as it ships', yticks=[])
    after.set(xlim=(edges[0], edges[-1]))
  _save(figure, path)


def _save(figure, path: pathlib.Path) -> None:
  figure.savefig(path, dpi=110)
  plt.close(figure)
