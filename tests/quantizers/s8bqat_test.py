"""S8BQAT is its parts: the flow at every step, the snap at every N-th."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from s8bqat_jax import quantizers
from s8bqat_jax.artifacts import qtensor

W = {
  'w': jnp.asarray(np.random.default_rng(0).normal(size=(40, 10)), 'float32'),
  'b': jnp.ones(3),
}


def test_flows_at_every_step_and_snaps_at_every_nth():
  rate = optax.cosine_decay_schedule(0.5, 12)
  run = {'total_steps': 12, 'learning_rate': rate}
  whole = quantizers.s8bqat(
    3, total_pull=2.0, every=5, reading='overwrite', **run
  )
  pressure = quantizers.pressure_schedule(2.0, 12, rate)
  flow = quantizers.mracos(3, pressure=pressure)
  updates = jax.jit(whole.after_update), jax.jit(flow.after_update)
  params, state = W, whole.init(W)
  for step in range(12):
    ctx = quantizers.Ctx(jnp.int32(step), jax.random.key(0), rate(step))
    (new, _, moved), (flowed, _, _) = (u(params, state, ctx) for u in updates)
    snaps = step in (4, 9)
    assert bool(moved['w']) == snaps and not moved['b']
    if snaps:
      flowed = qtensor.decode(flow.encode(flowed, state))
    np.testing.assert_array_equal(new['w'], flowed['w'])
    assert snaps or np.any(new['w'] != params['w']) or step > 4
    params = new
    # A task that pushes, so that there is something to pull back.
    params = {**params, 'w': params['w'] + 0.01 * jnp.sin(9.0 * W['w'])}


def test_reads_the_peak_of_the_schedule_for_its_warning(recwarn):
  rate = optax.warmup_cosine_decay_schedule(0.0, 1e-5, 4, 12)
  quantizers.s8bqat(
    3, total_steps=12, learning_rate=rate, every=5, reading='overwrite'
  ).init(W)
  assert any('learning rate 1e-05' in str(w.message) for w in recwarn)


def test_the_loss_sees_codes_and_the_weights_flow_towards_them():
  run = {'total_steps': 12, 'learning_rate': 0.5}
  whole = quantizers.s8bqat(3, **run)
  pressure = quantizers.pressure_schedule(4.0, 12, 0.5)
  flow = quantizers.mracos(3, pressure=pressure)
  state = whole.init(W)
  shipped = qtensor.decode(whole.encode(W, state))
  for step in range(3):
    ctx = quantizers.Ctx(jnp.int32(step), jax.random.key(0), jnp.float32(0.5))
    view = whole.views(W, state, ctx)[quantizers.MAIN]
    np.testing.assert_array_equal(view['w'], shipped['w'])
    new, *_ = whole.after_update(W, state, ctx)
    flowed, *_ = flow.after_update(W, state, ctx)
    np.testing.assert_array_equal(new['w'], flowed['w'])
    assert np.any(new['w'] != W['w']) and np.any(new['w'] != shipped['w'])


def test_an_unknown_reading_is_an_error():
  with pytest.raises(ValueError, match="reading must be 'loss' or 'overwrite'"):
    quantizers.s8bqat(4, total_steps=9, learning_rate=1.0, reading='snap')


def test_a_training_without_steps_is_an_error():
  with pytest.raises(ValueError, match='total_steps must be at least 1'):
    quantizers.s8bqat(4, total_steps=0, learning_rate=1e-3)
