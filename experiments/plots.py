"""The pictures of an S8BQAT matrix."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib

matplotlib.use('Agg')
import jax  # noqa: E402
import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402
from matplotlib import ticker  # noqa: E402

from experiments import cells  # noqa: E402
from experiments import recognizer as recognizer_lib  # noqa: E402
from experiments.stages import Stages  # noqa: E402
from s8bqat_jax import files, quantizers, training  # noqa: E402
from s8bqat_jax.artifacts import packed_file, qtensor  # noqa: E402
from s8bqat_jax.quantizers import tree as trees  # noqa: E402

# A method looks the same in every picture; its variants take turns.
_LOOKS = {
  'float': ('black', 'o'),
  'float continued': ('tab:gray', 's'),
  'ptq uniform': ('tab:pink', '<'),
  'ptq lloyd-max': ('tab:olive', '>'),
  'uniform qat': ('tab:orange', '^'),
  'straight-through': ('tab:green', 'D'),
  's8bqat': ('tab:blue', 'v'),
  'coarse int8': ('tab:brown', 'P'),
  'gq': ('tab:purple', 'X'),
  'admm': ('tab:red', 'h'),
  'acosr': ('tab:red', 'p'),
  'learned step': ('tab:cyan', '*'),
}
_MARKERS = ''.join(marker for _, marker in _LOOKS.values())
LINES = {2: '-', 3: '--', 4: '-.'}
_ROUNDING = 1e-6  # relative; nearer to its code no weight is
Rows = Sequence[Mapping[str, Any]]
Found = Mapping[cells.Job, Any]


def write(stages: Stages, rows: Rows, found: Found, path: pathlib.Path) -> None:
  """Writes `<path>.png`, `<path>_distance.png` and `<path>_weights.png`.

  The latter two need what was trained here, a job of every cell. Of float
  models alone there is but the first.

  Args:
    stages: where files and metrics are.
    rows: of `matrix.rows`.
    found: metrics by job.
    path: of the pictures, without an ending.
  """
  if {row['method'] for row in rows} == {'float'}:
    _picture(png(path), (6, 4), lambda axes: error_against_weights(rows, axes))
    return
  if len({row['bits'] for row in rows}) == 1 and len(_pooled(rows)) > 2:
    # An ablation: nobody differs in bytes.
    size = 8, 1 + 0.3 * len(_pooled(rows))
    _picture(png(path), size, lambda axes: error_by_method(rows, axes))
  else:
    figure, (file, coded) = plt.subplots(
      1, 2, figsize=(11, 5), sharey=True, layout='constrained'
    )
    error_against_bytes(rows, file)
    error_against_bytes(rows, coded, 'encoded_bytes')
    file.get_legend().remove()
    coded.set(xlabel='file, codes entropy-coded, kB', ylabel='', title='')
    save(figure, png(path))
  here = {job: metrics for job, metrics in found.items() if stages.trained(job)}
  if {job.cell for job in here} != {job.cell for job in found}:
    return
  _picture(
    png(path, 'distance'),
    (8, 5),
    lambda axes: distances(stages, here, axes),
  )
  shown: dict[int, cells.Job] = {}
  for job in here:
    if job.cell.method == 's8bqat':
      shown.setdefault(job.cell.bits, job)
  if shown:
    figure, grid = plt.subplots(
      len(shown),
      2,
      figsize=(9, 2.6 * len(shown)),
      squeeze=False,
      layout='constrained',
    )
    for (before, after), job in zip(grid, shown.values()):
      histograms(stages, job, before, after)
    save(figure, png(path, 'weights'))


def error_against_bytes(rows: Rows, axes: Any, size_of: str = 'bytes') -> None:
  """Draws WER with its interval against file bytes, a line per method.

  Args:
    rows: of `matrix.rows`; where there is one over all seeds, that one.
    axes: to draw on.
    size_of: which of their metrics are the bytes.
  """
  shown = _pooled(rows)
  lines: dict[tuple[str, str], list[Any]] = {}
  for row in shown:
    lines.setdefault((row['size'], row['method']), []).append(row)
  sizes = list(dict.fromkeys(size for size, _ in lines))
  for i, ((size, method), of_line) in enumerate(lines.items()):
    of_line.sort(key=lambda row: row['metrics'][size_of])
    x = [row['metrics'][size_of] / 1000 for row in of_line]
    y = [row['metrics']['wer'] for row in of_line]
    axes.errorbar(
      x,
      y,
      np.hstack([_ends(row['metrics']) for row in of_line]),
      **look(method, i),
      fillstyle='full' if size == sizes[0] else 'none',
      capsize=3,
      lw=1,
      label=f'{size} {method}' if len(sizes) > 1 else method,
    )
    for row, at, wer in zip(of_line, x, y):
      axes.annotate(
        f'{row["bits"]}', (at, wer), (4, 4), textcoords='offset points'
      )
  rates = [row['metrics']['wer'] for row in shown]
  if max(rates) > 5 * max(min(rates), 0.1):
    log_scale(axes, 'y')
  log_scale(axes, 'x')
  axes.set(xlabel='file, kB', ylabel='WER, %')
  axes.set(title='error rate against size (bits per weight at the points)')
  axes.legend(fontsize=8)


def error_against_weights(rows: Rows, axes: Any) -> None:
  """Draws the WER of float models against parameters: each part, and all.

  Args:
    rows: of `matrix.rows`.
    axes: to draw on.
  """
  for row in rows:
    for part in row['parts'].values():
      axes.plot(row['metrics']['parameters'], part['wer'], '.', color='silver')
  for row in _pooled(rows):
    metrics = row['metrics']
    axes.errorbar(
      metrics['parameters'],
      metrics['wer'],
      _ends(metrics),
      **look('float', 0),
      fillstyle='full' if row['complete'] else 'none',
      capsize=3,
      lw=1,
    )
    axes.annotate(
      row['size'],
      (metrics['parameters'], metrics['wer']),
      (6, 4),
      textcoords='offset points',
    )
  axes.margins(x=0.12)  # The labels stand to the right of their points.
  log_scale(axes, 'x')
  log_scale(axes, 'y')
  axes.set(xlabel='parameters', ylabel='WER, %')
  axes.set(title='floating point (gray: parts and seeds; open: some)')


def _ends(metrics: Mapping[str, Any]) -> np.ndarray:
  """Returns the lengths of an error bar's two arms, each in a row."""
  wer = metrics['wer']
  # One utterance has no interval.
  low, high = (wer if end is None else end for end in metrics['ci95'])
  # The estimate may lie a hair outside a bootstrap interval.
  return np.maximum([[wer - low], [high - wer]], 0)


