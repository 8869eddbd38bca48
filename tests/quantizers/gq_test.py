"""GQ: the mu-law, the soft choice, how it hardens, what ships."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from s8bqat_jax import quantizers
from s8bqat_jax.artifacts import qtensor
from s8bqat_jax.quantizers.gq import compand, expand

STEPS = 10
W = {
  'w': jnp.asarray(np.random.default_rng(0).normal(size=(30, 20)), 'float32')
}


def ctx(step):
  return quantizers.Ctx(jnp.int32(step), jax.random.key(0), jnp.float32(0.1))


def test_mu_law_and_its_inverse():
  x = jnp.linspace(-1.2, 1.2, 101)
  y = compand(x, 255.0)
  np.testing.assert_allclose(
    y, np.sign(x) * np.log(1 + 255 * np.abs(x)) / np.log(256), atol=1e-6
  )
  np.testing.assert_allclose(expand(y, 255.0), x, atol=1e-6)
  np.testing.assert_allclose(compand(jnp.array([-1.0, 0, 1]), 7.0), [-1, 0, 1])


@pytest.fixture(scope='module')
def fitted():
  quantizer = quantizers.gq(3, total_steps=STEPS)
  return quantizer, quantizer.init(W)


def test_soft_view_is_the_softmax_over_all_centroids(fitted):
  """Against a sum over every centroid in float64, once it is a bit hard."""
  quantizer, state = fitted
  view = jax.jit(quantizer.views)
  c = np.asarray(state.learned['w'], np.float64)
  unit = float(state.carried['w'])
  book = quantizer.encode(W, state)['w']
  c = compand(
    np.asarray(book.codebook, np.float64) * float(book.scale) / unit, 255.0
  )
  c = np.asarray(c, np.float64)
  y = np.asarray(compand(np.asarray(W['w'], np.float64) / unit, 255.0))
  for step in (4, 6):
    a = 2.0 * 100.0 ** (step / 8) / ((c[-1] - c[0]) / 7)
    p = np.exp(-a * np.abs(y[..., None] - c))
    p /= p.sum(-1, keepdims=True)
    want = np.asarray(expand(p @ c, 255.0)) * unit
    got = view(W, state, ctx(step))['main']['w']
    # The centroids beyond the nearest four weigh next to nothing here.
    np.testing.assert_allclose(got, want, atol=2e-3 * unit)


def test_hardens_into_what_ships(fitted):
  quantizer, state = fitted
  shipped = qtensor.decode(quantizer.encode(W, state))['w']
  view = jax.jit(quantizer.views)
  off = [
    np.median(np.abs(view(W, state, ctx(step))['main']['w'] - shipped))
    for step in (0, 4, 8, 9)
  ]
  assert off[0] > off[1] > off[2] == off[3]
  assert off[2] < 1e-5


def test_codes_are_nearest_in_the_companded_space(fitted):
  quantizer, state = fitted
  q = qtensor.check(quantizer.encode(W, state)['w'])
  assert q.codebook.dtype == jnp.int8 and q.levels == 8
  unit = float(state.carried['w'])
  c = compand(q.codebook.astype(jnp.float32) * q.scale / unit, 255.0)
  y = compand(W['w'] / unit, 255.0)
  distance = np.abs(np.asarray(y)[..., None] - np.asarray(c))
  chosen = np.take_along_axis(distance, np.asarray(q.codes)[..., None], -1)
  np.testing.assert_allclose(chosen[..., 0], distance.min(-1), atol=1e-6)


def test_centroids_learn_and_follow_the_gradient(fitted):
  quantizer, state = fitted

  shipped = quantizer.encode(W, state)
  seated = qtensor.decode(shipped)

  def loss(learned):
    seen = quantizer.views(seated, state._replace(learned=learned), ctx(9))
    return jnp.sum(seen['main']['w'])

  grad = jax.jit(jax.grad(loss))(state.learned)['w']
  # Once hard, raising a centroid raises each weight that sits on it, by the
  # slope of the expansion there.
  c = np.asarray(state.learned['w'], np.float64)
  count = np.bincount(np.asarray(shipped['w'].codes).ravel(), minlength=8)
  slope = np.log(256) * np.exp(np.abs(c) * np.log(256)) / 255
  want = count * slope * float(state.carried['w'])
  np.testing.assert_allclose(grad, want, rtol=0.1)


def test_refuses_bad_arguments():
  with pytest.raises(ValueError, match='total_steps'):
    quantizers.gq(3, total_steps=0)
  with pytest.raises(ValueError, match='hardness'):
    quantizers.gq(3, total_steps=9, hardness=(0.0, 3.0))


@pytest.mark.parametrize('function', [compand, expand])
def test_zero_weights_have_the_slope_of_their_neighbors(function):
  slope = jax.vmap(jax.grad(lambda x: function(x, 255.0)))
  at_zero, near = slope(jnp.array([0.0, 1e-7]))
  np.testing.assert_allclose(at_zero, near, rtol=1e-3)
