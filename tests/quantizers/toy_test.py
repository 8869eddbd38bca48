"""A small network really trains under S8BQAT and under ADMM."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from experiments import toy_methods as toy
from s8bqat_jax import quantizers
from s8bqat_jax.artifacts import qtensor
from s8bqat_jax.quantizers import tree as trees


@functools.cache
def task_and_float():
  task = toy.make_task(0)
  train = toy.trainer(None, toy.FLOAT_STEPS, toy.FLOAT_PEAK)
  return task, train(task, toy.init_params(0), 0)[0]


def finetune(quantizer):
  """Returns (accuracy of what ships, metrics, steps to the next centroid)."""
  task, params = task_and_float()
  params, state = toy.trainer(quantizer, toy.STEPS)(task, params, 0)
  encoded = jax.jit(quantizer.encode)(params, state)
  shipped = qtensor.decode(encoded)
  found = float(toy.accuracy(shipped, task))
  metrics = jax.jit(quantizer.metrics)(params, state)
  farthest = max(
    float(jnp.max(jnp.abs(params[n]['kernel'] - shipped[n]['kernel'])))
    / narrowest(encoded[n]['kernel'])
    for n in params
  )
  return found, metrics, farthest


def narrowest(q):
  """Returns the least distance between two centroids of a QTensor."""
  return float(q.scale) * np.diff(np.asarray(q.codebook, np.float64)).min()


def test_s8bqat_at_three_bits_ends_on_its_centroids_with_float_accuracy():
  task, params = task_and_float()
  in_float = float(toy.accuracy(params, task))
  assert in_float > 0.9

  found, metrics, farthest = finetune(toy.s8bqat(3))
  # Every weight is within a hundredth of a region of a centroid, and the
  # accuracy within half a point of float.
  assert farthest < 0.01
  assert metrics['locked'] > 0.9
  assert found > in_float - 0.005

  # Without penalty and compressor weights are anywhere in their regions, and
  # the snap at the end costs a point and more.
  found_without, _, farthest = finetune(quantizers.centroids(3))
  assert farthest > 0.4
  assert found_without < in_float - 0.01
  assert found_without < found - 0.0075


def test_admm_residuals_go_to_zero_on_the_toy():
  found, metrics, _ = finetune(toy.admm(3))
  assert metrics['primal'] < 0.005
  assert metrics['dual'] < 0.005
  task, params = task_and_float()
  assert found > float(toy.accuracy(params, task)) - 0.01


def test_every_method_of_the_comparison_is_a_quantizer():
  methods = toy.methods(3)
  assert len(methods) == 14
  params = toy.init_params(0)
  for name, quantizer in methods.items():
    state = jax.eval_shape(quantizer.init, params)
    shipped = jax.eval_shape(quantizer.encode, params, state)
    found = trees.quantized(shipped)
    assert set(found) == set(trees.weights(params)), name
    assert all(q.levels <= 8 for q in found.values()), name
