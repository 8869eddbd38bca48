"""LSQ: values, derivatives by formula, and a step that learns."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from s8bqat_jax import quantizers
from s8bqat_jax.artifacts import qtensor
from s8bqat_jax.quantizers import types
from s8bqat_jax.quantizers.learnable import quantized
from s8bqat_jax.quantizers.uniform import mse_scale

CTX = types.Ctx(jnp.int32(0), jax.random.key(0), jnp.float32(0.1))
GAUSS = np.random.default_rng(0).normal(size=(32, 8)).astype(np.float32)


@pytest.mark.parametrize('levels', [2, 3, 4, 256])
def test_derivatives_are_those_of_lsq(levels):
  scale, weight = np.float32(0.6), np.linspace(1, 2, GAUSS.size)
  weight = weight.reshape(GAUSS.shape).astype(np.float32)

  def total(w, s):
    return jnp.sum(weight * quantized(w, s, levels))

  by_w, by_s = jax.grad(total, (0, 1))(jnp.asarray(GAUSS), scale)
  np.testing.assert_array_equal(by_w, weight)
  low, high = (-1, 1) if levels == 2 else qtensor.uniform_range(levels)
  x = GAUSS.astype(np.float64) / scale
  if levels == 2:
    codes = np.where(x >= 0, 1, -1)
  else:
    codes = np.clip(np.round(x), low, high)
  outside = (x < low) | (x > high)
  expected = np.sum(weight * np.where(outside, codes, codes - x))
  expected /= np.sqrt(GAUSS.size * high)
  np.testing.assert_allclose(by_s, expected, rtol=1e-4)


def test_each_channel_sums_over_its_own_weights():
  scale = jnp.full((1, 8), 0.6)

  def slope(w, scale):
    return jax.grad(lambda s: jnp.sum(quantized(w, s, 4)))(scale)

  whole = slope(jnp.asarray(GAUSS), scale)
  for i in range(8):
    own = slope(jnp.asarray(GAUSS[:, i : i + 1]), jnp.full((1, 1), 0.6))
    np.testing.assert_allclose(whole[0, i], own[0, 0], rtol=1e-5)


def test_second_derivatives_exist():
  # Hessian products go through the view: forward over reverse must work.
  def loss(w):
    return jnp.sum(jnp.sin(quantized(w, jnp.float32(0.6), 4)))

  w = jnp.asarray(GAUSS)
  _, product = jax.jvp(jax.grad(loss), (w,), (jnp.ones_like(w),))
  expected = -jnp.sin(quantized(w, jnp.float32(0.6), 4))
  np.testing.assert_allclose(product, expected, rtol=1e-5)


@pytest.mark.parametrize('bits', [1, 'ternary', 2, 8])
def test_it_starts_at_the_least_squared_error(bits):
  member = quantizers.learnable(bits)
  params = {'w': jnp.asarray(GAUSS)}
  state = member.init(params)
  q = member.encode(params, state)['w']
  np.testing.assert_array_equal(q.scale, mse_scale(params['w'], q.levels))
  assert state.learned['w'] == 1


def test_the_step_learns_and_stays_positive():
  params = {'w': jnp.asarray(GAUSS)}
  # The task wants weights three times larger: only the step can follow. The
  # best factor is 1.6, for a larger step also sends more weights to zero.
  step = quantizers.make_step(
    quantizers.on_main(
      lambda p, batch, key: (jnp.mean((p['w'] - 3 * batch) ** 2), {})
    ),
    optax.sgd(0.0),
    quantizers.learnable('ternary'),
    learning_rate=0.0,
    learned_tx=optax.adam(0.05),
  )
  state = step.init(params)
  first = state.quantizer.carried['w']
  update = jax.jit(step.update)
  losses = []
  for _ in range(100):
    state, metrics = update(state, jnp.asarray(GAUSS))
    losses.append(float(metrics['loss']))
  assert 1.2 < state.quantizer.learned['w'] < 2.2
  assert losses[-1] < 0.95 * losses[0]
  assert state.quantizer.carried['w'] == first


def test_a_factor_that_turns_negative_still_gives_a_valid_tensor():
  member = quantizers.learnable(2)
  params = {'w': jnp.asarray(GAUSS)}
  state = member.init(params)
  for factor in (-0.5, 0.0):
    changed = state._replace(learned={'w': jnp.float32(factor)})
    qtensor.check(member.encode(params, changed)['w'])


@pytest.mark.parametrize('levels', [2, 3, 16])
def test_the_step_of_bfloat16_weights_gets_its_gradient(levels):
  rng = np.random.default_rng(0)
  w = jnp.asarray(rng.normal(size=(512, 512)), jnp.bfloat16)

  def total(scale, w):
    out = quantized(w, scale, levels)
    return jnp.sum((out * w).astype(jnp.float32))

  scale = mse_scale(w, levels)
  found = jax.grad(total)(scale, w)
  expected = jax.grad(total)(*(x.astype(jnp.float32) for x in (scale, w)))
  assert found.dtype == jnp.bfloat16
  # The dtype's own rounding; a sum over the weights in bfloat16 lost a fifth.
  np.testing.assert_allclose(float(found), expected, rtol=2**-6)
