"""make_step: what one training step does, against arithmetic by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, PartitionSpec

from s8bqat_jax import quantizers
from s8bqat_jax.quantizers import State, make_step, on_main
from tests.quantizers import kinds, linear


def test_float_training_is_the_optimizer_alone():
  step = make_step(on_main(linear.loss), optax.sgd(0.1), learning_rate=0.1)
  state, metrics = jax.jit(step.update)(step.init(linear.PARAMS), linear.GRADS)
  for name in linear.PARAMS:
    np.testing.assert_allclose(
      state.params[name],
      linear.PARAMS[name] - 0.1 * linear.GRADS[name],
      rtol=1e-6,
    )
  assert metrics['loss'] == 15 and metrics['penalty'] == 0
  assert metrics['grad_norm'] == 5
  np.testing.assert_allclose(metrics['learning_rate'], 0.1)
  assert state.step == 1 and state.skipped == 0


def test_clipping_leaves_the_penalty_alone():
  pulled = linear.member(penalty=lambda w, state, spec, ctx: 7 * jnp.sum(w))
  step = make_step(
    on_main(linear.loss),
    optax.sgd(1.0),
    pulled,
    learning_rate=1.0,
    clip_norm=0.5,
  )
  state, metrics = jax.jit(step.update)(step.init(linear.PARAMS), linear.GRADS)
  for name in linear.PARAMS:
    expected = linear.PARAMS[name] - (linear.GRADS[name] / 10 + 7)
    np.testing.assert_allclose(state.params[name], expected, rtol=1e-6)
  assert metrics['penalty'] == 42
  assert metrics['grad_norm'] == 5  # before clipping, without the penalty


def test_a_gradient_within_the_norm_is_not_scaled():
  step = make_step(
    on_main(linear.loss), optax.sgd(1.0), learning_rate=1.0, clip_norm=5.5
  )
  state, _ = step.update(step.init(linear.PARAMS), linear.GRADS)
  np.testing.assert_allclose(state.params['b'], [[-1.0]])


def _learns(poison):
  """Learned and carried state, and a penalty that may be poisoned."""

  def penalty(w, state, spec, ctx):
    return jnp.where(ctx.step == 1, poison, 0.0) * jnp.sum(state.learned)

  return linear.member(
    init=lambda w, spec: State(jnp.ones(()), jnp.zeros((), jnp.int32)),
    view=lambda w, state, spec, ctx: w * state.learned,
    penalty=penalty,
    after_update=lambda w, state, spec, ctx: (
      w,
      state._replace(carried=state.carried + 1),
      jnp.array(False),
    ),
  )


@pytest.mark.parametrize('where', ['loss', 'gradient', 'penalty'])
def test_a_step_that_is_not_finite_changes_nothing_but_the_counters(where):
  def loss(params, batch, key):
    value, aux = linear.loss(params, batch, key)
    if where == 'gradient':  # an infinite slope where the value is finite
      value += jnp.sqrt(jnp.sum(params['b'] * batch['b'] * 0))
    return value, aux

  step = make_step(
    on_main(loss),
    optax.adam(0.1),
    _learns(jnp.nan if where == 'penalty' else 0.0),
    learning_rate=0.1,
    average_decay=0.9,
  )
  update = jax.jit(step.update)
  first = step.init(linear.PARAMS)
  if where == 'penalty':
    first, _ = update(first, linear.GRADS)
  batch = linear.GRADS
  if where == 'loss':
    batch = {'a': jnp.full((1, 2), jnp.nan), 'b': linear.GRADS['b']}
  skipped, metrics = update(first, batch)
  for field in ('params', 'quantizer', 'opt_state', 'average'):
    jax.tree.map(
      np.testing.assert_array_equal,
      getattr(skipped, field),
      getattr(first, field),
    )
  assert skipped.step == first.step + 1
  assert (skipped.skipped, skipped.skipped_in_a_row) == (1, 1)
  assert metrics['skipped'] == 1
  if where != 'gradient':
    healthy, _ = update(skipped, linear.GRADS)
    assert (healthy.skipped, healthy.skipped_in_a_row) == (1, 0)
    assert healthy.quantizer.carried['a'] == first.quantizer.carried['a'] + 1


def test_learned_state_has_an_optimizer_of_its_own():
  step = make_step(
    on_main(linear.loss),
    optax.adamw(0.1, weight_decay=100.0),
    _learns(0.0),
    learning_rate=0.1,
    learned_tx=optax.sgd(0.01),
  )
  state, _ = jax.jit(step.update)(step.init(linear.PARAMS), linear.GRADS)
  # d loss / d learned = <w, batch>; no weight decay touches it.
  np.testing.assert_allclose(state.quantizer.learned['a'], 1 - 0.01 * 3)
  np.testing.assert_allclose(state.quantizer.learned['b'], 1 - 0.01 * 12)


def test_views_and_penalty_share_a_key_and_the_loss_has_its_own():
  seen = []

  def spy(kind):
    def function(params, state, ctx):
      seen.append((kind, jax.random.key_data(ctx.key)))
      return {'main': params} if kind == 'views' else jnp.zeros(())

    return function

  def loss(params, batch, key):
    seen.append(('loss', jax.random.key_data(key)))
    return linear.loss(params, batch, key)

  member = quantizers.Quantizer(
    init=lambda params: State(),
    views=spy('views'),
    encode=lambda params, state: params,
    penalty=spy('penalty'),
  )
  step = make_step(on_main(loss), optax.sgd(0.1), member, learning_rate=0.1)
  with jax.disable_jit():
    state = step.init(linear.PARAMS, seed=5)
    for _ in range(2):
      state, _ = step.update(state, linear.GRADS)
  keys = [tuple(np.asarray(key)) for _, key in seen]
  views, own, penalty = keys[:3]
  assert views == penalty != own
  assert len(set(keys)) == 4  # two streams in each of two steps


def test_the_learning_rate_may_be_a_schedule():
  rate = optax.linear_schedule(0.0, 1.0, 10)
  step = make_step(on_main(linear.loss), optax.sgd(rate), learning_rate=rate)
  state = step.init(linear.PARAMS)
  for i in range(3):
    state, metrics = step.update(state, linear.GRADS)
    np.testing.assert_allclose(metrics['learning_rate'], i / 10, rtol=1e-6)


def test_after_a_skipped_step_the_learning_rate_is_still_the_optimizers():
  rate = optax.linear_schedule(1.0, 0.0, 10)
  step = make_step(on_main(linear.loss), optax.sgd(rate), learning_rate=rate)
  update, state = jax.jit(step.update), step.init(linear.PARAMS)
  poisoned = {'a': jnp.full((1, 2), jnp.nan), 'b': linear.GRADS['b']}
  for batch in (linear.GRADS, poisoned, poisoned, linear.GRADS, linear.GRADS):
    before = state.params['b']
    state, metrics = update(state, batch)
    taken = (before - state.params['b']) / linear.GRADS['b']
    if batch is linear.GRADS:
      np.testing.assert_allclose(taken, metrics['learning_rate'], rtol=1e-5)
  assert (state.step, state.skipped) == (5, 2)


def _regression(kind):
  apply = kinds.apply(kind)

  def loss(params, batch, key):
    del key
    return jnp.mean((apply(params, batch['x']) - batch['y']) ** 2), {}

  rng = np.random.default_rng(1)
  batch = {'x': rng.normal(size=(8, 16)), 'y': rng.normal(size=(8, 3))}
  batch = {name: jnp.asarray(x, jnp.float32) for name, x in batch.items()}
  step = make_step(
    on_main(loss),
    optax.adam(0.01),
    quantizers.learnable(3),
    learning_rate=0.01,
    average_decay=0.9,
  )
  return step, batch


def test_the_three_kinds_of_tree_train_alike():
  losses = {}
  for kind in kinds.KINDS:
    step, batch = _regression(kind)
    update, state = jax.jit(step.update), step.init(kinds.make(kind))
    losses[kind] = []
    for _ in range(5):
      state, metrics = update(state, batch)
      losses[kind].append(float(metrics['loss']))
    assert jax.tree.structure(state.params) == jax.tree.structure(
      kinds.make(kind)
    )
  assert losses['plain'][-1] < losses['plain'][0]
  np.testing.assert_allclose(losses['linen'], losses['plain'], rtol=1e-4)
  np.testing.assert_allclose(losses['nnx'], losses['plain'], rtol=1e-4)


def test_a_mesh_changes_layouts_and_not_results():
  step, batch = _regression('plain')
  update, params = jax.jit(step.update), kinds.make('plain')
  state = step.init(params)
  mesh = jax.make_mesh((8,), ('x',), axis_types=(AxisType.Auto,))

  def put(x):
    split = PartitionSpec('x') if x.shape[:1] == (16,) else PartitionSpec()
    return jax.device_put(x, jax.NamedSharding(mesh, split))

  spread = step.init(jax.tree.map(put, params))
  rows = jax.NamedSharding(mesh, PartitionSpec('x'))
  spread_batch = jax.tree.map(lambda x: jax.device_put(x, rows), batch)
  for _ in range(3):
    state, metrics = update(state, batch)
    spread, spread_metrics = update(spread, spread_batch)
  np.testing.assert_allclose(spread_metrics['loss'], metrics['loss'], rtol=1e-5)
  kernel = spread.params['dense']['kernel']
  assert not kernel.sharding.is_fully_replicated
  adam = spread.opt_state[0].mu['dense']['kernel']
  for other in (adam, spread.average['dense']['kernel']):
    assert other.sharding.is_equivalent_to(kernel.sharding, 2)


def test_a_float16_gradient_whose_square_overflows_is_no_reason_to_skip():
  params = jax.tree.map(lambda x: x.astype(jnp.float16), linear.PARAMS)
  step = make_step(
    on_main(linear.loss), optax.sgd(0.01), learning_rate=0.01, clip_norm=500.0
  )
  grads = jax.tree.map(lambda g: (g * 200).astype(jnp.float16), linear.GRADS)
  state, metrics = jax.jit(step.update)(step.init(params), grads)
  assert metrics['grad_norm'] == 1000.0 and not metrics['skipped']
  np.testing.assert_allclose(state.params['a'], [[-2.0, 2.0]], atol=0.01)


def test_a_number_among_the_params_is_trained_and_averaged():
  params = {'w': jnp.ones((4, 2)), 'temperature': 2.0}
  loss = lambda p, batch, key: (jnp.sum(batch @ p['w'] * p['temperature']), {})
  step = quantizers.make_step(
    quantizers.on_main(loss),
    optax.sgd(0.1),
    quantizers.uniform(4),
    learning_rate=0.1,
    average_decay=0.9,
  )
  state, _ = jax.jit(step.update)(step.init(params), jnp.ones((3, 4)))
  average, _ = quantizers.averaged(state)
  assert average['temperature'] < 2 and average['w'].shape == (4, 2)
