"""What the language model experiment runs and compares."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import scipy.stats

from experiments import lm_sensitivity, lm_stages, methods
from s8bqat_jax.speech import significance

MARGIN = 0.01  # relative, of perplexity; a loss surely below it is none
UNIFORM = 'ptq uniform', 'ptq lloyd-max', 'uniform qat', 'straight-through'


class Cell(NamedTuple):
  """One system.

  Attributes:
    method: in `methods.METHODS`.
    point: bits whose bytes it may take; 32 for floats.
    metric: how those bytes are shared out; None gives all tensors alike.
  """

  method: str
  point: int = 32
  metric: str | None = None

  @property
  def label(self) -> str:
    return (
      f'{self.method}, bits by {self.metric}' if self.metric else (self.method)
    )

  def __str__(self) -> str:
    return self.label if self.point == 32 else f'{self.label}, {self.point}'


def cells(config) -> Iterator[Cell]:
  """Yields the matrix: floats, uniform precision, mixed precision."""
  yield Cell('float')
  yield Cell('float continued')
  for point in config.points:
    for method in (*UNIFORM, 'admm'):
      yield Cell(method, point)
    for metric in lm_sensitivity.METRICS:
      yield Cell('admm', point, metric)


def bits_of(
  cell: Cell, found: lm_sensitivity.Sensitivity
) -> int | dict[str, int]:
  """Returns the bits of a cell: of all tensors, or of each."""
  if cell.metric is None:
    return cell.point
  return found.allocation(cell.metric, cell.point).bits


def mean_bits(bits: int | Mapping[str, int], params: Any) -> float:
  """Returns bits of the mean quantized weight."""
  if isinstance(bits, int):
    return float(bits)
  sizes = {n: np.size(x) for n, x in lm_sensitivity.tensors(params).items()}
  return sum(bits[n] * sizes[n] for n in bits) / sum(sizes.values())


def agreement(
  stages: lm_stages.Stages, found: lm_sensitivity.Sensitivity
) -> list[dict[str, Any]]:
  """Holds predicted harm against measured harm, over random allocations.

  Args:
    stages: of the float model.
    found: its scores.

  Returns:
    A row for each metric: Spearman's correlation between the sum of its
    scores and the measured rise of the loss on the sensitivity windows,
    nothing trained.
  """
  params = stages.float_params()
  windows = found.windows()
  loss = jax.jit(lambda p, x: stages.model.nll(p, x).mean())
  mean = lambda p: float(np.mean([loss(p, x) for x in windows]))
  base = mean(params)
  rng = np.random.default_rng(stages.config.seed)
  names = list(found.sizes())
  # Mean widths differ between allocations as between points of a front.
  choices = [b for b in stages.config.choices if b <= 8]
  drawn = []
  for _ in range(stages.config.sensitivity.allocations):
    low = rng.integers(0, len(choices) - 1)
    some = choices[low : low + 3]
    drawn.append({name: int(rng.choice(some)) for name in names})
  measured = [mean(found.quantized(bits)) - base for bits in drawn]
  rows = []
  for metric in lm_sensitivity.METRICS:
    scores = found.scores(metric)
    predicted = [sum(scores[n][b] for n, b in bits.items()) for bits in drawn]
    rank = scipy.stats.spearmanr(predicted, measured)
    rows.append(
      {
        'metric': metric,
        'allocations': len(drawn),
        'spearman': float(rank.statistic),
        'p': float(rank.pvalue),
      }
    )
  return rows


def comparisons(
  folders: Mapping[tuple[Cell, int], pathlib.Path],
  articles_L: Sequence[str],
  words_L: Sequence[int],
  base: Cell,
) -> list[dict[str, Any]]:
  """Compares every cell with `base` over the seeds that both have.

  The bootstrap is over seeds, articles and lines; perplexities are compared
  by their ratio.
  """
  seeds = {c: {s for d, s in folders if d == c} for c, _ in folders}
  found = []
  for cell in seeds:
    common = sorted(seeds[cell] & seeds.get(base, set()))
    if cell == base or not common:
      continue
    rise_SxL = np.stack(
      [np.load(folders[cell, s]) - np.load(folders[base, s]) for s in common]
    )
    interval = significance.rate_interval(rise_SxL, words_L, articles_L)
    low, high = np.expm1(interval.low), np.expm1(interval.high)
    found.append(
      {
        'a': str(base),
        'b': str(cell),
        'metric': 'perplexity',
        'seeds': common,
        'relative': float(np.expm1(rise_SxL.mean(0).sum() / sum(words_L))),
        'ci95': [float(low), float(high)],
        'non_inferior': bool(high < MARGIN),
      }
    )
  return found


def estimated_hours(
  config, stages: Sequence[lm_stages.Stages], asked: Sequence[Cell]
) -> float:
  """Returns how long what is not done yet will take, from timed steps."""
  seconds = 0.0
  rate = stages[0].seconds_per_step()
  for of_seed in stages:
    if not of_seed.float_done():
      seconds += rate * config.train.steps
    tuning = rate * of_seed.finetuning().train.steps
    for cell in asked:
      trains = methods.METHODS[cell.method].trains
      if trains and not (
        cell.metric is None and of_seed.done(cell.method, cell.point)
      ):
        seconds += tuning
  return seconds / 3600
