"""The demo: from nothing to a 4-bit recognizer of voices it has never heard.

  make demo      (python -m experiments.demo)

Synthesizes digit strings, trains a small RNN transducer, makes it small by
S8BQAT and by its controls, and recognizes unseen voices of an unseen accent
from the packed files. Ends in a table and a picture. A demo that was
interrupted goes on where it stopped; --fresh starts again.
"""

from __future__ import annotations

import contextlib
import pathlib
import shutil
import time

import jax
from absl import app, flags

from experiments import (
  cells,
  copies,
  matrix,
  overview,
  results,
  stage_cache,
  stages,
  usage,
)
from experiments.configs.s8bqat import digits
from s8bqat_jax import data

_WORKDIR = flags.DEFINE_string('workdir', 'runs/demo', 'Where it all goes.')
_FRESH = flags.DEFINE_bool('fresh', False, 'Remove an earlier demo first.')
_PUBLISH = flags.DEFINE_bool(
  'publish',
  False,
  'Also write experiments/results/demo.json and .png, and the 4-bit model '
  'into experiments/models.',
)
_COPIES = flags.DEFINE_integer(
  'copies',
  None,
  'How many methods train at a time; by default one per processor core, and '
  'one at a time where there is an accelerator.',
)
_COPY = flags.DEFINE_bool(
  'is_copy', False, 'Only train what no other copy trains.'
)
_COPIES_AT_MOST = 3  # as many methods are trained; each takes 2 GB
# The cell whose file there is to try.
_TRY = 'demo/s8bqat:4'
_MODEL = 'digits_4bit.safetensors'
_STAGES = 'compiled', 'float', 'ranges', 'train', 'eval'
_COLUMNS = {
  'method': '',
  'bits': '',
  'bytes': ',',
  'wer': '.2f',
  'ci95': '.1f',
  'index_traffic_8': ',.0f',
  'index_latency_ms_8': '.3f',
  'int8_latency_ms_8': '.3f',
}


def main(argv):
  usage.start(argv)
  start = time.perf_counter()
  workdir = pathlib.Path(_WORKDIR.value)
  if _FRESH.value:
    _remove(workdir)
  resumed = workdir.exists()
  usage.keep_compiled(workdir / 'compiled')
  config = digits.get_config()
  kept = stages.Stages(config, workdir)
  jobs, plan = cells.jobs(config, 'demo'), cells.plan(config, 'demo')
  if _COPY.value:
    with contextlib.suppress(stage_cache.Interrupted):
      matrix.run(kept, jobs)
    return
  print('1/3  speech: synthesizing digit strings with eSpeak NG')
  speech = cells.float_config(config, jobs[0]).data
  corpora = [data.load(s) for s in (speech.train, speech.dev, speech.eval)]
  print('2/3  a floating-point RNN transducer, then each method from it')
  try:
    kept.ranges(jobs[0])
    _train_side_by_side(kept, jobs, workdir)
    found, not_run = matrix.run(kept, jobs)
  except stage_cache.Interrupted:
    print('interrupted; run the same command again to resume')
    return
  except stage_cache.Busy as e:
    raise SystemExit(f'{e}: wait for it, or give another --workdir') from None
  if not_run:
    raise SystemExit(f'the demo is not whole: {"; ".join(not_run)}')
  print('3/3  what ships, recognizing voices never heard in training')
  rows = matrix.rows(config, found, plan)
  for folder in (workdir, *([results.FOLDER] if _PUBLISH.value else [])):
    overview.write(kept, rows, found, folder / 'demo.png')
    results.write(
      'demo',
      rows,
      comparisons=matrix.comparisons(config, found, plan),
      corpus={'spec': corpora[2].spec, 'fingerprint': corpora[2].fingerprint},
      config_hash=results.config_hash(config.to_dict()),
      # Of a demo that went on where another had stopped it would be no time.
      wall_seconds=None if resumed else time.perf_counter() - start,
      folder=folder,
    )
  shipped = next(
    kept.train(job)['file'] for job in found if str(job.cell) == _TRY
  )
  model = workdir / _MODEL
  shutil.copyfile(shipped, model)
  if _PUBLISH.value:
    results.MODELS.mkdir(exist_ok=True)
    shutil.copyfile(shipped, results.MODELS / model.name)
  print(results.table(rows, _COLUMNS))
  print(
    'traffic: bytes of weights fetched per second of audio, 8 frames at a time;'
    '\nlatency: of a modeled NPU that reads n-bit codes (index) or bytes (int8)'
  )
  print(f'the picture: {workdir / "demo.png"}')
  print(f'try it: python -m experiments.transcribe --model={model} your.wav')


def _remove(workdir: pathlib.Path) -> None:
  """Removes an earlier demo, and nothing else."""
  there = sorted(p.name for p in workdir.iterdir()) if workdir.exists() else []
  if foreign := [
    name
    for name in there
    if name not in _STAGES and not name.startswith(('demo.', _MODEL))
  ]:
    raise app.UsageError(
      f'--fresh would remove {workdir} with what no demo makes: '
      f'{", ".join(foreign[:3])}; give another --workdir'
    )
  shutil.rmtree(workdir, ignore_errors=True)


def _train_side_by_side(kept, jobs, workdir):
  """Trains the methods in copies of this command, on a core each."""
  count = _COPIES.value
  if count is None:
    on_cpu = jax.default_backend() == 'cpu'
    count = min(len(copies.available_cores()), _COPIES_AT_MOST) if on_cpu else 1
  left = [job for job in jobs if not kept.done(job)]
  if min(count, len(left)) > 1:
    command = 'experiments.demo', f'--workdir={workdir}', '--is_copy'
    if not copies.run(command, min(count, len(left))):
      raise stage_cache.Interrupted


if __name__ == '__main__':
  app.run(main)
