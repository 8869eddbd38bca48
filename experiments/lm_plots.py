"""The pictures of the language model experiment."""

from __future__ import annotations

import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib

matplotlib.use('Agg')
import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402
from matplotlib import colors  # noqa: E402

from experiments import lm_sensitivity, plots  # noqa: E402
from s8bqat_jax.quantizers import tree as trees  # noqa: E402

Rows = Sequence[Mapping[str, Any]]
_WATCHED = 'dev/perplexity'


def write(
  rows: Rows, found: lm_sensitivity.Sensitivity, path: pathlib.Path
) -> None:
  """Writes `<path>.png` and those of bits, scores and training.

  `<path>_bits.png`, `<path>_traces.png`, `<path>_divergences.png`,
  `<path>_residuals.png` and `<path>_curves.png` are left out as long as there
  is nothing to draw.

  Args:
    rows: of the experiment.
    found: scores of its first float model.
    path: of the pictures, without an ending.
  """
  figure, axes = plt.subplots(figsize=(8, 5), layout='constrained')
  perplexity_against_bytes(rows, axes)
  plots.save(figure, plots.png(path))
  mixed = [row for row in rows if 'allocation' in row]
  if mixed:
    figure, axes = plt.subplots(
      figsize=(9, 2 + 0.3 * len(mixed)), layout='constrained'
    )
    bit_map(mixed, axes)
    plots.save(figure, plots.png(path, 'bits'))
  if found.ready('trace'):
    figure, axes = plt.subplots(figsize=(9, 4), layout='constrained')
    traces(found, axes)
    plots.save(figure, plots.png(path, 'traces'))
  if found.ready('kl'):
    figure, axes = plt.subplots(figsize=(9, 5), layout='constrained')
    divergences(found.divergences(), axes)
    plots.save(figure, plots.png(path, 'divergences'))
  pulled = [row for row in rows if row['method'] == 'admm']
  if pulled:
    figure, pair = plt.subplots(1, 2, figsize=(11, 4), layout='constrained')
    residuals(pulled, pair)
    plots.save(figure, plots.png(path, 'residuals'))
  figure, axes = plt.subplots(figsize=(8, 5), layout='constrained')
  if curves(rows, axes):
    plots.save(figure, plots.png(path, 'curves'))
  plt.close(figure)


def perplexity_against_bytes(rows: Rows, axes: Any) -> None:
  """Draws each method's perplexity against its file, the seeds as points."""
  lines: dict[str, list[Any]] = {}
  for row in rows:
    lines.setdefault(row['method'], []).append(row)
  for i, (method, of_line) in enumerate(lines.items()):
    points: dict[int | str, list[Any]] = {}
    for row in of_line:
      points.setdefault(row['point'], []).append(row['metrics'])
    mean = [
      (np.mean([m['bytes'] for m in p]), np.mean([m['perplexity'] for m in p]))
      for p in points.values()
    ]
    style = plots.look(method, i)
    axes.plot(*zip(*sorted(mean)), **style, label=method, lw=1)
    for metrics in (m for p in points.values() for m in p):
      axes.plot(
        metrics['bytes'], metrics['perplexity'], '.', color=style['color'], ms=3
      )
  plots.log_scale(axes, 'x')
  plots.log_scale(axes, 'y')
  axes.set(xlabel='file, bytes', ylabel='perplexity per word')
  axes.legend(fontsize=8)


def bit_map(rows: Rows, axes: Any) -> None:
  """Draws the bits of every tensor, a line for each allocation."""
  names = list(rows[0]['allocation'])
  bits = np.array([[row['allocation'][n] for n in names] for row in rows])
  image = axes.imshow(
    bits, aspect='auto', cmap='viridis', norm=colors.LogNorm(1, 8)
  )
  for (y, x), b in np.ndenumerate(bits):
    axes.text(x, y, b, ha='center', va='center', fontsize=7, color='white')
  axes.set_xticks(range(len(names)), names, rotation=90, fontsize=7)
  labels = [f'{r["method"]}, {r["point"]}, seed {r["seed"]}' for r in rows]
  axes.set_yticks(range(len(rows)), labels, fontsize=7)
  widths = sorted({1, 2, 4, 8, *bits.ravel().tolist()})
  bar = axes.figure.colorbar(
    image, ax=axes, label='bits', ticks=widths, format='%d'
  )
  bar.minorticks_off()


