"""Every way to train towards centroids, on a toy classification task.

  python -m experiments.toy_methods
  python -m experiments.toy_methods --select

One float network per seed; each method fine-tunes it for the same steps on the
same batches with the same learning rate and final phase. Accuracy is that of
what ships: decode(encode(params)), on test points. Writes
experiments/results/toy_methods.json. --select prints accuracies on development
points instead, for the settings that the ones below were selected from.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags, logging

from experiments import results, usage
from s8bqat_jax import quantizers
from s8bqat_jax.artifacts import qtensor
from s8bqat_jax.quantizers import quantize_once

SEEDS = flags.DEFINE_integer('seeds', 5, 'How many seeds.')
BITS = flags.DEFINE_multi_integer('bits', [2, 3], 'Bits per weight.')
SELECT = flags.DEFINE_bool('select', False, 'Try settings on the dev points.')

INPUTS, HIDDEN, CLASSES = 16, 64, 4
CLUSTERS, NOISE = 6, 0.8  # clusters of each class, their deviation
POINTS = 20_000  # of each split
BATCH = 256
FLOAT_STEPS, STEPS = 4000, 1200  # 30%
FLOAT_PEAK, PEAK = 5e-3, 4e-3
# After these the final phase freezes the codes: no method acts on them.
FREE_STEPS = round(0.85 * STEPS)

# The best on development points, by --select, or within 0.0001 of it.
FLOW_PULL, LOSS_PULL, ADMM_PULL, SNAP_EVERY = 8.0, 1.0, 100.0, 300
FLOW_PULLS, LOSS_PULLS = (4.0, 8.0, 16.0), (0.1, 1.0, 4.0)
ADMM_PULLS, SNAPS = (20.0, 100.0, 400.0), (100, 300, 450)


class Task(NamedTuple):
  """Labeled points: to train on, to select settings by, to report."""

  x_NxI: jax.Array
  y_N: jax.Array
  x_dev_NxI: jax.Array
  y_dev_N: jax.Array
  x_test_NxI: jax.Array
  y_test_N: jax.Array


def make_task(seed: int, points: int = POINTS) -> Task:
  """Returns a task: which class's clusters does a point come from?

  The clusters overlap a little, as sounds do. A boundary that is slightly off
  then costs a slight share of the points; where labels are a function of the
  point, accuracy is a measure of how finely a network can draw, and three bits
  draw less finely than float whatever the method.

  Args:
    seed: of the clusters and of the points.
    points: of each split.

  Returns:
    The Task.
  """
  rng = np.random.default_rng(seed)
  centers = rng.normal(size=(CLASSES * CLUSTERS, INPUTS))

  def sample():
    which = rng.integers(0, len(centers), points)
    x = centers[which] + NOISE * rng.normal(size=(points, INPUTS))
    return jnp.asarray(x, jnp.float32), jnp.asarray(which % CLASSES)

  return Task(*sample(), *sample(), *sample())


def init_params(seed: int) -> dict[str, dict[str, jax.Array]]:
  """Returns a perceptron with two hidden layers, about 5,400 weights."""
  sizes = (INPUTS, HIDDEN, HIDDEN, CLASSES)
  keys = jax.random.split(jax.random.key(seed), len(sizes) - 1)
  return {
    f'layer_{i}': {
      'kernel': jax.random.normal(key, (m, n)) * np.sqrt(2 / m),
      'bias': jnp.zeros(n),
    }
    for i, (key, m, n) in enumerate(zip(keys, sizes[:-1], sizes[1:]))
  }


def logits(params: Any, x_BxI: jax.Array) -> jax.Array:
  """Returns the network's logits [B, CLASSES]."""
  h = x_BxI
  for i in range(len(params)):
    h = h @ params[f'layer_{i}']['kernel'] + params[f'layer_{i}']['bias']
    h = jax.nn.relu(h) if i + 1 < len(params) else h
  return h