def error_by_method(rows: Rows, axes: Any) -> None:
  """Draws WER with its interval, a line per row; the first is the reference.

  Args:
    rows: of `matrix.rows`; where there is one over all seeds, that one.
    axes: to draw on.
  """
  rows = _pooled(rows)
  for i, row in enumerate(rows):
    metrics, style = row['metrics'], look(row['method'], i)
    axes.errorbar(
      metrics['wer'], i, xerr=_ends(metrics), **style, capsize=3, lw=1
    )
  axes.axvline(rows[0]['metrics']['wer'], color='black', lw=0.6, ls=':')
  axes.set_yticks(range(len(rows)), [row['method'] for row in rows])
  axes.set_ylim(len(rows) - 0.5, -0.5)
  axes.set(xlabel='WER, %', title=f'at {rows[0]["bits"]} bits')


def _pooled(rows: Rows) -> Rows:
  """The rows without those of seeds that have one over all of them."""
  cells_of_all = {row['cell'] for row in rows if row['seed'] == 'all'}
  return [
    r for r in rows if r['seed'] == 'all' or r['cell'] not in cells_of_all
  ]


def look(method: str, index: int) -> dict[str, Any]:
  """Returns the color and marker of a method.

  Args:
    method: its label.
    index: of the line, which decides if the method is not one of ours.
  """
  others = (
    plt.get_cmap('tab20b')(7 * index % 20),
    _MARKERS[index % len(_MARKERS)],
  )
  color, marker = _LOOKS.get(method, others)
  return {'color': color, 'marker': marker}


