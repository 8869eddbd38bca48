"""A toy training run as a command, for tests that kill it or run it twice.

Usage: toy_run.py WORKDIR STEPS [SIGNAL STEP | PROCESS_ID PROCESS_COUNT PORT]

Prints a digest of the final state. With SIGNAL, such as SIGTERM, it sends that
to itself when it is about to take STEP.
"""

import hashlib
import itertools
import os
import pathlib
import signal
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax

from s8bqat_jax import training
from s8bqat_jax.quantizers import step as quantizer_step
from s8bqat_jax.training import mesh as mesh_lib

ROWS = 16


def loss(params, batch, key):
  noise = jax.random.normal(key, batch.shape) * 0.1
  hidden = jnp.tanh((batch + noise) @ params['w1'])
  return jnp.mean((hidden @ params['w2'] - jnp.sin(batch)) ** 2), {}


def make_step():
  return quantizer_step.make_step(
    quantizer_step.on_main(loss),
    optax.adam(1e-2),
    learning_rate=1e-2,
    clip_norm=1.0,
    average_decay=0.99,
  )


def init_params():
  keys = jax.random.split(jax.random.key(0), 2)
  return {
    'w1': jax.random.normal(keys[0], (4, 8)),
    'w2': jax.random.normal(keys[1], (8, 4)),
  }


def batch_at(step):
  """This process's rows of the global batch of `step`."""
  rows = np.random.default_rng(step).normal(size=(ROWS, 4)).astype(np.float32)
  return np.split(rows, jax.process_count())[jax.process_index()]


def digest(tree):
  leaves = [np.asarray(x).tobytes() for x in jax.tree.leaves(tree)]
  return hashlib.sha256(b''.join(leaves)).hexdigest()


def run(workdir, steps, devices=None, report=lambda step: None, **config):
  """Trains, resuming from `workdir` if it is not None; returns the Outcome."""
  mesh = training.make_mesh(devices)
  step = make_step()

  def batches(start):
    for i in itertools.count(start):
      report(i)
      yield training.shard_batch(batch_at(i), mesh)

  return training.train(
    jax.jit(step.update, donate_argnums=0),
    training.replicate(step.init(init_params(), seed=1), mesh),
    batches,
    training.LoopConfig(
      steps=steps, **{'log_every': 5, 'save_every': 10, **config}
    ),
    checkpoints=training.Checkpoints(workdir) if workdir else None,
    metrics_dir=workdir,
    progress=False,
  )


def main():
  workdir, steps = pathlib.Path(sys.argv[1]), int(sys.argv[2])
  report = lambda step: None
  if len(sys.argv) == 5:
    how, when = getattr(signal, sys.argv[3]), int(sys.argv[4])
    report = lambda step: step == when and os.kill(os.getpid(), how)
  elif len(sys.argv) > 3:
    index, count, port = map(int, sys.argv[3:])
    jax.distributed.initialize(f'127.0.0.1:{port}', count, index)
  outcome = run(workdir, steps, report=report)
  state = mesh_lib.local_copy(outcome.state)
  print('end', outcome.reason, int(state.step), digest(state), flush=True)


if __name__ == '__main__':
  main()
