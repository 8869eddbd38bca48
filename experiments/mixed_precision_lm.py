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
  of_job = lambda job: found[job.seed, job.cell.smaller]
  points = dict.fromkeys(job.cell.point for job in asked)
  found[config.seeds[0], False].check_sizes(points)
  rescoring = lm_rescoring.make(config, corpora.train_text, root / 'lists')
  if not _LAUNCH.goes_on(
    f'{len(asked)} of {len(planned)} cells',
    lambda: lm_matrix.estimated_hours(
      config,
      [
        (one, [job.cell for job in asked if of_job(job) is one])
        for one in found.values()
      ],
    ),
  ):
    return
  try:
    rows, not_run = lm_matrix.run(
      asked,
      lambda job: _row(of_job(job), job, rescoring),
      planned=planned,
      done=lambda job: _done(of_job(job), job.cell, rescoring),
      max_hours=_LAUNCH.hours.value,
    )
    if not rows:
      print('nothing is done yet, nothing was written')
      return
    first = found[next(iter(rows)).seed, False]
    rescored = _rescored(config, rows, rescoring)
    write = functools.partial(
      _write, config, corpora, rows, not_run, first, rescored
    )
    # What took hours is written before what takes minutes.
    write(_agreement_so_far(config))
    agreement = lm_agreement.agreements(
      {
        seed: found[seed, False]
        for seed in dict.fromkeys(j.seed for j in rows if not j.cell.smaller)
      }
    )
    write(agreement)
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


def _agreement_so_far(config) -> list[dict[str, Any]]:
  """What the results file has of it, if it is of this config."""
  if not (results.FOLDER / f'{config.name}.json').exists():
    return []
  old = results.read(config.name)
  same = old.get('config_hash') == results.config_hash(config.to_dict())
  return old.get('agreement', []) if same else []


def _row(
  found: lm_sensitivity.Sensitivity,
  job: lm_matrix.Job,
  rescoring: lm_rescoring.Rescoring | None,
) -> dict[str, Any]:
  """Trains a cell if it is not there, and scores its file."""
  stages, (seed, cell) = found.stages, job
  bits = lm_matrix.bits_of(cell, found)
  shipped = stages.train(cell.method, bits)
  metrics = stages.evaluate(shipped)
  if rescoring is not None:
    metrics |= rescoring.evaluate(shipped)
  row = {
    'system': 'Transformer LM',
    'method': cell.label,
    'bits': lm_matrix.mean_bits(bits, stages.float_params()),
    'point': cell.point,
    'seed': seed,
    'split': 'eval',
    'metrics': metrics,
  }
  row['folder'] = str(stages.train_folder(cell.method, bits))
  if not isinstance(bits, int):
    spent = found.allocation(cell.metric or '', cell.point).bytes
    row['allocation'] = bits
    row['share_of_budget'] = spent / found.budget(cell.point)
  return row


def _done(
  found: lm_sensitivity.Sensitivity,
  cell: lm_matrix.Cell,
  rescoring: lm_rescoring.Rescoring | None,
) -> bool:
  """Whether a row needs no work worth the name."""
  if not lm_matrix.done(cell, found):
    return False
  if rescoring is None:
    return True
  bits = lm_matrix.bits_of(cell, found)
  return rescoring.done(found.stages.train(cell.method, bits))


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


def _without_folders(row: dict[str, Any]) -> dict[str, Any]:
  """A row but for where this machine keeps what it is of."""
  kept = 'line_nats', lm_rescoring.ERRORS
  of_file = {k: v for k, v in row['metrics'].items() if k not in kept}
  return {k: v for k, v in row.items() if k != 'folder'} | {'metrics': of_file}


def _write(config, corpora, rows, not_run, first, rescored, agreement) -> None:
  """Writes the results file."""
  results.write(
    config.name,
    [_without_folders(row) for row in rows.values()],
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
    agreement=agreement,
    traces=first.traces()[2] if first.ready('trace') else None,
    divergences=first.divergences() if first.ready('kl') else None,
    command=results.command(without=results.SHARING),
    config_hash=results.config_hash(config.to_dict()),
    **rescored,
  )


if __name__ == '__main__':
  flags.mark_flag_as_required('config')
  app.run(main)
