"""Snapping: when, what, whose moments; the warning; the loss at the codes."""

import dataclasses
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from s8bqat_jax import quantizers
from s8bqat_jax.artifacts import qtensor
from tests.quantizers.quick import even

BASE = quantizers.centroids(2, fit=even)


def make_params():
  rng = np.random.default_rng(0)
  return {
    'a': {'kernel': jnp.asarray(rng.normal(size=(6, 4)), jnp.float32)},
    'b': {'bias': jnp.ones(4)},
  }


def ctx(step):
  return quantizers.Ctx(jnp.int32(step), jax.random.key(0), jnp.float32(0.1))


def test_overwrites_with_what_ships_every_n_steps_only():
  quantizer = quantizers.hard_compressor(BASE, 3, peak_learning_rate=1.0)
  params = make_params()
  state = quantizer.init(params)
  shipped = qtensor.decode(quantizer.encode(params, state))
  update = jax.jit(quantizer.after_update)
  for step in range(7):
    new, _, moved = update(params, state, ctx(step))
    snaps = step in (2, 5)
    assert bool(moved['a']['kernel']) == snaps
    assert not moved['b']['bias']
    want = shipped if snaps else params
    np.testing.assert_array_equal(new['a']['kernel'], want['a']['kernel'])
    np.testing.assert_array_equal(new['b']['bias'], params['b']['bias'])


def test_clears_first_moments_of_snapped_tensors_and_restarts_averaging():
  quantizer = quantizers.hard_compressor(BASE, 2, peak_learning_rate=1.0)
  loss = quantizers.on_main(
    lambda p, batch, key: (
      jnp.sum((p['a']['kernel'] * batch) ** 2) + jnp.sum(p['b']['bias'] ** 2),
      {},
    )
  )
  step = quantizers.make_step(
    loss,
    optax.adam(0.1),
    quantizer,
    learning_rate=0.1,
    average_decay=0.9,
  )
  state = step.init(make_params())
  update = jax.jit(step.update)
  state, _ = update(state, jnp.ones((6, 4)))
  assert np.all(state.opt_state[0].mu['a']['kernel'] != 0)
  second = state.opt_state[0].nu['a']['kernel']
  state, _ = update(state, jnp.ones((6, 4)))
  adam = state.opt_state[0]
  assert not np.any(adam.mu['a']['kernel'])
  assert np.all(adam.mu['b']['bias'] != 0)
  assert np.all(adam.nu['a']['kernel'] > 0.9 * second)
  np.testing.assert_array_equal(
    state.average['a']['kernel'], state.params['a']['kernel']
  )
  assert np.any(state.average['b']['bias'] != state.params['b']['bias'])


def steps_until_a_code_changes(every, rate):
  """Adam descends steadily; returns whether any code ever changed."""
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    quantizer = quantizers.hard_compressor(BASE, every, rate)
    loss = quantizers.on_main(lambda p, *_: (jnp.sum(p['a']['kernel']), {}))
    step = quantizers.make_step(
      loss, optax.adam(rate), quantizer, learning_rate=rate
    )
    params = make_params()
    state = step.init(params)
  first = quantizer.encode(params, state.quantizer)['a']['kernel'].codes
  # From the centroids on: the first snap removes where the weights started.
  params = qtensor.decode(quantizer.encode(params, state.quantizer))
  state = state._replace(params=params)
  update = jax.jit(step.update)
  for _ in range(4 * every):
    state, _ = update(state, None)
  last = quantizer.encode(state.params, state.quantizer)['a']['kernel'].codes
  return np.any(np.asarray(first) != np.asarray(last))


def test_warns_exactly_when_no_weight_can_change_its_code():
  params = make_params()
  region = 2 / 3 * float(jnp.max(jnp.abs(params['a']['kernel'])))
  for every, reaches in ((8, True), (3, False)):
    rate, needed = region / 2 / 4.5, 5
    with warnings.catch_warnings(record=True) as caught:
      warnings.simplefilter('always')
      quantizers.hard_compressor(BASE, every, rate).init(params)
    assert bool(caught) == (not reaches)
    if caught:
      assert 'a/kernel' in str(caught[0].message)
      assert f'Snap every {needed} steps' in str(caught[0].message)
    assert steps_until_a_code_changes(every, rate) == reaches


def test_init_is_silent_and_traceable_under_jit():
  quantizer = quantizers.hard_compressor(BASE, 1, peak_learning_rate=1e-9)
  with warnings.catch_warnings():
    warnings.simplefilter('error')
    jax.jit(quantizer.init)(make_params())


def test_loss_at_codes_sees_the_codes_every_nth_step():
  quantizer = quantizers.loss_at_codes(BASE, 4)
  params = make_params()
  state = quantizer.init(params)
  shipped = qtensor.decode(quantizer.encode(params, state))

  @jax.jit
  def both(params, ctx):
    def loss(params):
      seen = quantizer.views(params, state, ctx)['main']['a']['kernel']
      return jnp.sum(seen**2) / 2, seen

    return jax.grad(loss, has_aux=True)(params)

  for step in range(8):
    grad, seen = both(params, ctx(step))
    want = (shipped if step in (3, 7) else params)['a']['kernel']
    np.testing.assert_array_equal(seen, want)
    # The gradient found at what was seen moves the float weights.
    np.testing.assert_array_equal(grad['a']['kernel'], want)


def test_refuses_no_period():
  for wrap in (
    lambda every: quantizers.hard_compressor(BASE, every, 1.0),
    lambda every: quantizers.loss_at_codes(BASE, every),
  ):
    with pytest.raises(ValueError, match='every'):
      wrap(0)


def test_loss_at_codes_refuses_several_branches():
  several = dataclasses.replace(
    BASE, views=lambda params, state, ctx: {'main': params, 'low': params}
  )
  params = make_params()
  wrapped = quantizers.loss_at_codes(several, 2)
  with pytest.raises(ValueError, match='this one has main, low'):
    wrapped.views(params, wrapped.init(params), ctx(0))
