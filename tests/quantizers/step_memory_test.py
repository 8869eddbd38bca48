"""make_step: moments and averages, what is kept of the steps before."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from s8bqat_jax import quantizers
from s8bqat_jax.quantizers import State, make_step, on_main
from tests.quantizers import linear

OPTIMIZERS = {
  'adam': optax.adam(0.1),
  'adamw': optax.adamw(0.1),
  'momentum': optax.sgd(0.1, momentum=0.9),
  'lion': optax.lion(0.1),
  'adafactor': optax.adafactor(0.1, momentum=0.9, min_dim_size_to_factor=1),
  'chain': optax.chain(optax.clip_by_global_norm(9.0), optax.adam(0.1)),
  'inject_hyperparams': optax.inject_hyperparams(optax.adam)(0.1),
  'MultiSteps': optax.MultiSteps(optax.adam(0.1), 1),
  'masked': optax.masked(optax.adam(0.1), {'a': True, 'b': True}),
  'partition': optax.partition(
    {'one': optax.adam(0.1), 'two': optax.sgd(0.1, momentum=0.9)},
    {'a': 'one', 'b': 'two'},
  ),
}


def _moments(opt_state, kind):
  """{path: array} of the state's moments of one kind."""
  leaves = jax.tree_util.tree_leaves_with_path(opt_state)
  return {
    jax.tree_util.keystr(path): leaf
    for path, leaf in leaves
    if any(getattr(entry, 'name', '') in kind for entry in path)
  }


@pytest.mark.parametrize('optimizer', OPTIMIZERS)
def test_first_moments_of_moved_weights_are_cleared(optimizer):
  def jump(w, state, spec, ctx):
    moved = jnp.array(w.size == 2) & (ctx.step == 1)  # 'a', second step
    return w, state, moved

  tx = OPTIMIZERS[optimizer]
  grads = jax.tree.map(lambda g: g + 1, linear.GRADS)
  states = []
  for member in (linear.member(after_update=jump), None):
    step = make_step(on_main(linear.loss), tx, member, learning_rate=0.1)
    state = step.init(linear.PARAMS)
    for _ in range(2):
      state, _ = step.update(state, grads)
    states.append(state.opt_state)
  jumped, calm = (_moments(s, ('mu', 'trace', 'ema')) for s in states)
  assert any("['a']" in path for path in jumped)
  for path, moment in jumped.items():
    assert np.any(calm[path])
    if "['a']" in path:
      assert not np.any(moment)
    else:
      np.testing.assert_array_equal(moment, calm[path])
  second, calm = (_moments(s, ('nu', 'v', 'v_row', 'v_col')) for s in states)
  jax.tree.map(np.testing.assert_array_equal, second, calm)


def test_moved_may_be_said_element_by_element():
  def jump(w, state, spec, ctx):
    return w, state, jnp.arange(w.size).reshape(w.shape) == 0

  step = make_step(
    on_main(linear.loss),
    optax.sgd(0.1, momentum=0.9),
    linear.member(after_update=jump),
    learning_rate=0.1,
  )
  grads = {'a': jnp.array([[1.0, 2.0]]), 'b': jnp.array([[3.0]])}
  state, _ = step.update(step.init(linear.PARAMS), grads)
  np.testing.assert_array_equal(state.opt_state[0].trace['a'], [[0.0, 2.0]])


def test_the_average_warms_up_and_starts_again_where_weights_moved():
  def jump(w, state, spec, ctx):
    moved = jnp.array(w.size == 2) & (ctx.step == 4)
    return jnp.where(moved, 50.0, w), state, moved

  step = make_step(
    on_main(linear.loss),
    optax.sgd(0.1),
    linear.member(after_update=jump),
    learning_rate=0.1,
    average_decay=0.3,
  )
  update = jax.jit(step.update)
  state = step.init(linear.PARAMS)
  average = {n: np.asarray(w, np.float64) for n, w in linear.PARAMS.items()}
  age = dict.fromkeys(linear.PARAMS, 0)
  for i in range(8):
    state, _ = update(state, linear.GRADS)
    for name, w in state.params.items():
      decay = min(0.3, (1 + age[name]) / (10 + age[name]))
      w = np.asarray(w, np.float64)
      average[name] = decay * average[name] + (1 - decay) * w
      age[name] += 1
      if name == 'a' and i == 4:
        average[name], age[name] = w, 0
      np.testing.assert_allclose(state.average[name], average[name], rtol=1e-5)


def test_a_slow_average_of_bfloat16_params_moves():
  params = {'a': jnp.ones((1, 2), jnp.bfloat16)}
  step = make_step(
    on_main(linear.loss),
    optax.sgd(1.0),
    learning_rate=1.0,
    average_decay=0.9999,
  )
  state = step.init(params)
  grads = {'a': jnp.full((1, 2), -0.5, jnp.bfloat16)}
  state = state._replace(
    average_age=jax.tree.map(lambda age: age + 10**6, state.average_age)
  )
  state, _ = jax.jit(step.update)(state, grads)
  assert state.average['a'].dtype == jnp.float32
  np.testing.assert_allclose(state.average['a'], 1 + 0.5e-4, rtol=1e-6)


def test_what_is_learned_is_averaged_beside_the_weights():
  def jump(w, state, spec, ctx):
    return w, state, ctx.step == 4

  member = linear.member(
    init=lambda w, spec: State(jnp.ones(()), jnp.zeros((), jnp.int32)),
    view=lambda w, state, spec, ctx: w * state.learned,
    after_update=jump,
  )
  step = make_step(
    on_main(linear.loss),
    optax.sgd(0.1),
    member,
    learning_rate=0.1,
    learned_tx=optax.sgd(0.05),
    average_decay=0.3,
  )
  update, state = jax.jit(step.update), step.init(linear.PARAMS)
  average, age = np.ones(()), 0
  for i in range(7):
    state, _ = update(state, linear.GRADS)
    learned = np.asarray(state.quantizer.learned['a'], np.float64)
    decay = min(0.3, (1 + age) / (10 + age))
    average, age = decay * average + (1 - decay) * learned, age + 1
    if i == 4:
      average, age = learned, 0
    params, own = quantizers.averaged(state)
    np.testing.assert_allclose(own.learned['a'], average, rtol=1e-5)
    np.testing.assert_array_equal(params['a'], state.average['a'])
  assert own.learned['a'] != state.quantizer.learned['a']
  assert own.carried is state.quantizer.carried


def test_without_averaging_the_latest_is_what_ships():
  step = make_step(
    on_main(linear.loss),
    optax.sgd(0.1),
    quantizers.learnable(2),
    learning_rate=0.1,
  )
  state = step.init(linear.PARAMS)
  params, own = quantizers.averaged(state)
  assert params is state.params and own is state.quantizer


def test_averages_come_in_the_dtype_of_the_params():
  params = {'a': jnp.ones((1, 2), jnp.bfloat16)}
  step = make_step(
    on_main(linear.loss), optax.sgd(0.1), learning_rate=0.1, average_decay=0.9
  )
  average, _ = quantizers.averaged(step.init(params))
  assert average['a'].dtype == jnp.bfloat16
