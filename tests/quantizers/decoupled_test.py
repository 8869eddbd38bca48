"""The optax form: same pull as by hand, same method as make_step."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from s8bqat_jax import quantizers
from s8bqat_jax.quantizers import State, lift_tensor
from s8bqat_jax.quantizers.codebook import on_grid
from s8bqat_jax.quantizers.uniform import max_scale, quantize

PARAMS = {'w': jnp.array([[1.0, -2.0]]), 'b': jnp.array([5.0])}
GRADS = {'w': jnp.array([[3.0, 4.0]]), 'b': jnp.array([1.0])}


def _method(**functions):
  return lift_tensor(
    8,
    init=lambda w, spec: State(carried=jnp.zeros((), jnp.int32)),
    quantize=lambda w, state, spec: quantize(w, max_scale(w, 256), 256),
    **functions,
  )


def test_the_penalty_is_decoupled_from_the_optimizer():
  method = _method(penalty=lambda w, state, spec, ctx: 0.5 * jnp.sum(w * w))
  tx = optax.chain(optax.adam(0.1), quantizers.decoupled_penalty(method, 0.1))
  plain = optax.adam(0.1)
  updates, _ = tx.update(GRADS, tx.init(PARAMS), PARAMS)
  expected, _ = plain.update(GRADS, plain.init(PARAMS), PARAMS)
  np.testing.assert_allclose(
    updates['w'], expected['w'] - 0.1 * PARAMS['w'], rtol=1e-5
  )
  np.testing.assert_allclose(updates['b'], expected['b'], rtol=1e-5)


def test_updates_of_the_method_and_schedules_pass_through():
  rate = optax.linear_schedule(0.0, 1.0, 10)

  def after_update(w, state, spec, ctx):
    w = w + ctx.learning_rate + ctx.step
    return w, state._replace(carried=state.carried + 1), jnp.array(True)

  tx = quantizers.decoupled_penalty(_method(after_update=after_update), rate)
  state, params = tx.init(PARAMS), PARAMS
  update = jax.jit(tx.update)
  for i in range(3):
    updates, state = update(GRADS, state, params)
    expected = GRADS['w'] + 0.1 * i + i
    np.testing.assert_allclose(updates['w'], expected, rtol=1e-5)
  assert state.step == 3 and state.quantizer.carried['w'] == 3


def test_it_does_what_make_step_does():
  rate = 0.05
  method = quantizers.mracos(
    2, pressure=2.0, fit=lambda w, levels: _four_centroids(w)
  )
  rng = np.random.default_rng(0)
  params = {'w': jnp.asarray(rng.normal(size=(8, 8)), jnp.float32)}
  grads = {'w': jnp.asarray(rng.normal(size=(8, 8)), jnp.float32)}
  step = quantizers.make_step(
    quantizers.on_main(lambda p, g, key: (jnp.sum(p['w'] * g['w']), {})),
    optax.adam(rate),
    method,
    learning_rate=rate,
  )
  tx = optax.chain(optax.adam(rate), quantizers.decoupled_penalty(method, rate))
  ours, opt_state = params, tx.init(params)
  state = step.init(params)
  update, step_update = jax.jit(tx.update), jax.jit(step.update)
  for _ in range(4):
    updates, opt_state = update(grads, opt_state, ours)
    ours = optax.apply_updates(ours, updates)
    state, _ = step_update(state, grads)
  np.testing.assert_allclose(ours['w'], state.params['w'], atol=1e-6)


def _four_centroids(w):
  return on_grid(jnp.array([-1.5, -0.5, 0.5, 1.5]), jnp.float32(1.5 / 127))


def test_learned_state_and_missing_params_are_errors():
  tx = quantizers.decoupled_penalty(quantizers.learnable(2), 0.1)
  with pytest.raises(ValueError, match='make_step'):
    tx.init(PARAMS)
  tx = quantizers.decoupled_penalty(_method(), 0.1)
  with pytest.raises(ValueError, match='needs params'):
    tx.update(GRADS, tx.init(PARAMS))
