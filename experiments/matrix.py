"""Runs a matrix of cells and turns it into rows, comparisons and a table."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections
import numpy as np

from experiments import (
  cells,
  methods,
  plots,
  results,
  scoring,
  stage_cache,
  trainer,
)
from experiments.stages import HYPOTHESES, Stages, eight_bit_activations
from s8bqat_jax.speech import significance

MARGIN = 0.03  # relative; a loss that is surely below it is none
# What a step costs over a floating-point one, where it is not about the same:
# of a method (at most; benchmarks/qat_overhead.py), and of 8-bit activations.
_FACTORS = {'gq': 1.5}
_TWIN_FACTOR = 1.6
_CELL_SECONDS = 60.0  # compiling, and decoding twice
COLUMNS = {
  'size': '',
  'method': '',
  'bits': '',
  'seed': '',
  'parameters': ',',
  'bytes': ',',
  'encoded_bytes': ',',
  'wer': '.2f',
  'ci95': '.1f',
  'index_traffic_8': ',.0f',
  'index_latency_ms_8': '.3f',
  'int8_latency_ms_8': '.3f',
}
# Of the parts of a row, averaged and rounded.
_AVERAGED = ('parameters', 'bytes', 'encoded_bytes', 'packed_bytes')


def run(
  stages: Stages,
  jobs: Sequence[cells.Job],
  max_hours: float = float('inf'),
  planned: Sequence[cells.Job] | None = None,
) -> tuple[dict[cells.Job, dict[str, Any]], list[str]]:
  """Runs jobs one after another, as `stage_cache.run` does.

  Args:
    stages: where their stages are kept.
    jobs: what to run.
    max_hours: no job starts after that long.
    planned: as for `stage_cache.run`.

  Returns:
    {job: its metrics}, and the jobs that were not run or failed, with why.
  """
  return stage_cache.run(
    jobs,
    stages.evaluate,
    planned=planned,
    max_hours=max_hours,
    done=stages.done,
  )


def estimated_hours(stages: Stages, jobs: Sequence[cells.Job]) -> float:
  """Returns how long what is not done yet will take, from timed steps.

  A few steps of each size are timed (their compilation is not counted in).

  Args:
    stages: where stages are kept.
    jobs: of the matrix.
  """
  rates: dict[str, float] = {}
  floats: set[pathlib.Path] = set()
  seconds = 0.0
  for job in jobs:
    if stages.done(job):
      continue
    seconds += _CELL_SECONDS
    config = cells.train_config(stages.config, job)
    folder = stages.float_folder(job)
    to_train = folder not in floats and not stages.float_done(job)
    trains = methods.METHODS[job.cell.method].trains
    if not (to_train or trains):
      continue
    of_float = cells.float_config(stages.config, job)
    if job.cell.size not in rates:
      rates[job.cell.size] = trainer.seconds_per_step(of_float)
    rate = rates[job.cell.size]
    if to_train:
      floats.add(folder)
      seconds += rate * trainer.steps_in_all(of_float)
    if trains:
      factor = _FACTORS.get(job.cell.method, 1.0)
      if eight_bit_activations(config):
        factor *= _TWIN_FACTOR
      seconds += rate * factor * config.train.steps
  return seconds / 3600


def report(
  config: ml_collections.ConfigDict,
  stages: Stages,
  name: str,
  found: Mapping[cells.Job, dict[str, Any]],
  not_run: Sequence[str],
  folder: pathlib.Path,
  plan: cells.Plan,
) -> list[dict[str, Any]]:
  """Writes results and pictures of a matrix into `folder`.

  Args:
    config: of the experiment.
    stages: where its stages are kept.
    name: of the results file.
    found: metrics by job.
    not_run: planned jobs that are not there.
    folder: where to.
    plan: of the matrix.

  Returns:
    The rows.
  """
  made = rows(config, found, plan)
  corpora = {m['spec']: m['fingerprint'] for m in found.values()}
  path = results.write(
    name,
    made,
    comparisons=comparisons(config, found, plan),
    corpus=[{'spec': k, 'fingerprint': v} for k, v in corpora.items()],
    not_run=not_run,
    command=results.command(without=results.SHARING),
    config_hash=results.config_hash(config.to_dict()),
    folder=folder,
  )
  plots.write(stages, made, found, path.with_suffix(''))
  return made


def rows(
  config: ml_collections.ConfigDict,
  found: Mapping[cells.Job, dict],
  plan: cells.Plan,
) -> list[dict[str, Any]]:
  """Returns one row a cell and seed, parts pooled, and one over all seeds.

  Args:
    config: of the experiment.
    found: metrics by job.
    plan: of the matrix: without all of its parts a row is not complete.
  """
  made: list[dict[str, Any]] = []
  by_cell: dict[cells.Cell, dict[int, dict[str, Any]]] = {}
  for cell, seed, parts in cells.by_cell(found):
    row = {
      'system': config.system,
      'size': cell.size,
      'method': cell.label,
      'bits': cell.bits,
      'cell': str(cell),
      'headline': str(cell) in config.headline,
      'seed': seed,
      'split': plan.split,
      'complete': set(parts) == set(plan.parts),
      'activation_bits': config.activation_bits if cell.bits <= 8 else 32,
      'metrics': _pooled(parts),
      'parts': {
        part: {
          k: metrics[k] for k in ('wer', 'bytes', 'config_hash', 'revision')
        }
        for part, metrics in parts.items()
      },
    }
    made.append(row)
    by_cell.setdefault(cell, {})[seed] = row
  for cell, of_cell in by_cell.items():
    of_parts = {seed: row['parts'] for seed, row in of_cell.items()}
    seeds, complete = _same_parts(of_parts, plan)
    if len(seeds) == 1:
      continue
    every = [of_cell[seed]['metrics'] for seed in seeds]
    means = {
      key: float(np.mean([metrics[key] for metrics in every]))
      for key in (
        *('wer', 'cer', 'steps', 'wall_seconds'),
        *_AVERAGED,
        *_costs(every[0]),
      )
    }
    counts = [
      _counts(parts)
      for c, seed, parts in cells.by_cell(found)
      if c == cell and seed in seeds
    ]
    metrics = {
      **means,
      **{key: round(means[key]) for key in ('steps', *_AVERAGED)},
      **{key: every[0][key] for key in ('words', 'speakers')},
      'ci95': _interval(counts),
    }
    row = of_cell[seeds[0]]
    made.append(
      {
        **row,
        'seed': 'all',
        'seeds': seeds,
        'complete': complete,
        'metrics': metrics,
        'parts': {},
      }
    )
  for metrics in (row['metrics'] for row in made):
    metrics |= results.ratios(metrics['parameters'], metrics['bytes'])
  return made


def _same_parts(
  of_seeds: Mapping[int, Mapping[str, Any]], plan: cells.Plan
) -> tuple[list[int], bool]:
  """Returns seeds that have the same utterances, and whether that is all.

  Those with all planned parts, if there are any, else those with the parts of
  the first; seeds of different parts have no utterance in common.
  """
  whole = [s for s, parts in of_seeds.items() if set(parts) == set(plan.parts)]
  if whole:
    return whole, set(whole) == set(plan.seeds)
  first = next(iter(of_seeds.values())).keys()
  return [s for s, parts in of_seeds.items() if parts.keys() == first], False


def comparisons(
  config: ml_collections.ConfigDict,
  found: Mapping[cells.Job, dict],
  plan: cells.Plan,
) -> list[dict[str, Any]]:
  """Compares cells with their controls, and the headline pair.

  Every cell with the float models of its size, S8BQAT with the other methods
  of its bits and with INT8 QAT, variants of S8BQAT with S8BQAT.

  Args:
    config: of the experiment.
    found: metrics by job.
    plan: of the matrix: without all of its parts and seeds, without trainings
      enough or on tuned data nothing is claimed.
  """
  groups: dict[cells.Cell, dict[int, dict[str, Any]]] = {}
  for cell, seed, parts in cells.by_cell(found):
    groups.setdefault(cell, {})[seed] = parts
  pairs = [
    (base, cell, False)
    for cell in groups
    for base in _bases(cell)
    if base in groups and base != cell
  ]
  if config.headline:
    ours, control = map(cells.parse, config.headline)
    if {ours, control} <= set(groups):
      pairs.append((control, ours, True))
  return [
    c
    for a, b, headline in pairs
    if (c := _compare(a, b, groups, headline, plan)) is not None
  ]


def _bases(cell: cells.Cell) -> list[cells.Cell]:
  """What a cell is held against."""
  size, method, _, options = cell
  bases = [cells.Cell(size, name) for name in ('float', 'float continued')]
  plain = cell._replace(options=cell.widths)  # no options but bits
  if method == 's8bqat' and options == cell.widths:
    others = 'straight-through', 'uniform qat', 'coarse int8', 'gq'
    bases += [plain._replace(method=other) for other in others]
    bases.append(cells.Cell(size, 'uniform qat', 8))
  elif method in ('s8bqat', 'acosr', 'learned step'):
    bases.append(plain._replace(method='s8bqat'))
  return bases


def _compare(a, b, groups, headline, plan) -> dict[str, Any] | None:
  both = {
    s: groups[a][s]
    for s in groups[a]
    if s in groups[b] and groups[a][s].keys() == groups[b][s].keys()
  }
  if not both:
    return None
  seeds, complete = _same_parts(both, plan)
  # Methods start from the same checkpoint; two of the same config, trained on
  # two machines, need not be the same.
  floats = [
    {
      (s, part): m.get('float')
      for s in seeds
      for part, m in groups[x][s].items()
    }
    for x in (a, b)
  ]
  paired = a.size != b.size or floats[0] == floats[1]
  claims = complete and paired and plan.carries_claims
  of_a, of_b = ([_counts(groups[x][s]) for s in seeds] for x in (a, b))
  if not any(c.errors_N.any() for c in of_a):
    return None  # nothing to be relative to
  if any(c.said_N != of_a[0].said_N for c in (*of_a, *of_b)):
    raise ValueError(f'{a} and {b} were scored on different utterances')
  result = significance.compare(
    np.stack([c.errors_N for c in of_a]),
    np.stack([c.errors_N for c in of_b]),
    of_a[0].words_N,
    of_a[0].speakers_N,
    of_a[0].parts_N,
  )
  of_files = [[m for s in seeds for m in groups[x][s].values()] for x in (a, b)]
  # Floats have no cost on an accelerator of integers.
  common = [k for k in _costs(of_files[0][0]) if k in of_files[1][0]]

  def ratio(key):
    base, other = (np.mean([m[key] for m in x]) for x in of_files)
    return float(other / base)

  rates = [
    [100 * float(c.errors_N.sum() / c.words_N.sum()) for c in x]
    for x in (of_a, of_b)
  ]
  return {
    'a': str(a),
    'b': str(b),
    'headline': headline and claims and plan.carries_headline,
    'complete': complete,
    'same_checkpoint': paired if a.size == b.size else None,
    'metric': 'wer',
    'seeds': seeds,
    'a_per_seed': rates[0],
    'b_per_seed': rates[1],
    # One training that failed can make all of a mean.
    'relative_per_seed': [
      100 * (y - x) / x if x else None for x, y in zip(*rates)
    ],
    **scoring.relative(result),
    'no_loss': result.non_inferior(MARGIN) if claims else None,
    'bytes_ratio': ratio('bytes'),
    'encoded_bytes_ratio': ratio('encoded_bytes'),
    **{f'{key}_ratio': ratio(key) for key in common},
  }


class _Counts:
  """Errors of one seed over all parts, in a fixed order."""

  def __init__(self, of_parts: Mapping[str, Sequence[scoring.Hypothesis]]):
    hypotheses = [h for part in sorted(of_parts) for h in of_parts[part]]
    counts = scoring.count(hypotheses)
    self.errors_N, self.words_N = counts.word_errors_N, counts.words_N
    self.char_errors_N, self.chars_N = counts.char_errors_N, counts.chars_N
    self.speakers_N = [h.speaker for h in hypotheses]
    # A part has a model of its own.
    clusters = _clusters(of_parts)
    self.parts_N = [clusters[p] for p in sorted(of_parts) for _ in of_parts[p]]
    self.said_N = [(h.utt_id, h.speaker, h.reference) for h in hypotheses]


def _clusters(
  of_parts: Mapping[str, Sequence[scoring.Hypothesis]],
) -> dict[str, str]:
  """Returns which parts are independent: those that share speakers are not.

  Folds never share one in evaluation; development data of two folds may be of
  the same speakers.

  Args:
    of_parts: hypotheses by part.
  """
  cluster: dict[str, str] = {}
  speakers: dict[str, set[str]] = {}  # by cluster
  for part in sorted(of_parts):
    heard = {h.speaker for h in of_parts[part]}
    for other in [c for c, theirs in speakers.items() if theirs & heard]:
      heard |= speakers.pop(other)
      cluster |= {p: part for p, c in cluster.items() if c == other}
    cluster[part], speakers[part] = part, heard
  return cluster


def _counts(parts: Mapping[str, dict]) -> _Counts:
  return _Counts(
    {
      part: scoring.read_hypotheses(
        pathlib.Path(metrics['folder']) / HYPOTHESES
      )
      for part, metrics in parts.items()
    }
  )


def _interval(counts: Sequence[_Counts]) -> list[float | None]:
  interval = significance.rate_interval(
    np.stack([c.errors_N for c in counts]),
    counts[0].words_N,
    counts[0].speakers_N,
    counts[0].parts_N,
  )
  return results.percent(interval)


def _pooled(parts: Mapping[str, dict]) -> dict[str, Any]:
  counts = _counts(parts)
  of_parts = list(parts.values())
  pooled = {
    'wer': 100 * float(counts.errors_N.sum() / counts.words_N.sum()),
    'ci95': _interval([counts]),
    'cer': 100 * float(counts.char_errors_N.sum() / counts.chars_N.sum()),
    'words': int(counts.words_N.sum()),
    'speakers': len(set(counts.speakers_N)),
    'equal_to_training': sum(m['equal_to_training'] for m in of_parts),
    'wall_seconds': sum(m['wall_seconds'] for m in of_parts),
    'steps': of_parts[0]['steps'],
    'float_steps': of_parts[0]['float_steps'],
  }
  for key in _AVERAGED:
    pooled[key] = round(float(np.mean([m[key] for m in of_parts])))
  for key in _costs(of_parts[0]):
    pooled[key] = float(np.mean([m[key] for m in of_parts]))
  return pooled


def _costs(metrics: Mapping[str, Any]) -> list[str]:
  return [key for key in metrics if '_traffic_' in key or '_latency_' in key]