def log_scale(axes: Any, name: str) -> None:
  """Makes an axis logarithmic and labels it in plain numbers.

  Args:
    axes: with the data drawn already.
    name: 'x' or 'y'.
  """
  axes.set(**{f'{name}scale': 'log'})
  axis = getattr(axes, f'{name}axis')
  low, high = axis.get_view_interval()
  steps = (1, 2, 5) if high > 5 * low else (1, 1.5, 2, 3, 4, 5, 7)
  axis.set_major_locator(ticker.LogLocator(subs=steps))
  axis.set_major_formatter(
    ticker.FuncFormatter(
      lambda x, _: f'{x / 1000:g}k' if x >= 10_000 else f'{x:g}'
    )
  )
  axis.set_minor_locator(ticker.NullLocator())


def distances(stages: Stages, found: Found, axes: Any) -> None:
  """Draws each method's distance between weights and their codes over time.

  Args:
    stages: where the metrics of training are.
    found: the jobs to show; of each cell the first.
    axes: to draw on.
  """
  first: dict[cells.Cell, cells.Job] = {}
  for job in found:
    first.setdefault(job.cell, job)
  for i, (cell, job) in enumerate(first.items()):
    records = training.read_metrics(stages.train_folder(job))
    curve = [
      (r['step'], r['quantizer/distance'])
      for r in records
      if r.get('quantizer/distance', 0) > _ROUNDING
    ]
    if curve:
      axes.plot(
        *zip(*curve),
        color=look(cell.label, i)['color'],
        ls=LINES.get(cell.bits, ':'),
        label=f'{cell.label}, {cell.bits}',
      )
  axes.set(title='how far weights are from what ships (until codes freeze)')
  axes.set(xlabel='step', ylabel='|w - code(w)| / |w|')
  if axes.lines:
    log_scale(axes, 'y')
    beside = {'loc': 'center left', 'bbox_to_anchor': (1, 0.5)}
    axes.legend(fontsize=8, **(beside if len(axes.lines) > 8 else {}))


def histograms(stages: Stages, job: cells.Job, before: Any, after: Any) -> None:
  """Draws the weights of the largest tensor before and after a method.

  Args:
    stages: where the model files are.
    job: of a method with centroids.
    before: axes for the float weights and the centroids fitted to them.
    after: axes for what ships.
  """
  _, params, _ = recognizer_lib.load(stages.float_model(job))
  packed = packed_file.load(stages.train(job)['file'])
  encoded = trees.quantized(packed.tree)
  name = max(encoded, key=lambda n: encoded[n].size)
  q, w = encoded[name], np.asarray(trees.named(params)[name])
  fitted = quantizers.centroids(q.bits).init({name: w})
  book = jax.device_get(fitted.carried[name])
  low, high = np.quantile(w, [0.0005, 0.9995])
  before.hist(w.ravel(), np.linspace(low, high, 101), color='tab:gray')
  for value in book.values.astype(np.float32) * book.scale:
    before.axvline(value, color='tab:red', lw=0.6)
  before.set(title=f'{name}: float weights, Lloyd-Max centroids', yticks=[])
  values = np.ravel(jax.device_get(qtensor.dequantize(q)))
  points, counts = np.unique(values, return_counts=True)
  after.vlines(points, 0, counts, color='tab:blue', lw=2)
  after.set(title=f'after {job.cell.label}, {q.bits} bits', yticks=[])
  after.set(ylim=(0, None), xlim=before.get_xlim())


def _picture(path, size, draw: Callable[[Any], None]) -> None:
  figure, axes = plt.subplots(figsize=size, layout='constrained')
  draw(axes)
  save(figure, path)


def png(path: pathlib.Path, what: str = '') -> pathlib.Path:
  """Returns the path of one of several pictures.

  Args:
    path: of all of them, without an ending; a dot may be part of its name.
    what: which.
  """
  return path.with_name(f'{path.name}{what and "_"}{what}.png')


def save(figure: Any, path: pathlib.Path) -> None:
  """Writes a picture, whole or not at all.

  Args:
    figure: which is closed.
    path: of the file.
  """
  with files.replacing(path) as partial:
    figure.savefig(partial, dpi=110)
  plt.close(figure)
