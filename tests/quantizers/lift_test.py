"""What a lifted method sees, and what becomes of the rest of the tree."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from s8bqat_jax import quantizers
from s8bqat_jax.artifacts import qtensor
from s8bqat_jax.quantizers import lift, types
from s8bqat_jax.quantizers import tree as trees
from s8bqat_jax.quantizers.rules import Rule
from s8bqat_jax.quantizers.uniform import max_scale, quantize
from tests.quantizers import kinds

CTX = types.Ctx(jnp.int32(3), jax.random.key(7), jnp.float32(0.1))
FIT = lambda w, spec: types.State(carried=max_scale(w, spec.levels))
CODE = lambda w, state, spec: quantize(w, state.carried, spec.levels)


@pytest.mark.parametrize('kind', kinds.KINDS)
def test_unselected_leaves_pass_through_every_function(kind):
  params = kinds.make(kind)
  quantizer = lift.lift_tensor(
    [Rule('head/.*', 4)],
    init=FIT,
    quantize=CODE,
    view=lambda w, state, spec, ctx: 2 * w,
    after_update=lambda w, state, spec, ctx: (3 * w, state, jnp.array(True)),
  )
  state = quantizer.init(params)
  old = trees.named(params)
  (seen,) = quantizer.views(params, state, CTX).values()
  new, _, moved = quantizer.after_update(params, state, CTX)
  for tree, factor in ((seen, 2), (new, 3)):
    assert jax.tree.structure(tree) == jax.tree.structure(params)
    leaves = trees.named(tree)
    np.testing.assert_array_equal(
      leaves['head/kernel'], factor * old['head/kernel']
    )
    np.testing.assert_array_equal(leaves['dense/kernel'], old['dense/kernel'])
  assert {n: bool(x) for n, x in trees.named(moved).items()} == {
    'dense/bias': False,
    'dense/kernel': False,
    'head/kernel': True,
  }
  encoded = trees.named(quantizer.encode(params, state))
  assert [n for n in encoded if qtensor.is_qtensor(encoded[n])] == [
    'head/kernel'
  ]


def test_only_init_and_quantize_are_needed():
  params = kinds.make('plain')
  quantizer = lift.lift_tensor(4, init=FIT, quantize=CODE)
  state = quantizer.init(params)
  assert quantizer.views(params, state, CTX) == {types.MAIN: params}
  assert quantizer.penalty(params, state, CTX) == 0
  new, new_state, moved = quantizer.after_update(params, state, CTX)
  assert (new, new_state) == (params, state)
  assert not any(jax.tree.leaves(moved))


def test_random_streams_differ_between_weights_and_follow_the_key():
  params = {'a': jnp.zeros((2, 2)), 'b': jnp.zeros((2, 2))}
  quantizer = lift.lift_tensor(
    4,
    init=FIT,
    quantize=CODE,
    view=lambda w, state, spec, ctx: w + jax.random.normal(ctx.key, w.shape),
  )
  state = quantizer.init(params)
  seen = quantizer.views(params, state, CTX)[types.MAIN]
  again = quantizer.views(params, state, CTX)[types.MAIN]
  assert not np.allclose(seen['a'], seen['b'])
  np.testing.assert_array_equal(seen['a'], again['a'])


def test_penalties_add_up_and_metrics_are_means_over_elements():
  params = {'a': jnp.full((2, 3), 1.0), 'b': jnp.full((1, 2), 5.0)}
  quantizer = lift.lift_tensor(
    4,
    init=FIT,
    quantize=CODE,
    penalty=lambda w, state, spec, ctx: jnp.sum(w),
    metrics=lambda w, state, spec: {'mean': jnp.mean(w)},
  )
  state = quantizer.init(params)
  assert quantizer.penalty(params, state, CTX) == 16
  assert quantizer.metrics(params, state)['mean'] == 2


def test_distance_is_relative_and_zero_for_a_tree_of_zeros():
  quantizer = lift.lift_tensor('ternary', init=FIT, quantize=CODE)
  # The step is 1: 0.25 rounds down, so a quarter of 17 / 16 is lost.
  params = {'a': jnp.array([[1.0, 0.25]])}
  distance = quantizer.metrics(params, quantizer.init(params))['distance']
  np.testing.assert_allclose(distance, (1 / 17) ** 0.5, rtol=1e-6)
  zeros = {'a': jnp.zeros((2, 2))}
  assert quantizer.metrics(zeros, quantizer.init(zeros))['distance'] == 0


def test_more_weights_than_an_int32_counts():
  half = jax.ShapeDtypeStruct((2**15, 2**15), jnp.bfloat16)
  params = {'a': half, 'b': half}
  quantizer = lift.lift_tensor(
    4,
    init=lambda w, spec: types.State(carried=max_scale(w, 16)),
    quantize=lambda w, state, spec: quantize(w, state.carried, 16),
    metrics=lambda w, state, spec: {'mean': jnp.mean(w)},
  )
  state = jax.eval_shape(quantizer.init, params)
  jax.eval_shape(quantizer.metrics, params, state)


def test_functions_over_all_weights_see_groups():
  params = {f'layer_{i}': {'k': jnp.full((2, 2), i + 1.0)} for i in range(3)}

  def init(weights, specs):
    tables = {}
    for name, w in weights.items():
      group = specs[name].group
      tables[group] = jnp.maximum(tables.get(group, 0), max_scale(w, 16))
    return types.State(carried=tables)

  quantizer = lift.lift(
    [Rule('layer_[01]/k', 4, 'low'), Rule('.*', 4)],
    init=init,
    encode=lambda weights, state, specs: {
      n: quantize(w, state.carried[specs[n].group], 16)
      for n, w in weights.items()
    },
    views=lambda weights, state, specs, ctx: {
      'one': {'layer_0/k': jnp.zeros((2, 2))},
      'two': {},
    },
  )
  state = quantizer.init(params)
  assert set(state.carried) == {'low', 'layer_2/k'}
  encoded = quantizer.encode(params, state)
  assert encoded['layer_0']['k'].scale == encoded['layer_1']['k'].scale
  branches = quantizer.views(params, state, CTX)
  assert np.all(branches['one']['layer_0']['k'] == 0)
  jax.tree.map(np.testing.assert_array_equal, branches['two'], params)


@pytest.mark.parametrize(
  'kernel, message',
  [
    (
      jnp.array([[1.0, jnp.nan]]),
      'head/kernel holds .* not finite',
    ),
    (jnp.zeros((0, 3)), r'head/kernel has shape \(0, 3\): no elements'),
  ],
)
def test_what_cannot_be_fitted_is_named(kernel, message):
  quantizer = lift.lift_tensor(4, init=FIT, quantize=CODE)
  params = {'dense': {'kernel': jnp.ones((2, 2))}, 'head': {'kernel': kernel}}
  with pytest.raises(ValueError, match=message):
    quantizer.init(params)


def test_a_weight_that_was_never_trained_is_named(caplog):
  params = {'a': jnp.ones((2, 2)), 'b': {'kernel': jnp.zeros((2, 2))}}
  quantizers.uniform(4).init(params)
  (record,) = caplog.records
  assert record.getMessage().startswith('b/kernel is all zero')


def test_averages_are_narrowed_to_what_a_function_sees():
  params = {'a': jnp.ones((2, 3)), 'b': {'c': jnp.ones((4, 5))}}
  learned = {'a': jnp.float32(7), 'b/c': jnp.float32(8)}
  average = types.Average(jax.tree.map(lambda x: 2 * x, params), learned)
  seen = {}

  def penalty(w, state, spec, ctx):
    seen[w.shape] = ctx.average
    return jnp.float32(0)

  def after_update(weights, state, specs, ctx):
    seen['whole'] = ctx.average
    return weights, state, {}

  init = lambda w, spec: types.State(jnp.float32(1), max_scale(w, spec.levels))
  one = lift.lift_tensor(4, init=init, quantize=CODE, penalty=penalty)
  many = lift.lift(
    [Rule('b/c', 4)],
    init=lambda weights, specs: types.State(),
    encode=lambda weights, state, specs: weights,
    after_update=after_update,
  )
  ctx = CTX._replace(average=average)
  one.penalty(params, one.init(params), ctx)
  for shape, value in (((2, 3), 7), ((4, 5), 8)):
    np.testing.assert_array_equal(seen[shape].params, jnp.full(shape, 2))
    assert seen[shape].learned == value
  many.after_update(params, types.State(), ctx)
  assert list(seen['whole'].params) == ['b/c']
  assert seen['whole'].learned is learned
