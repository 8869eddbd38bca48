"""Every way to train towards centroids, on a toy classification task.

  python -m experiments.toy_methods

One float network per seed; each method fine-tunes it for the same steps on the
same batches with the same learning rate and final phase. Accuracy is that of
what ships: decode(encode(params)). Writes experiments/results/toy_methods.json.
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

from experiments import results
from s8bqat_jax import quantizers
from s8bqat_jax.artifacts import qtensor
from s8bqat_jax.quantizers.ptq import quantize as quantize_once

SEEDS = flags.DEFINE_integer('seeds', 5, 'How many seeds.')
BITS = flags.DEFINE_multi_integer('bits', [2, 3], 'Bits per weight.')

INPUTS, HIDDEN, CLASSES = 16, 64, 4
BATCH = 256
FLOAT_STEPS, STEPS = 4000, 1200  # 30%
FLOAT_PEAK, PEAK = 5e-3, 4e-3
# The best of a few tried on seed 0, at 3 bits, of this task or of variants with
# more classes or units: 2, 4, 8 (flow), 0.1, 1, 4 (loss); 20, 100, 400 and a
# projection every 10, 50, 100 steps (ADMM); snaps every 100 to 450 steps.
FLOW_PULL, LOSS_PULL, ADMM_PULL = 8.0, 1.0, 100.0
SNAP_EVERY = 300


class Task(NamedTuple):
  """Points in a cube, labeled by a random network."""

  x_NxI: jax.Array
  y_N: jax.Array
  x_test_MxI: jax.Array
  y_test_M: jax.Array


def make_task(seed: int, train: int = 20_000, test: int = 20_000) -> Task:
  """Returns a task whose classes are about equally frequent.

  Args:
    seed: of the points and of the network that labels them.
    train: training points.
    test: test points.

  Returns:
    The Task.
  """
  rng = np.random.default_rng(seed)
  x = rng.uniform(-1, 1, (train + test, INPUTS)).astype(np.float32)
  first = rng.normal(size=(INPUTS, 8))
  scores = np.tanh(x @ first) @ rng.normal(size=(8, CLASSES))
  y = np.argmax((scores - scores.mean(0)) / scores.std(0), axis=1)
  parts = x[:train], y[:train], x[train:], y[train:]
  return Task(*map(jnp.asarray, parts))


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


@jax.jit
def accuracy(params: Any, task: Task) -> jax.Array:
  """Returns the share of test points that get their label."""
  found = jnp.argmax(logits(params, task.x_test_MxI), axis=-1)
  return jnp.mean(found == task.y_test_M)


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


def methods(bits: int) -> dict[str, quantizers.Quantizer]:
  """Returns the methods to compare, before the final phase goes around them.

  Args:
    bits: per weight, all kernels.
  """
  fixed = quantizers.centroids(bits)
  rate = schedule(STEPS)

  def pull(total):
    return quantizers.pressure_schedule(total, STEPS, rate)

  def snaps(quantizer):
    return quantizers.hard_compressor(quantizer, SNAP_EVERY, PEAK)

  return {
    'centroids, snapped at the end': fixed,
    'hard compressor': snaps(fixed),
    'hard compressor in the loss': quantizers.loss_at_codes(fixed, 5),
    'penalty in the loss': quantizers.mracos(
      bits, pressure=pull(LOSS_PULL), coupling='loss'
    ),
    'penalty in the loss + snaps': quantizers.s8bqat(
      bits,
      total_steps=STEPS,
      learning_rate=rate,
      total_pull=LOSS_PULL,
      snap_every=SNAP_EVERY,
      coupling='loss',
    ),
    'flow': quantizers.mracos(bits, pressure=pull(FLOW_PULL)),
    'flow, power 0': quantizers.mracos(
      bits, pressure=pull(FLOW_PULL), power=0.0
    ),
    'flow + snaps': quantizers.s8bqat(
      bits,
      total_steps=STEPS,
      learning_rate=rate,
      total_pull=FLOW_PULL,
      snap_every=SNAP_EVERY,
    ),
    'straight-through': quantizers.straight_through(fixed),
    'uniform straight-through': quantizers.uniform(
      bits, scale=quantizers.mse_scale, refit_every=0
    ),
    'acosr, flow': quantizers.acosr(bits, pressure=pull(FLOW_PULL)),
    'gq': quantizers.gq(bits, total_steps=STEPS),
    'admm': quantizers.admm(bits, rho=pull(ADMM_PULL), every=10),
  }


def main(argv: list[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f'unexpected arguments {argv[1:]}')
  seeds = range(SEEDS.value)
  tasks = [make_task(seed) for seed in seeds]
  rows: list[dict[str, Any]] = []

  def report(method, bits, seed, params, **metrics):
    found = float(accuracy(params, tasks[seed]))
    metrics = {'accuracy': found, **metrics}
    rows.append(
      {
        'system': 'toy',
        'method': method,
        'bits': bits,
        'seed': seed,
        'metrics': metrics,
      }
    )
    logging.info('%s, %d bits, seed %d: %.4f', method, bits, seed, found)

  train = trainer(None, FLOAT_STEPS, FLOAT_PEAK)
  floats = [train(tasks[s], init_params(s), s)[0] for s in seeds]
  train = trainer(None, STEPS)
  for s in seeds:
    report('float', 32, s, floats[s])
    report('float, continued', 32, s, train(tasks[s], floats[s], s)[0])
  for bits in BITS.value:
    for s in seeds:
      rounded = quantize_once(quantizers.centroids(bits), floats[s])
      report('post-training', bits, s, qtensor.decode(rounded))
    for name, method in methods(bits).items():
      quantizer = quantizers.with_final_phase(method, STEPS)
      train = trainer(quantizer, STEPS)
      encode = jax.jit(quantizer.encode)
      for s in seeds:
        params, state = train(tasks[s], floats[s], s)
        report(name, bits, s, qtensor.decode(encode(params, state)))

  path = results.write('toy_methods', rows, steps=STEPS)
  print(results.table(means(rows)))
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
