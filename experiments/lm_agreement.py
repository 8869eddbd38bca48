"""Do a metric's scores say what bits cost? Predicted against measured harm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
import scipy.stats

from experiments import lm_sensitivity, results, stage_cache
from experiments.stage_cache import cached
from s8bqat_jax import sensitivity

DEV_WINDOWS = 4  # what is measured takes so many times a score's windows


def agreements(
  found: Mapping[int, lm_sensitivity.Sensitivity],
  so_far: Sequence[Mapping[str, Any]] = (),
) -> list[dict[str, Any]]:
  """Returns the rows of `agreement` of every seed; prints why some are missing.

  Args:
    found: the sensitivities by seed, of which those are asked that have scores
      at hand which took work.
    so_far: rows that stay where nothing is found in their place.
  """
  ready = {
    seed: [m for m in lm_sensitivity.METRICS if of_seed.ready(m)]
    for seed, of_seed in found.items()
  }
  seeds = [s for s in found if any(map(found[s].stage_folder, ready[s]))]
  rows, _ = stage_cache.run(
    seeds,
    lambda seed: agreement(found[seed], ready[seed]),
    failures=lm_sensitivity.FAILURES,
  )
  new = [{'seed': seed, **row} for seed in rows for row in rows[seed]]
  place = lambda row: (row['seed'], row['metric'], row['point'])
  merged = {place(row): dict(row) for row in (*so_far, *new)}
  return list(merged.values())


def agreement(
  found: lm_sensitivity.Sensitivity,
  metrics: Sequence[str] = lm_sensitivity.METRICS,
) -> list[dict[str, Any]]:
  """Holds predicted harm against measured harm, over random allocations.

  The allocations of a point share its bytes, so that mean bits predict
  nothing; nothing is trained, and the text is the development text.

  Args:
    found: the scores of a float model.
    metrics: whose scores are asked.

  Returns:
    A row for each metric and point: Spearman's correlation between the sum of
    its scores and the measured rise of the loss; and that rise under what the
    metric chose, under equal bits, and under the random ones.
  """
  stages = found.stages
  about = {
    'starts_from': stages.float_hash(),
    'fingerprints': stages.corpora.fingerprints,
    'row_scales': stages.config.row_scales,
    'points': stages.config.points,
    'choices': stages.config.choices,
    'sensitivity': stages.config.sensitivity.to_dict(),
    'metrics': list(metrics),
    'windows': DEV_WINDOWS,
  }
  search = found.stage_folder('search')
  if 'search' in metrics and search:
    about['search'] = search.name  # It depends on how fine-tuning is done.
  name = f'agreement-{results.config_hash(about)}'
  work = lambda _: {'rows': _measured(found, metrics)}
  return cached(stages.root / 'agreement' / name, about, work)['rows']


def _measured(found, metrics) -> list[dict[str, Any]]:
  stages = found.stages
  params = stages.float_params()
  windows = found.windows(dev=True, factor=DEV_WINDOWS)
  loss = jax.jit(lambda p, x: stages.model.nll(p, x).mean())
  mean = lambda p: float(np.mean([loss(p, x) for x in windows]))
  base = mean(params)
  # Not the scores that the cells by random scores have.
  rng = np.random.default_rng([stages.config.seed, 1])
  rows = []
  for point in stages.config.points:
    try:
      drawn = _random_allocations(
        found, point, stages.config.sensitivity.allocations, rng
      )
      chosen = {m: found.allocation(m, point).bits for m in metrics}
    except sensitivity.InfeasibleError:
      continue
    rise = lambda bits: mean(found.quantized(bits)) - base
    measured = [rise(bits) for bits in drawn]
    equal = None
    if isinstance(point, int):
      equal = rise(dict.fromkeys(found.sizes(), point))
    for metric in metrics:
      scores = found.scores(metric)
      predicted = [sum(scores[n][b] for n, b in bits.items()) for bits in drawn]
      rank = scipy.stats.spearmanr(predicted, measured)
      rows.append(
        {
          'metric': metric,
          'point': point,
          'allocations': len(drawn),
          # Predictions that are all alike rank nothing.
          'spearman': results.finite(rank.statistic),
          'p': results.finite(rank.pvalue),
          'rise_chosen': rise(chosen[metric]),
          'rise_equal_bits': equal,
          'rise_random': float(np.mean(measured)),
          'rise_best_random': float(np.min(measured)),
        }
      )
  return rows


def _random_allocations(found, point, count, rng) -> list[dict[str, int]]:
  """Different allocations in the bytes of a point, by random scores."""
  drawn: list[dict[str, int]] = []
  for _ in range(10 * count):
    scores = found.random_scores(rng)
    bits = sensitivity.allocate(scores, found.sizes(), found.budget(point)).bits
    if bits not in drawn:
      drawn.append(bits)
    if len(drawn) == count:
      break
  return drawn
