"""Mixed-precision Transformer language models, from text to packed files.

  python -m experiments.mixed_precision_lm \
    --config=experiments/configs/lm/wikitext2.py

Trains a float model, asks what each tensor's bits cost (Hessian traces,
divergences, a differentiable search, and two controls), allocates bits in the
bytes that uniform precision takes, trains each choice by ADMM beside uniform
post-training and straight-through quantization, and scores the packed files.
Every method starts from the same float model and takes the same steps. Stages
are kept in --runs; the same command goes on where it stopped. Writes
experiments/results/<name>.json and pictures.
"""

from __future__ import annotations

import itertools
import pathlib
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import scipy.stats
from absl import app, flags
from ml_collections import config_flags

from experiments import (
  lm_plots,
  lm_sensitivity,
  lm_stages,
  methods,
  results,
  trainer,
)
from experiments.stages import Interrupted
from s8bqat_jax.data import text as text_lib
from s8bqat_jax.speech import significance

_CONFIG = config_flags.DEFINE_config_file(
  'config', None, 'A file of experiments/configs/lm.'
)
_RUNS = flags.DEFINE_string('runs', 'runs/lm', 'Where stages are kept.')
_ONLY = flags.DEFINE_string('only', '', 'Only cells that contain this.')
_SEEDS = flags.DEFINE_list('seeds', [], 'Only these seeds.')
_HOURS = flags.DEFINE_float(
  'max_hours', float('inf'), 'Start nothing after that; it is listed.'
)
_ESTIMATE = flags.DEFINE_bool('estimate_only', False, 'Print hours and stop.')

MARGIN = 0.01  # relative, of perplexity; a loss surely below it is none
UNIFORM = 'ptq uniform', 'ptq lloyd-max', 'uniform qat', 'straight-through'
COLUMNS = {
  'method': '',
  'bits': '.2f',
  'seed': '',
  'perplexity': '.2f',
  'dev_perplexity': '.2f',
  'bytes': ',',
  'encoded_bytes': ',',
  'ratio_fp32': '.2f',
  'ratio_fp16': '.2f',
}


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


def main(argv):
  if len(argv) > 1:
    raise app.UsageError(f'unexpected arguments {argv[1:]}')
  trainer.set_up()
  config = _CONFIG.value
  root = pathlib.Path(_RUNS.value)
  trainer.keep_compiled(root / 'compiled')
  corpora = lm_stages.Corpora(config)
  planned = list(itertools.product(config.seeds, cells(config)))
  asked = [
    (seed, cell)
    for seed, cell in planned
    if _ONLY.value in str(cell)
    and (not _SEEDS.value or str(seed) in _SEEDS.value)
  ]
  by_seed = {
    seed: lm_stages.Stages(config, corpora, root / config.name, seed)
    for seed in dict.fromkeys(seed for seed, _ in asked)
  }
  hours = estimated_hours(
    config, list(by_seed.values()), list(dict.fromkeys(c for _, c in asked))
  )
  print(f'{len(asked)} of {len(planned)} cells; at most {hours:.2f} h to go')
  if _ESTIMATE.value:
    return
  start = time.perf_counter()
  rows, folders, done = [], {}, set()
  scores: dict[int, lm_sensitivity.Sensitivity] = {}
  try:
    for seed, cell in asked:
      if time.perf_counter() - start > 3600 * _HOURS.value:
        break
      stages = by_seed[seed]
      found = scores.setdefault(seed, lm_sensitivity.Sensitivity(stages))
      bits = bits_of(cell, found)
      path = stages.train(cell.method, bits)
      metrics = stages.evaluate(path)
      row = {
        'system': 'Transformer LM',
        'method': cell.label,
        'bits': mean_bits(bits, stages.float_params()),
        'point': cell.point,
        'seed': seed,
        'split': 'eval',
        'metrics': metrics,
      }
      if not isinstance(bits, int):
        row['allocation'] = bits
      rows.append(row)
      folders[cell, seed] = path.parent / 'eval' / lm_stages.LINE_NATS
      done.add((seed, cell))
      print(results.table([row], COLUMNS), flush=True)
  except Interrupted:
    print('interrupted; run the same command again to go on')
    return
  first = next(iter(scores.values()), None)
  if first is None:
    return
  lines = corpora.eval_text.lines
  articles = [str(n) for n in text_lib.article_of_lines(lines)]
  words = [len(line.split()) + 1 for line in lines]
  path = results.write(
    config.name,
    rows,
    comparisons=comparisons(folders, articles, words, Cell('float'))
    + comparisons(folders, articles, words, Cell('float continued')),
    corpus=[
      {'spec': k, 'fingerprint': v} for k, v in corpora.fingerprints.items()
    ],
    not_run=[
      f'{cell}, seed {seed}'
      for seed, cell in planned
      if (seed, cell) not in done
    ],
    agreement=agreement(first.stages, first),
    traces=first.traces()[2],
    config_hash=results.config_hash(config.to_dict()),
  )
  lm_plots.write(rows, first, path.with_suffix(''))
  print(results.table(rows, COLUMNS))


if __name__ == '__main__':
  flags.mark_flag_as_required('config')
  app.run(main)
