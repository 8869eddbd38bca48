"""make_step: what one training step does, against arithmetic by hand."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import AxisType, PartitionSpec

from s8bqat_jax import quantizers
from s8bqat_jax.quantizers import State, lift_tensor, make_step, on_main
from s8bqat_jax.quantizers.uniform import max_scale, quantize
from tests.quantizers import kinds

PARAMS = {'a': jnp.array([[1.0, 2.0]]), 'b': jnp.array([[3.0]])}


def _member(rules=8, init=None, **functions):
  return lift_tensor(
    rules,
    init=init or (lambda w, spec: State(carried=max_scale(w, spec.levels))),
    quantize=lambda w, state, spec: quantize(w, max_scale(w, 256), 256),
    **functions,
  )


def _linear(params, batch, key):
  """A loss whose gradient is the batch itself."""
  del key
  terms = [jnp.sum(params[n] * g) for n, g in batch.items()]
  return sum(terms), {}


GRADS = {'a': jnp.array([[3.0, 0.0]]), 'b': jnp.array([[4.0]])}  # norm 5


def test_float_training_is_the_optimizer_alone():
  step = make_step(on_main(_linear), optax.sgd(0.1), learning_rate=0.1)
  state, metrics = jax.jit(step.update)(step.init(PARAMS), GRADS)
  for name in PARAMS:
    np.testing.assert_allclose(
      state.params[name], PARAMS[name] - 0.1 * GRADS[name], rtol=1e-6
    )
  assert metrics['loss'] == 15 and metrics['penalty'] == 0
  assert metrics['grad_norm'] == 5
  np.testing.assert_allclose(metrics['learning_rate'], 0.1)
  assert state.step == 1 and state.skipped == 0


def test_clipping_leaves_the_penalty_alone():
  pulled = _member(penalty=lambda w, state, spec, ctx: 7 * jnp.sum(w))
  step = make_step(
    on_main(_linear), optax.sgd(1.0), pulled, learning_rate=1.0, clip_norm=0.5
  )
  state, metrics = step.update(step.init(PARAMS), GRADS)
  for name in PARAMS:
    expected = PARAMS[name] - (GRADS[name] / 10 + 7)
    np.testing.assert_allclose(state.params[name], expected, rtol=1e-6)
  assert metrics['penalty'] == 42
  assert metrics['grad_norm'] == 5  # before clipping, without the penalty


def test_a_gradient_within_the_norm_is_not_scaled():
  step = make_step(
    on_main(_linear), optax.sgd(1.0), learning_rate=1.0, clip_norm=5.5
  )
  state, _ = step.update(step.init(PARAMS), GRADS)
  np.testing.assert_allclose(state.params['b'], [[-1.0]])


def _learns(poison):
  """Learned and carried state, and a penalty that may be poisoned."""

  def penalty(w, state, spec, ctx):
    return jnp.where(ctx.step == 1, poison, 0.0) * jnp.sum(state.learned)

  return _member(
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
    value, aux = _linear(params, batch, key)
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
  first = step.init(PARAMS)
  if where == 'penalty':
    first, _ = update(first, GRADS)
  batch = GRADS
  if where == 'loss':
    batch = {'a': jnp.full((1, 2), jnp.nan), 'b': GRADS['b']}
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
    healthy, _ = update(skipped, GRADS)
    assert (healthy.skipped, healthy.skipped_in_a_row) == (1, 0)
    assert healthy.quantizer.carried['a'] == first.quantizer.carried['a'] + 1


def test_learned_state_has_an_optimizer_of_its_own():
  step = make_step(
    on_main(_linear),
    optax.adamw(0.1, weight_decay=100.0),
    _learns(0.0),
    learning_rate=0.1,
    learned_tx=optax.sgd(0.01),
  )
  state, _ = step.update(step.init(PARAMS), GRADS)
  # d loss / d learned = <w, batch>; no weight decay touches it.
  np.testing.assert_allclose(state.quantizer.learned['a'], 1 - 0.01 * 3)
  np.testing.assert_allclose(state.quantizer.learned['b'], 1 - 0.01 * 12)


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
  grads = jax.tree.map(lambda g: g + 1, GRADS)
  states = []
  for member in (_member(after_update=jump), None):
    step = make_step(on_main(_linear), tx, member, learning_rate=0.1)
    state = step.init(PARAMS)
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
    on_main(_linear),
    optax.sgd(0.1, momentum=0.9),
    _member(after_update=jump),
    learning_rate=0.1,
  )
  grads = {'a': jnp.array([[1.0, 2.0]]), 'b': jnp.array([[3.0]])}
  state, _ = step.update(step.init(PARAMS), grads)
  np.testing.assert_array_equal(state.opt_state[0].trace['a'], [[0.0, 2.0]])


def test_the_average_warms_up_and_starts_again_where_weights_moved():
  def jump(w, state, spec, ctx):
    moved = jnp.array(w.size == 2) & (ctx.step == 4)
    return jnp.where(moved, 50.0, w), state, moved

  step = make_step(
    on_main(_linear),
    optax.sgd(0.1),
    _member(after_update=jump),
    learning_rate=0.1,
    average_decay=0.3,
  )
  update = jax.jit(step.update)
  state = step.init(PARAMS)
  average = {n: np.asarray(w, np.float64) for n, w in PARAMS.items()}
  age = dict.fromkeys(PARAMS, 0)
  for i in range(8):
    state, _ = update(state, GRADS)
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
    on_main(_linear),
    optax.sgd(1.0),
    learning_rate=1.0,
    average_decay=0.9999,
  )
  state = step.init(params)
  grads = {'a': jnp.full((1, 2), -0.5, jnp.bfloat16)}
  state = state._replace(
    average_age=jax.tree.map(lambda age: age + 10**6, state.average_age)
  )
  state, _ = step.update(state, grads)
  assert state.average['a'].dtype == jnp.float32
  np.testing.assert_allclose(state.average['a'], 1 + 0.5e-4, rtol=1e-6)


def test_views_and_penalty_share_a_key_and_the_loss_has_its_own():
  seen = []

  def spy(kind):
    def function(params, state, ctx):
      seen.append((kind, jax.random.key_data(ctx.key)))
      return {'main': params} if kind == 'views' else jnp.zeros(())

    return function

  def loss(params, batch, key):
    seen.append(('loss', jax.random.key_data(key)))
    return _linear(params, batch, key)

  member = quantizers.Quantizer(
    init=lambda params: State(),
    views=spy('views'),
    encode=lambda params, state: params,
    penalty=spy('penalty'),
  )
  step = make_step(on_main(loss), optax.sgd(0.1), member, learning_rate=0.1)
  with jax.disable_jit():
    state = step.init(PARAMS, seed=5)
    for _ in range(2):
      state, _ = step.update(state, GRADS)
  keys = [tuple(np.asarray(key)) for _, key in seen]
  views, own, penalty = keys[:3]
  assert views == penalty != own
  assert len(set(keys)) == 4  # two streams in each of two steps


def test_the_learning_rate_may_be_a_schedule():
  rate = optax.linear_schedule(0.0, 1.0, 10)
  step = make_step(on_main(_linear), optax.sgd(rate), learning_rate=rate)
  state = step.init(PARAMS)
  for i in range(3):
    state, metrics = step.update(state, GRADS)
    np.testing.assert_allclose(metrics['learning_rate'], i / 10, rtol=1e-6)


def test_after_a_skipped_step_the_learning_rate_is_still_the_optimizers():
  rate = optax.linear_schedule(1.0, 0.0, 10)
  step = make_step(on_main(_linear), optax.sgd(rate), learning_rate=rate)
  update, state = jax.jit(step.update), step.init(PARAMS)
  poisoned = {'a': jnp.full((1, 2), jnp.nan), 'b': GRADS['b']}
  for batch in (GRADS, poisoned, poisoned, GRADS, GRADS):
    before = state.params['b']
    state, metrics = update(state, batch)
    taken = (before - state.params['b']) / GRADS['b']
    if batch is GRADS:
      np.testing.assert_allclose(taken, metrics['learning_rate'], rtol=1e-5)
  assert (state.step, state.skipped) == (5, 2)


def test_what_is_learned_is_averaged_beside_the_weights():
  def jump(w, state, spec, ctx):
    return w, state, ctx.step == 4

  member = _member(
    init=lambda w, spec: State(jnp.ones(()), jnp.zeros((), jnp.int32)),
    view=lambda w, state, spec, ctx: w * state.learned,
    after_update=jump,
  )
  step = make_step(
    on_main(_linear),
    optax.sgd(0.1),
    member,
    learning_rate=0.1,
    learned_tx=optax.sgd(0.05),
    average_decay=0.3,
  )
  update, state = jax.jit(step.update), step.init(PARAMS)
  average, age = np.ones(()), 0
  for i in range(7):
    state, _ = update(state, GRADS)
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
    on_main(_linear), optax.sgd(0.1), quantizers.learnable(2), learning_rate=0.1
  )
  state = step.init(PARAMS)
  params, own = quantizers.averaged(state)
  assert params is state.params and own is state.quantizer


def test_averages_come_in_the_dtype_of_the_params():
  params = {'a': jnp.ones((1, 2), jnp.bfloat16)}
  step = make_step(
    on_main(_linear), optax.sgd(0.1), learning_rate=0.1, average_decay=0.9
  )
  average, _ = quantizers.averaged(step.init(params))
  assert average['a'].dtype == jnp.bfloat16


class _Nnx(nnx.Module):
  def __init__(self, rngs):
    self.dense = nnx.Linear(16, 6, rngs=rngs)
    self.head = nnx.Linear(6, 3, use_bias=False, rngs=rngs)

  def __call__(self, x):
    return self.head(jnp.tanh(self.dense(x)))


class _Linen(nn.Module):
  @nn.compact
  def __call__(self, x):
    x = nn.Dense(6, name='dense')(x)
    return nn.Dense(3, use_bias=False, name='head')(jnp.tanh(x))


def _apply(kind):
  if kind == 'linen':
    return _Linen().apply
  if kind == 'nnx':
    graph = nnx.graphdef(_Nnx(nnx.Rngs(0)))
    return lambda params, x: nnx.merge(graph, params)(x)

  def plain(params, x):
    x = jnp.tanh(x @ params['dense']['kernel'] + params['dense']['bias'])
    return x @ params['head']['kernel']

  return plain


def _regression(kind):
  apply = _apply(kind)

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
  params = jax.tree.map(lambda x: x.astype(jnp.float16), PARAMS)
  step = make_step(
    on_main(_linear), optax.sgd(0.01), learning_rate=0.01, clip_norm=500.0
  )
  grads = jax.tree.map(lambda g: (g * 200).astype(jnp.float16), GRADS)
  state, metrics = step.update(step.init(params), grads)
  assert metrics['grad_norm'] == 1000.0 and not metrics['skipped']
  np.testing.assert_allclose(state.params['a'], [[-2.0, 2.0]], atol=0.01)
