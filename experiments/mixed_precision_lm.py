"""Mixed-precision Transformer language models, from text to packed files.

  python -m experiments.mixed_precision_lm \
    --config=experiments/configs/lm/wikitext2.py

Trains a float model, asks what each tensor's bits cost (Hessian traces,
divergences, a differentiable search, and two controls), allocates bits in the
bytes of a point, trains each choice by ADMM beside uniform
post-training and straight-through quantization, and scores the packed files.
Every method starts from the same float model and takes the same steps. Stages
are kept in --runs; the same command goes on where it stopped, and copies of it
that run at the same time share the cells. Writes
experiments/results/<name>.json and pictures.
"""

from __future__ import annotations

import functools
from typing import Any

from absl import app, flags
from ml_collections import config_flags

from experiments import (
  launch,
  lm_agreement,
  lm_matrix,
  lm_plots,
  lm_rescoring,
  lm_rows,
  lm_sensitivity,
  lm_stages,
  results,
  stage_cache,
  usage,
)

_CONFIG = config_flags.DEFINE_config_file(
  'config', None, 'A file of experiments/configs/lm.'
)
_LAUNCH = launch.define('runs/lm', seeds='seed')
_PUBLISH = flags.DEFINE_bool(
  'publish',
  False,
  'Keep rows in experiments/results/evaluations: whoever has them, and the '
  'texts, need not train to work out the matrix, or to finish it.',
)


def main(argv):
  usage.start(argv)
  config = _CONFIG.value
  usage.check_config(config, 'points', 'lm')
  lm_sensitivity.check_points(config)
  lm_matrix.check(config)
  root = _LAUNCH.root()
  usage.keep_compiled(root / 'compiled')
  corpora = lm_stages.Corpora(config)
  planned = [
    lm_matrix.Job(seed, cell)
    for seed in config.seeds
    for cell in lm_matrix.cells(config)
  ]
  asked = _LAUNCH.asked(planned)
  folder = root / (config.stages or config.name)
  roots = root, *_LAUNCH.float_folders()
  found = _float_models(config, corpora, folder, roots)
  points = dict.fromkeys(job.cell.point for job in asked)
  found[config.seeds[0], False].check_sizes(points)
  rescoring = lm_rescoring.make(config, corpora.train_text, root / 'lists')
  matrix = lm_rows.Rows(
    found,
    rescoring,
    results.FOLDER / 'evaluations' / folder.name,
    folder / 'published',
    publishes=_PUBLISH.value,
  )

  def hours():
    left = [job for job in asked if not matrix.done(job)]
    of_model = lambda one: [j.cell for j in left if matrix.model(j) is one]
    models = [(one, of_model(one)) for one in found.values()]
    return lm_matrix.estimated_hours(config, models)

  if not _LAUNCH.goes_on(f'{len(asked)} of {len(planned)} cells', hours):
    return
  try:
    rows, not_run = lm_matrix.run(
      asked,
      matrix.row,
      planned=planned,
      done=matrix.done,
      max_hours=_LAUNCH.hours.value,
    )
    if not rows:
      print('nothing is done yet, nothing was written')
      return
    first = found[next(iter(rows)).seed, False]
    of_scores = _of_scores(config, first)
    write = functools.partial(
      _write,
      config,
      corpora,
      rows,
      not_run,
      **_rescored(config, rows, rescoring),
    )
    # What took hours is written before what takes minutes.
    write(**of_scores)
    of_scores['agreement'] = lm_agreement.agreements(
      {
        seed: found[seed, False]
        for seed in dict.fromkeys(j.seed for j in rows if not j.cell.smaller)
      },
      so_far=of_scores['agreement'],
    )
    write(**of_scores)
  except stage_cache.Interrupted:
    print('interrupted; run the same command again to go on')
    return
  ordered = list(rows.values())
  path = results.FOLDER / config.name
  lm_plots.write(ordered, first, path)
  print(results.table(ordered, lm_matrix.COLUMNS))


def _float_models(
  config, corpora, folder, roots
) -> dict[tuple[int, bool], lm_sensitivity.Sensitivity]:
  """Returns the models of every seed, {(seed, whether the smaller): model}."""
  smaller = lm_matrix.smaller(config)
  models = (config, smaller) if config.smaller.cells else (config,)
  return {
    (seed, of is smaller): lm_sensitivity.Sensitivity(
      lm_stages.Stages(of, corpora, folder, seed, float_runs=roots)
    )
    for seed in config.seeds
    for of in models
  }


def _of_scores(config, first: lm_sensitivity.Sensitivity) -> dict[str, Any]:
  """What a results file says of scores: found here, or what it has so far."""
  so_far = {}
  if (results.FOLDER / f'{config.name}.json').exists():
    old = results.read(config.name)
    if old.get('config_hash') == results.config_hash(config.to_dict()):
      so_far = old
  return {
    'agreement': so_far.get('agreement', []),
    'traces': first.traces()[2]
    if first.ready('trace')
    else so_far.get('traces'),
    'divergences': first.divergences()
    if first.ready('kl')
    else so_far.get('divergences'),
  }


def _rescored(config, rows, rescoring) -> dict[str, Any]:
  """What a results file says of rescoring; nothing without a recognizer."""
  if rescoring is None:
    return {}
  return {
    'rescored': stage_cache.patiently(rescoring.references),
    'wer_comparisons': rescoring.comparisons(
      _by_cell(rows), lm_matrix.pairs(config), config.seeds
    ),
  }


def _by_cell(rows) -> dict[tuple[lm_matrix.Cell, int], dict[str, Any]]:
  return {(cell, seed): rows[seed, cell]['metrics'] for seed, cell in rows}


def _write(config, corpora, rows, not_run, **more) -> None:
  """Writes the results file."""
  results.write(
    config.name,
    [lm_rows.outcome(row) for row in rows.values()],
    comparisons=lm_matrix.comparisons(
      _by_cell(rows),
      corpora.eval_text,
      lm_matrix.pairs(config),
      config.seeds,
    ),
    corpus=[
      {'spec': k, 'fingerprint': v} for k, v in corpora.fingerprints.items()
    ],
    not_run=not_run,
    command=results.command(without=results.SHARING),
    config_hash=results.config_hash(config.to_dict()),
    **more,
  )


if __name__ == '__main__':
  flags.mark_flag_as_required('config')
  app.run(main)