def traces(found: lm_sensitivity.Sensitivity, axes: Any) -> None:
  """Draws the mean curvature of every tensor that gets bits."""
  mean, error, _ = found.traces()
  mean, error = trees.named(mean), trees.named(error)
  weights = trees.weights(found.stages.float_params())
  x = np.arange(len(weights))
  y = np.array([float(mean[n]) / w.size for n, w in weights.items()])
  width = np.array([float(error[n]) / w.size for n, w in weights.items()])
  axes.errorbar(x, y, 1.96 * width, fmt='o', capsize=3)
  axes.set_xticks(x, list(weights), rotation=90, fontsize=7)
  axes.set(ylabel='Hessian trace / weights', yscale='log')


def divergences(rows: Rows, axes: Any) -> None:
  """Draws what each tensor's bits cost alone, a series for every width."""
  names = list(dict.fromkeys(row['tensor'] for row in rows))
  widths = sorted({row['bits'] for row in rows})
  shades = plt.colormaps['viridis'](np.linspace(0, 0.9, len(widths)))
  for bits, color in zip(widths, shades):
    of = [row for row in rows if row['bits'] == bits]
    axes.errorbar(
      [names.index(row['tensor']) for row in of],
      [row['nats'] for row in of],
      [1.96 * (row['stderr'] or 0) for row in of],
      fmt='o',
      ms=4,
      capsize=3,
      color=color,
      label=f'{bits} bit{"s" * (bits > 1)}',
    )
  axes.set_xticks(range(len(names)), names, rotation=90, fontsize=7)
  axes.set(ylabel='divergence of the outputs, nats a token', yscale='log')
  axes.legend(fontsize=8, loc='center left', bbox_to_anchor=(1, 0.5))


def curves(rows: Rows, axes: Any) -> int:
  """Draws the perplexity of what would ship over training.

  Args:
    rows: of the experiment; those of the first seed are drawn.
    axes: to draw on.

  Returns:
    How many were watched while they trained.
  """
  methods: dict[str, int] = {}
  drawn = 0
  for row in (r for r in rows if r['seed'] == rows[0]['seed']):
    curve = [
      (r['step'], r[_WATCHED])
      for r in row['logged']
      if np.isfinite(r.get(_WATCHED, np.nan))
    ]
    if not curve:
      continue
    drawn += 1
    index = methods.setdefault(row['method'], len(methods))
    axes.plot(
      *zip(*curve),
      **plots.look(row['method'], index),
      ls=plots.LINES.get(row['point'], ':'),
      ms=3,
      lw=1,
      label=f'{row["method"]}, {row["point"]}',
    )
  if drawn:
    plots.log_scale(axes, 'y')
    axes.legend(fontsize=7, loc='center left', bbox_to_anchor=(1, 0.5))
  axes.set(xlabel='step', ylabel='perplexity of what would ship, development')
  return drawn


def residuals(rows: Rows, axes: Sequence[Any]) -> None:
  """Draws ADMM's residuals over training, until codes freeze."""
  for row in rows:
    training_steps = [r for r in row['logged'] if not r.get('quantizer/frozen')]
    for name, one in zip(('primal', 'dual'), axes):
      # Of weights with a scale a row there is another: quantizer/1/primal.
      logged = set().union(*training_steps)
      keys = sorted(k for k in logged if re.fullmatch(rf'q.*/{name}', k))
      for key, style in zip(keys, ('-', '--')):
        curve = [(r['step'], r[key]) for r in training_steps if key in r]
        if not curve:
          continue  # Codes were frozen before anything was logged.
        of_rows = ', rows' if style == '--' else ''
        label = f'{row["point"]}, seed {row["seed"]}{of_rows}'
        one.plot(*zip(*curve), style, lw=1, label=label)
      one.set(xlabel='step', ylabel=f'{name} residual', yscale='log')
  if axes[0].lines:
    axes[0].legend(fontsize=7)
