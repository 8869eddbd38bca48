"""What the language model experiment runs and compares."""

from __future__ import annotations

from collections.abc import (
  Callable,
  Collection,
  Iterable,
  Iterator,
  Mapping,
  Sequence,
)
from typing import Any, NamedTuple

import ml_collections
import numpy as np

from experiments import (
  language_model,
  lm_sensitivity,
  methods,
  results,
  stage_cache,
)
from s8bqat_jax import sensitivity
from s8bqat_jax.data import text as text_lib
from s8bqat_jax.quantizers import tree as trees

MARGIN = 0.01  # relative, of perplexity; a loss surely below it is none
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
UNIFORM = 'ptq uniform', 'ptq lloyd-max', 'uniform qat', 'straight-through'
# What finds the width from which on nothing is lost.
EASY = 'ptq uniform', 'ptq lloyd-max', 'straight-through'


class Cell(NamedTuple):
  """One system.

  Attributes:
    method: in `methods.METHODS`.
    point: what it may take (`Sensitivity.budget`): whole bits, which uniform
      precision can have as well, or the file's size; 32 for floats.
    metric: how those bytes are shared out; None gives all tensors alike.
    smaller: whether the model is that of `config.smaller`.
  """

  method: str
  point: lm_sensitivity.Point = 32
  metric: str | None = None
  smaller: bool = False

  @property
  def label(self) -> str:
    shared = f', bits by {self.metric}' if self.metric else ''
    return f'{"smaller " * self.smaller}{self.method}{shared}'

  def __str__(self) -> str:
    return self.label if self.point == 32 else f'{self.label}, {self.point}'


def uniform(name: str) -> Cell:
  """Reads 'METHOD' of floats, or 'METHOD, BITS'.

  Raises:
    ValueError: if there is no such method, or it takes no such bits.
  """
  method, comma, bits = name.partition(', ')
  floats = method.startswith('float')
  known = method in methods.METHODS and bool(comma) != floats
  if not known or (comma and bits not in map(str, range(1, 9))):
    raise ValueError(
      f'{name!r}: expected a float method, or one of '
      f"{', '.join(methods.METHODS)} and its bits, such as 'admm, 3'"
    )
  return Cell(method, int(bits)) if comma else Cell(method)


def cells(config) -> Iterator[Cell]:
  """Yields the matrix: floats, uniform precision, mixed precision."""
  yield Cell('float')
  yield Cell('float continued')
  for bits in config.easy_points:
    for method in EASY:
      yield Cell(method, bits)
  for point in config.points:
    if isinstance(point, int):
      for method in (*UNIFORM, 'admm'):
        yield Cell(method, point)
    for method, metrics in config.mixed.items():
      for metric in metrics:
        yield Cell(method, point, metric)
  for name in config.smaller.cells:
    yield uniform(name)._replace(smaller=True)


def bits_of(
  cell: Cell, found: lm_sensitivity.Sensitivity
) -> int | dict[str, int]:
  """Returns the bits of a cell: of all tensors, or of each."""
  if cell.metric is None:
    return int(cell.point)
  return found.allocation(cell.metric, cell.point).bits


def mean_bits(bits: int | Mapping[str, int], params: Any) -> float:
  """Returns bits of the mean quantized weight."""
  if isinstance(bits, int):
    return float(bits)
  sizes = {n: np.size(x) for n, x in trees.weights(params).items()}
  return sum(bits[n] * sizes[n] for n in bits) / sum(sizes.values())


