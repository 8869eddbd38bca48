"""Plots the pulls towards centroids: MRACos, ACosR and a quadratic one.

  python -m experiments.plot_penalties

Writes experiments/results/penalties.png: on the Lloyd-Max centroids of a
Gaussian at 3 bits and, for ACosR, a uniform grid: each penalty and its force.
"""

from __future__ import annotations

import jax.numpy as jnp
import matplotlib
import numpy as np
from absl import app

from experiments import plots, results, usage
from s8bqat_jax.quantizers import codebook as books
from s8bqat_jax.quantizers.lloyd_max import fit
from s8bqat_jax.quantizers.mracos import slope, value
from s8bqat_jax.quantizers.uniform import mse_scale

matplotlib.use('Agg')
from matplotlib import pyplot as plt  # noqa: E402


def main(argv: list[str]) -> None:
  usage.no_arguments(argv)
  sample = jnp.asarray(np.random.default_rng(0).normal(size=60_000), 'float32')
  lloyd_max = fit(sample, 8, grid=None)
  step = mse_scale(sample, 8)
  uniform = books.Codebook(jnp.arange(-4, 4, dtype=jnp.int8), step)
  w = jnp.linspace(-3.2, 3.2, 4001)

  figure, axes = plt.subplots(2, 1, figsize=(8, 6), sharex=True)
  curves = (
    ('MRACos, p = 2', lloyd_max, 2.0, 'C0', '-'),
    ('MRACos, p = 0 (the bare cosine)', lloyd_max, 0.0, 'C1', '-'),
    ('ACosR (uniform grid)', uniform, 2.0, 'C2', '--'),
  )
  for label, book, power, color, style in curves:
    left, right = books.regions(w, book)
    ends = books.centroids(book)
    width = (ends[-1] - ends[0]) / (len(ends) - 1)
    axes[0].plot(
      w, value(w, left, right, width, power), style, color=color, label=label
    )
    force = -slope(w, left, right, width, power)
    axes[1].plot(w, force, style, color=color)
  off = w - books.snap(w, lloyd_max)
  axes[0].plot(w, off**2 / 2, ':', color='C3', label='quadratic')
  axes[1].plot(w, -off, ':', color='C3')
  for axis, label in zip(axes, ('penalty', 'force (minus its slope)')):
    for q in books.centroids(lloyd_max):
      axis.axvline(float(q), color='0.85', zorder=0)
    axis.set_ylabel(label)
  axes[0].legend(loc='upper center', ncols=2, fontsize='small')
  axes[1].set_xlabel(
    'weight (gray: Lloyd-Max centroids of a unit Gaussian, 3 bits)'
  )
  figure.tight_layout()
  path = results.FOLDER / 'penalties.png'
  plots.save(figure, path)
  print(f'wrote {path.name}')


if __name__ == '__main__':
  app.run(main)
