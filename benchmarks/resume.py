"""Interrupted, spread and shared trainings against an uninterrupted one.

Runs `experiments.train` on a small recognizer of synthesized digits:

  uninterrupted        the reference
  kill -9, SIGTERM     at random steps, each followed by the same command
  8 devices            virtual ones, on one processor
  two processes        through jax.distributed, each reading half of each batch

and reports whether the final weights are identical bit for bit, or how far the
loss curves lie apart.
"""

from __future__ import annotations

import hashlib
import os
import pathlib
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time

import numpy as np
from absl import app, flags

from experiments import results, usage
from s8bqat_jax import training
from s8bqat_jax.artifacts import packed_file

_STEPS = flags.DEFINE_integer('steps', 60, 'Of each training.')
_SEED = flags.DEFINE_integer('seed', 0, 'Of the steps to kill at.')

_ROOT = pathlib.Path(__file__).parents[1]


def start(workdir, *args, devices=1):
  """Starts a training as a process of its own.

  All share compiled programs: most of such a short run would be compilation.
  """
  options = 'utterances=64&snr=20-30'
  command = [
    *(sys.executable, '-m', 'experiments.train'),
    '--config=experiments/configs/demo/digits.py',
    f'--workdir={workdir}',
    f'--config.data.train=espeak:digits?split=train&{options}',
    f'--config.data.dev=espeak:digits?split=dev&{options}',
    '--config.data.num_buckets=1',
    '--config.model.encoder_width=32',
    f'--config.train.steps={_STEPS.value}',
    f'--config.train.eval_every={_STEPS.value}',
    '--config.train.log_every=1',
    '--config.train.save_every=10',
    *args,
  ]
  flags_ = f'--xla_force_host_platform_device_count={devices}'
  return subprocess.Popen(
    command,
    cwd=_ROOT,
    env={
      **os.environ,
      'JAX_PLATFORMS': 'cpu',
      'XLA_FLAGS': flags_,
      'JAX_COMPILATION_CACHE_DIR': str(pathlib.Path(workdir).parent / 'jit'),
      'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0.1',
    },
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )


def finish(process):
  """Waits; raises with the output if it failed."""
  out, _ = process.communicate()
  if process.returncode:
    raise RuntimeError(out[-3000:])


def kill_at(process, workdir, step, how):
  """Sends a signal once the metrics have reached a step; returns the step."""
  reached = 0
  while reached < step and process.poll() is None:
    time.sleep(0.02)
    records = training.read_metrics(workdir)
    reached = int(records[-1]['step']) if records else 0
  process.send_signal(how)
  process.communicate()
  return reached


def digest(workdir):
  """Hash of the final weights, from the packed file's arrays."""
  tree = packed_file.load(pathlib.Path(workdir) / 'model.safetensors').tree
  found = hashlib.sha256()

  def add(tree):
    for name in sorted(tree):
      leaf = tree[name]
      add(leaf) if isinstance(leaf, dict) else found.update(leaf.tobytes())

  add(tree)
  return found.hexdigest()[:16]


def losses(workdir):
  """The loss at every step."""
  records = training.read_metrics(workdir)
  return np.array([r['loss'] for r in records if 'loss' in r])


def main(argv):
  usage.start(argv)
  rng = random.Random(_SEED.value)
  with tempfile.TemporaryDirectory() as folder:
    reference = f'{folder}/reference'
    finish(start(reference))
    curve, wanted = losses(reference), digest(reference)

    def row(method, workdir, **metrics):
      found = losses(workdir)
      apart = float(np.max(np.abs(found - curve) / np.abs(curve)))
      return {
        'method': method,
        'metrics': {
          'identical weights': 'yes' if digest(workdir) == wanted else 'no',
          'largest relative difference of the loss': apart,
          'steps': len(found),
          **metrics,
        },
      }

    rows = [row('uninterrupted', reference)]
    for name, how in (('kill -9', signal.SIGKILL), ('SIGTERM', signal.SIGTERM)):
      workdir = f'{folder}/{name.replace(" ", "")}'
      at = []
      for low, high in ((0.2, 0.45), (0.55, 0.8)):
        step = rng.randrange(int(low * _STEPS.value), int(high * _STEPS.value))
        at.append(kill_at(start(workdir), workdir, step, how))
      finish(start(workdir))
      rows.append(row(name, workdir, interrupted_at=at))
    eight = f'{folder}/eight'
    finish(start(eight, devices=8))
    rows.append(row('8 devices', eight))
    with socket.socket() as probe:
      probe.bind(('127.0.0.1', 0))
      port = probe.getsockname()[1]
    two = f'{folder}/two'
    shared = (f'--coordinator=127.0.0.1:{port}', '--num_processes=2')
    for process in [start(two, *shared, f'--process_id={i}') for i in (0, 1)]:
      finish(process)
    rows.append(row('two processes', two))
  results.write('resume', rows, seed=_SEED.value)
  print(results.table(rows))


if __name__ == '__main__':
  app.run(main)