def smaller(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
  """Returns the config of the smaller model: of `config.smaller` and the rest.

  Args:
    config: of the experiment.
  """
  found = config.copy_and_resolve_references()
  for section in ('model', 'train'):
    found[section].update(config.smaller[section])
  return found


def pairs(config) -> Iterator[tuple[Cell, Cell]]:
  """Yields what is compared, (base, other): the questions asked of a matrix."""
  everything = list(cells(config))
  for base in (Cell('float'), Cell('float continued')):
    for other in everything:
      of_it = base._replace(smaller=other.smaller)
      if other != of_it and of_it in everything:
        yield of_it, other
  if config.headline:
    ours = uniform(config.headline)
    yield from ((cell, ours) for cell in everything if cell.smaller)
  for cell in everything:
    bases = []
    if cell.method == 'admm':
      bases.append(cell._replace(method='straight-through'))
    if cell.metric is not None:
      bases += [cell._replace(metric=None), cell._replace(metric='random')]
    yield from ((b, cell) for b in bases if b in everything and b != cell)


class Job(NamedTuple):
  """A cell under one seed."""

  seed: int
  cell: Cell

  def __str__(self) -> str:
    return f'{self.cell}, seed {self.seed}'


def run(
  jobs: Sequence[Job],
  score: Callable[[Job], dict[str, Any]],
  *,
  planned: Sequence[Job] | None = None,
  done: Callable[[Job], bool] = lambda job: False,
  max_hours: float = float('inf'),
) -> tuple[dict[Job, dict[str, Any]], list[str]]:
  """Scores jobs one after another and prints each row.

  Args:
    jobs: what to score.
    score: (job) -> row, after whatever training that takes.
    planned: as for `stage_cache.run`,
    done: and likewise.
    max_hours: none starts after that long.

  Returns:
    The rows, and a line for each job of the plan that has none.
  """

  def work(job):
    row = score(job)
    print(results.table([row], COLUMNS), flush=True)
    return row

  return stage_cache.run(
    jobs,
    work,
    planned=planned,
    max_hours=max_hours,
    done=done,
    failures=lm_sensitivity.FAILURES,
  )


def comparisons(
  metrics: Mapping[tuple[Cell, int], Mapping[str, Any]],
  corpus: text_lib.TextCorpus,
  asked: Iterable[tuple[Cell, Cell]],
  planned: Sequence[int],
) -> list[dict[str, Any]]:
  """Compares cells pairwise over the seeds that both have.

  Args:
    metrics: of each cell and seed: `line_nats`, the file of its nats per line,
      and `bytes`.
    corpus: of the lines.
    asked: pairs (base, other); those without a common seed are left out.
    planned: seeds without which, and at least three, nothing is claimed.
  """
  found = []
  for base, cell, common in common_seeds(metrics, asked):
    of_both = [[metrics[one, s] for s in common] for one in (base, cell)]
    nats = [np.stack([np.load(m['line_nats']) for m in x]) for x in of_both]
    compared = language_model.relative_perplexity(nats[0], nats[1], corpus)
    highest = compared['ci95'][1]
    sizes = [np.mean([m['bytes'] for m in x]) for x in of_both]
    whole = complete(common, planned)
    found.append(
      {
        'a': str(base),
        'b': str(cell),
        'metric': 'perplexity',
        'seeds': common,
        'articles': len(set(language_model.articles(corpus))),
        **compared,
        'bytes_ratio': float(sizes[1] / sizes[0]),
        'complete': whole,
        'no_loss': highest is not None and highest < 100 * MARGIN
        if whole
        else None,
      }
    )
  return found


def common_seeds(
  metrics: Collection[tuple[Cell, int]], asked: Iterable[tuple[Cell, Cell]]
) -> Iterator[tuple[Cell, Cell, list[int]]]:
  """Yields the pairs that can be compared, and under which seeds.

  Args:
    metrics: the cells and seeds that there are.
    asked: pairs (base, other).
  """
  for pair in asked:
    seeds = [{s for c, s in metrics if c == one} for one in pair]
    if common := sorted(seeds[0] & seeds[1]):
      yield (*pair, common)


def complete(seeds: Sequence[int], planned: Sequence[int]) -> bool:
  """Whether these seeds carry a claim: all that were planned, three or more."""
  return len(planned) >= 3 and set(seeds) == set(planned)


def check(config) -> None:
  """Raises ValueError for cells that could only fail after hours.

  Args:
    config: of the experiment.
  """
  methods.final_phase('float', config.finetune.freeze)
  for method in config.finetune.rates:
    if method not in methods.METHODS:
      raise ValueError(
        f'config.finetune.rates has {method!r}: expected one of '
        f'{", ".join(methods.METHODS)}'
      )
  everything = set(cells(config))
  if config.smaller.cells and not config.smaller.model:
    raise ValueError(
      'config.smaller has cells and no model: expected what of config.model is '
      "smaller, such as {'width': 64}"
    )
  if config.headline and uniform(config.headline) not in everything:
    raise ValueError(
      f'config.headline is {config.headline!r}: expected a cell of the matrix, '
      f'one of {"; ".join(str(c) for c in cells(config) if c.metric is None)}'
    )


def done(cell: Cell, found: lm_sensitivity.Sensitivity) -> bool:
  """Whether a cell's file is there, asked without work worth the name."""
  stages = found.stages
  if not stages.float_done():
    return False
  if cell.metric is not None and not found.ready(cell.metric):
    return False
  try:
    return stages.done(cell.method, bits_of(cell, found))
  except sensitivity.InfeasibleError:
    return False


def estimated_hours(
  config,
  asked: Iterable[tuple[lm_sensitivity.Sensitivity, Sequence[Cell]]],
) -> float:
  """Returns how long the trainings that are not done will take.

  From timed steps in floating point; searches see a view of each width and
  are charged for every one. Scoring comes on top.

  Args:
    config: of the experiment.
    asked: the cells of every float model.
  """
  hours, seconds = 0.0, {}
  for found, of_it in asked:
    steps, stages = 0.0, found.stages
    if not of_it:
      continue
    if not stages.float_done():
      steps += config.train.steps
    if any(c.metric == 'search' for c in of_it) and not found.ready('search'):
      share = config.sensitivity.search_share
      steps += len(config.choices) * share * config.train.steps
    tuning = stages.finetuning().train.steps
    steps += tuning * sum(
      methods.METHODS[cell.method].trains and not done(cell, found)
      for cell in of_it
    )
    if not steps:
      continue
    model = stages.config.model.to_json()  # which all seeds share
    if model not in seconds:
      seconds[model] = stages.seconds_per_step()
    hours += seconds[model] * steps / 3600
  return hours
