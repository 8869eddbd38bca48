"""Every way to train towards centroids, on a toy classification task.

  python -m experiments.toy_methods

One float network per seed; each method fine-tunes it for the same steps on the
same batches with the same learning rate and final phase. Accuracy is that of
what ships: decode(encode(params)). Writes experiments/results/toy_methods.json.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags

from s8bqat_jax import quantizers

SEEDS = flags.DEFINE_integer('seeds', 5, 'How many seeds.')
BITS = flags.DEFINE_multi_integer('bits', [2, 3], 'Bits per weight.')

INPUTS, HIDDEN, CLASSES = 16, 32, 8
BATCH = 256
FLOAT_STEPS, STEPS = 3000, 900
PEAK = 2e-3


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
  x, y = jnp.asarray(x), jnp.asarray(y)
  return Task(x[:train], y[:train], x[train:], y[train:])


def init_params(seed: int) -> dict[str, dict[str, jax.Array]]:
  """Returns a perceptron with two hidden layers, about 1,900 weights."""
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


def train(
  task: Task,
  params: Any,
  quantizer: quantizers.Quantizer | None,
  steps: int,
  seed: int,
  peak: float = PEAK,
) -> tuple[Any, quantizers.State]:
  """Trains a network, all steps in one compiled scan.

  Args:
    task: what to learn.
    params: where to start.
    quantizer: the method; None is floating point.
    steps: how many.
    seed: of the batches.
    peak: highest learning rate.

  Returns:
    (params, quantizer state) at the end.
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
  def run(state, task):
    def one(state, key):
      rows = jax.random.randint(key, (BATCH,), 0, len(task.y_N))
      return step.update(state, (task.x_NxI[rows], task.y_N[rows]))

    keys = jax.random.split(jax.random.key(1000 + seed), steps)
    return jax.lax.scan(one, state, keys)[0]

  state = run(step.init(jax.tree.map(jnp.copy, params), seed), task)
  return state.params, state.quantizer