@functools.partial(jax.jit, static_argnames='split')
def accuracy(params: Any, task: Task, split: str = 'test') -> jax.Array:
  """Returns the share of a split's points that get their label.

  Args:
    params: of the network.
    task: the task.
    split: 'test', or 'dev' for everything that is decided by it.
  """
  x, y = {
    'dev': (task.x_dev_NxI, task.y_dev_N),
    'test': (task.x_test_NxI, task.y_test_N),
  }[split]
  return jnp.mean(jnp.argmax(logits(params, x), axis=-1) == y)


def schedule(steps: int, peak: float = PEAK) -> optax.Schedule:
  """Returns the learning rate of a run: a short warm-up, then a cosine."""
  return optax.warmup_cosine_decay_schedule(0.0, peak, steps // 20, steps)


def trainer(
  quantizer: quantizers.Quantizer | None, steps: int, peak: float = PEAK
) -> Callable[[Task, Any, int], tuple[Any, quantizers.State]]:
  """Returns a training run; it compiles once for all seeds.

  Args:
    quantizer: the method; None is floating point.
    steps: how many.
    peak: highest learning rate.

  Returns:
    (task, params to start from, seed) -> (params, quantizer state).
  """

  def loss(params, batch, key):
    del key
    x, y = batch
    out = logits(params, x)
    return optax.softmax_cross_entropy_with_integer_labels(out, y).mean(), {}

  rate = schedule(steps, peak)
  step = quantizers.make_step(
    quantizers.on_main(loss),
    optax.adam(rate),
    quantizer,
    learning_rate=rate,
    clip_norm=1.0,
  )

  @functools.partial(jax.jit, donate_argnums=0)
  def run(state, task, seed):
    def one(state, key):
      rows = jax.random.randint(key, (BATCH,), 0, len(task.y_N))
      return step.update(state, (task.x_NxI[rows], task.y_N[rows]))

    keys = jax.random.split(jax.random.key(1000 + seed), steps)
    return jax.lax.scan(one, state, keys)[0]

  def train(task, params, seed):
    params = jax.tree.map(jnp.copy, params)
    state = run(step.init(params, seed), task, seed)
    return state.params, state.quantizer

  return train


def pull(total: float) -> optax.Schedule:
  """Returns the pressure that sums up to `total` before the final phase."""
  return quantizers.pressure_schedule(total, FREE_STEPS, schedule(STEPS))


def penalized(bits: int, total: float = LOSS_PULL) -> quantizers.Quantizer:
  """Returns MRACos in the loss of a given strength."""
  return quantizers.mracos(bits, pressure=pull(total), coupling='loss')


def s8bqat(
  bits: int,
  total: float = FLOW_PULL,
  every: int = SNAP_EVERY,
  coupling: str = 'flow',
  reading: str = quantizers.OVERWRITE,
) -> quantizers.Quantizer:
  """Returns S8BQAT of a given strength."""
  return quantizers.s8bqat(
    bits,
    total_steps=FREE_STEPS,
    learning_rate=schedule(STEPS),
    total_pull=total,
    every=every,
    reading=reading,
    coupling=coupling,
  )


def admm(bits: int, total: float = ADMM_PULL) -> quantizers.Quantizer:
  """Returns ADMM onto Lloyd-Max tables of a given strength."""
  return quantizers.admm(bits, rho=pull(total), every=10)


def methods(bits: int) -> dict[str, quantizers.Quantizer]:
  """Returns the methods to compare, before the final phase goes around them.

  Args:
    bits: per weight, all kernels.
  """
  fixed = quantizers.centroids(bits)
  return {
    'centroids, snapped at the end': fixed,
    'hard compressor': quantizers.hard_compressor(fixed, SNAP_EVERY, PEAK),
    'hard compressor in the loss': quantizers.loss_at_codes(fixed, 5),
    'penalty in the loss': penalized(bits),
    'penalty in the loss + snaps': s8bqat(bits, LOSS_PULL, coupling='loss'),
    'flow': quantizers.mracos(bits, pressure=pull(FLOW_PULL)),
    'flow, power 0': quantizers.mracos(
      bits, pressure=pull(FLOW_PULL), power=0.0
    ),
    'flow + snaps': s8bqat(bits),
    'flow + loss at codes': s8bqat(bits, every=1, reading=quantizers.AT_CODES),
    'straight-through': quantizers.straight_through(fixed),
    'uniform straight-through': quantizers.uniform(
      bits, scale=quantizers.mse_scale, refit_every=0
    ),
    'acosr, flow': quantizers.acosr(bits, pressure=pull(FLOW_PULL)),
    'gq': quantizers.gq(bits, total_steps=FREE_STEPS),
    'admm': admm(bits),
  }


def finetune(
  method: quantizers.Quantizer,
) -> Callable[[Task, Any, int], dict]:
  """Returns a fine-tuning with a final phase around it.

  Args:
    method: of `methods`.

  Returns:
    (task, params to start from, seed) -> the params that ship.
  """
  quantizer = quantizers.with_final_phase(method, STEPS)
  train = trainer(quantizer, STEPS)
  encode = jax.jit(quantizer.encode)
  return lambda *args: qtensor.decode(encode(*train(*args)))


def select(bits: int) -> None:
  """Prints accuracies on the development points of seed 0."""
  task = make_task(0)
  params, _ = trainer(None, FLOAT_STEPS, FLOAT_PEAK)(task, init_params(0), 0)
  settings: dict[str, quantizers.Quantizer] = {
    **{f'penalty in the loss, {c:g}': penalized(bits, c) for c in LOSS_PULLS},
    **{f'admm, {c:g}': admm(bits, c) for c in ADMM_PULLS},
    **{
      f'flow + snaps, {c:g}, every {n}': s8bqat(bits, c, n)
      for c in FLOW_PULLS
      for n in SNAPS
    },
  }
  print(f'float: {accuracy(params, task, "dev"):.4f}')
  for name, method in settings.items():
    found = accuracy(finetune(method)(task, params, 0), task, 'dev')
    print(f'{name}, {bits} bits: {found:.4f}', flush=True)


def main(argv: list[str]) -> None:
  usage.start(argv)
  if SELECT.value:
    for bits in BITS.value:
      select(bits)
    return
  seeds = range(SEEDS.value)
  tasks = [make_task(seed) for seed in seeds]
  rows: list[dict[str, Any]] = []

  def report(method, bits, seed, params):
    found = float(accuracy(params, tasks[seed]))
    rows.append(
      {
        'system': 'toy',
        'method': method,
        'bits': bits,
        'seed': seed,
        'metrics': {'accuracy': found},
      }
    )
    logging.info('%s, %d bits, seed %d: %.4f', method, bits, seed, found)

  train = trainer(None, FLOAT_STEPS, FLOAT_PEAK)
  floats = [train(tasks[s], init_params(s), s)[0] for s in seeds]
  train = trainer(None, STEPS)
  for s in seeds:
    report('float', 32, s, floats[s])
    continued, _ = train(tasks[s], floats[s], s)
    report('float, continued', 32, s, continued)
  for bits in BITS.value:
    for s in seeds:
      rounded = quantize_once(quantizers.centroids(bits), floats[s])
      report('post-training', bits, s, qtensor.decode(rounded))
    for name, method in methods(bits).items():
      run = finetune(method)
      for s in seeds:
        report(name, bits, s, run(tasks[s], floats[s], s))

  averages = means(rows)
  path = results.write('toy_methods', rows, steps=STEPS, means=averages)
  print(results.table(averages))
  print(f'wrote {path.name}')


def means(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
  """Returns one row per method and bits, over all seeds."""
  found: dict[tuple[str, int], list[float]] = {}
  for row in rows:
    cell = found.setdefault((row['method'], row['bits']), [])
    cell.append(row['metrics']['accuracy'])
  return [
    {
      'method': method,
      'bits': bits,
      'accuracy': float(np.mean(cell)),
      'lowest': min(cell),
      'highest': max(cell),
    }
    for (method, bits), cell in found.items()
  ]


if __name__ == '__main__':
  app.run(main)
