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

from absl import app, flags
from ml_collections import config_flags

from experiments import cells, launch, matrix, results, usage
from experiments.stage_cache import Interrupted
from experiments.stages import Stages

_CONFIG = config_flags.DEFINE_config_file(
  'config', None, 'A file of experiments/configs/s8bqat.'
)
_MATRIX = flags.DEFINE_string('matrix', 'curve', 'One of config.matrices.')
_LAUNCH = launch.define('runs/s8bqat', parts='part', seeds='seed')
_PUBLISH = flags.DEFINE_bool(
  'publish',
  False,
  'Keep evaluations in experiments/results/evaluations: whoever has them, and '
  'the data, need not train to work out the matrix, or to finish it.',
)


def main(argv):
  usage.start(argv)
  config = _CONFIG.value
  usage.check_config(config, 'matrices', 's8bqat')
  root, kept = _LAUNCH.root(), config.stages or config.name
  usage.keep_compiled(root / 'compiled')
  stages = Stages(
    config,
    root / kept,
    (root, *_LAUNCH.float_folders()),
    results.FOLDER / 'evaluations' / kept,
    publishes=_PUBLISH.value,
  )
  planned = cells.jobs(config, _MATRIX.value)
  asked = _LAUNCH.asked(planned)
  if not _LAUNCH.goes_on(
    f'{len(asked)} of {len(planned)} jobs',
    lambda: matrix.estimated_hours(stages, asked),
  ):
    return
  try:
    found, not_run = matrix.run(stages, asked, _LAUNCH.hours.value, planned)
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
