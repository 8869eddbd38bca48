"""S8BQAT beside its controls: from a float model to WER from packed files.

  python -m experiments.s8bqat \
    --config=experiments/configs/s8bqat/asc_strings.py --matrix=curve

Every method fine-tunes from the same float model for the same steps on the
same batches; what it encodes goes into a packed file, and every figure is that
of the file. Stages are kept in --runs by the hash of their config: the same
command goes on where it stopped, and copies of it that run at the same time
share the jobs. Writes experiments/results/<name>_<matrix>.json and .png, and
two further pictures of what was fine-tuned here.
"""

from __future__ import annotations

import pathlib

from absl import app, flags
from ml_collections import config_flags

from experiments import cells, matrix, results, trainer, usage
from experiments.stage_cache import Interrupted, chosen
from experiments.stages import Stages

_CONFIG = config_flags.DEFINE_config_file(
  'config', None, 'A file of experiments/configs/s8bqat.'
)
_MATRIX = flags.DEFINE_string('matrix', 'curve', 'One of config.matrices.')
_RUNS = flags.DEFINE_string('runs', 'runs/s8bqat', 'Where stages are kept.')
_FLOAT_RUNS = flags.DEFINE_list(
  'float_runs',
  [str(results.MODELS / 'float')],
  'Where float models may be found, beside --runs.',
)
_ONLY = flags.DEFINE_string(
  'only', '', 'Only the cell of this name, or those that contain it.'
)
_PARTS = flags.DEFINE_list('parts', [], 'Only these parts.')
_SEEDS = flags.DEFINE_list('seeds', [], 'Only these seeds.')
_HOURS = flags.DEFINE_float(
  'max_hours',
  float('inf'),
  'Start nothing after that; it is listed. 0: report what is done.',
)
_PUBLISH = flags.DEFINE_bool(
  'publish',
  False,
  'Keep evaluations in experiments/results/evaluations: whoever has them, and '
  'the data, need not train to work out the matrix, or to finish it.',
)
_ESTIMATE = flags.DEFINE_bool('estimate_only', False, 'Print hours and stop.')


def main(argv):
  usage.no_arguments(argv)
  trainer.set_up()
  config = _CONFIG.value
  usage.check_config(config, 'matrices', 's8bqat')
  root = pathlib.Path(_RUNS.value)
  trainer.keep_compiled(root / 'compiled')
  stages = Stages(
    config,
    root / config.name,
    (root, *map(pathlib.Path, _FLOAT_RUNS.value)),
    results.FOLDER / 'evaluations' / config.name,
    publishes=_PUBLISH.value,
  )
  planned = cells.jobs(config, _MATRIX.value)
  usage.check_known('parts', _PARTS.value, [job.part for job in planned])
  usage.check_known('seeds', _SEEDS.value, [str(job.seed) for job in planned])
  only = chosen((job.cell for job in planned), _ONLY.value)
  asked = [
    job
    for job in planned
    if str(job.cell) in only
    and (not _PARTS.value or job.part in _PARTS.value)
    and (not _SEEDS.value or str(job.seed) in _SEEDS.value)
  ]
  if not asked:
    raise app.UsageError(
      f'--only={_ONLY.value} --parts={",".join(_PARTS.value)} '
      f'--seeds={",".join(_SEEDS.value)}: no such job of {_MATRIX.value}, for '
      f'instance {planned[0]}'
    )
  if _ESTIMATE.value or _HOURS.value > 0:  # else nothing is trained
    hours = matrix.estimated_hours(stages, asked)
    print(f'{len(asked)} of {len(planned)} jobs; about {hours:.2f} h to go')
  if _ESTIMATE.value:
    return
  try:
    found, not_run = matrix.run(stages, asked, _HOURS.value, planned)
  except Interrupted:
    print('interrupted; run the same command again to go on')
    return
  if not found:
    raise SystemExit(f'nothing to report; not run: {"; ".join(not_run)}')
  name = f'{config.name}_{_MATRIX.value}'
  rows = matrix.report(
    config,
    stages,
    name,
    found,
    not_run,
    results.FOLDER,
    cells.plan(config, _MATRIX.value),
  )
  print(results.table(rows, matrix.COLUMNS))
  if not_run:
    print(f'not run: {"; ".join(not_run)}')


if __name__ == '__main__':
  flags.mark_flag_as_required('config')
  app.run(main)
