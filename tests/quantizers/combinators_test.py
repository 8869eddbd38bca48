"""Composition: one after another, and each its own weights."""

import dataclasses

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


def _affine(rules, factor, offset, branches=(types.MAIN,)):
  """Views multiply, updates add, the penalty is the offset."""
  return lift.lift(
    rules,
    init=lambda weights, specs: types.State(
      carried={n: max_scale(w, specs[n].levels) for n, w in weights.items()}
    ),
    encode=lambda weights, state, specs: {
      n: quantize(w, state.carried[n], specs[n].levels)
      for n, w in weights.items()
    },
    views=lambda weights, state, specs, ctx: {
      b: {n: (factor + i) * w for n, w in weights.items()}
      for i, b in enumerate(branches)
    },
    penalty=lambda weights, state, specs, ctx: jnp.float32(offset),
    after_update=lambda weights, state, specs, ctx: (
      {n: w + offset for n, w in weights.items()},
      state,
      {n: jnp.array(True) for n in weights},
    ),
  )


@pytest.mark.parametrize('kind', kinds.KINDS)
def test_chain_applies_members_in_order(kind):
  params = kinds.make(kind)
  chained = quantizers.chain(
    _affine([Rule('head/.*', 8)], 2.0, 10.0), _affine(3, 5.0, 100.0)
  )
  state = chained.init(params)
  old = trees.named(params)
  seen = trees.named(chained.views(params, state, CTX)[types.MAIN])
  np.testing.assert_allclose(seen['head/kernel'], 10 * old['head/kernel'])
  np.testing.assert_allclose(seen['dense/kernel'], 5 * old['dense/kernel'])
  assert chained.penalty(params, state, CTX) == 110
  new, new_state, moved = chained.after_update(params, state, CTX)
  new = trees.named(new)
  np.testing.assert_allclose(new['head/kernel'], old['head/kernel'] + 110)
  np.testing.assert_allclose(new['dense/kernel'], old['dense/kernel'] + 100)
  np.testing.assert_array_equal(new['dense/bias'], old['dense/bias'])
  moved = {n: bool(x) for n, x in trees.named(moved).items()}
  assert [n for n in moved if moved[n]] == kinds.WEIGHTS
  assert jax.tree.structure(new_state) == jax.tree.structure(state)


def test_the_last_member_of_a_chain_that_encodes_a_weight_decides():
  params = kinds.make('plain')
  chained = quantizers.chain(
    _affine(8, 1.0, 0.0), _affine([Rule('head/.*', 3)], 1.0, 0.0)
  )
  encoded = chained.encode(params, chained.init(params))
  levels = {n: q.levels for n, q in trees.named(encoded).items() if q.ndim > 1}
  assert levels == {'dense/kernel': 256, 'head/kernel': 8}


def test_an_empty_chain_is_float_training():
  params = kinds.make('plain')
  chained = quantizers.chain()
  state = chained.init(params)
  assert chained.views(params, state, CTX) == {types.MAIN: params}
  assert chained.encode(params, state) == params


def test_one_member_of_a_chain_may_have_branches():
  params = {'w': jnp.ones((2, 2))}
  several = _affine(4, 1.0, 0.0, branches=('low', 'high'))
  plain = _affine(4, 10.0, 0.0)
  for members in ((several, plain), (plain, several)):
    chained = quantizers.chain(*members)
    branches = chained.views(params, chained.init(params), CTX)
    values = {b: float(tree['w'][0, 0]) for b, tree in branches.items()}
    assert values == {'low': 10, 'high': 20}
  with pytest.raises(ValueError, match='branches'):
    chained = quantizers.chain(several, several)
    chained.views(params, chained.init(params), CTX)


def test_members_of_a_chain_draw_from_different_streams():
  def noisy():
    return lift.lift_tensor(
      4,
      init=lambda w, spec: types.State(carried=max_scale(w, 16)),
      quantize=lambda w, state, spec: quantize(w, state.carried, 16),
      view=lambda w, state, spec, ctx: w + jax.random.normal(ctx.key, w.shape),
    )

  params = {'w': jnp.zeros((2, 2))}
  once, twice = noisy(), quantizers.chain(noisy(), noisy())
  one = once.views(params, once.init(params), CTX)[types.MAIN]['w']
  two = twice.views(params, twice.init(params), CTX)[types.MAIN]['w']
  assert not np.allclose(two, 2 * one)


def test_nested_members_share_no_stream_with_each_other_or_the_loss():
  seen = []

  def listener(name):
    plain = _affine([Rule(name, 4)], 1.0, 0.0)

    def penalty(params, state, ctx):
      seen.append(tuple(jax.random.key_data(ctx.key).tolist()))
      return plain.penalty(params, state, ctx)

    return dataclasses.replace(plain, penalty=penalty)

  params = {n: jnp.ones((2, 2)) for n in 'abcd'}
  nested = quantizers.by_path(
    [
      ('d', listener('d')),
      (
        '.*',
        quantizers.chain(
          quantizers.chain(listener('a'), listener('b')), listener('c')
        ),
      ),
    ]
  )
  nested.penalty(params, nested.init(params), CTX)
  of_loss = jax.random.fold_in(CTX.key, 1)  # as in make_step
  for key in (CTX.key, of_loss):
    seen.append(tuple(jax.random.key_data(key).tolist()))
  assert len(seen) == len(set(seen)) == 6


def test_metrics_of_nested_members_are_all_there():
  def reporter(value):
    return dataclasses.replace(
      _affine(8, 1.0, 0.0),
      metrics=lambda params, state: {'distance': value},
    )

  nested = quantizers.chain(
    quantizers.chain(reporter(1), reporter(2)), reporter(3)
  )
  params = {'w': jnp.ones((2, 2))}
  found = nested.metrics(params, nested.init(params))
  assert sorted(found.values()) == [1, 2, 3]
  assert found['distance'] == 1 and found['1/distance'] == 2


@pytest.mark.parametrize('kind', kinds.KINDS)
def test_by_path_gives_each_weight_to_its_first_match(kind):
  params = kinds.make(kind)
  routed = quantizers.by_path(
    [('head/.*', _affine(3, 2.0, 10.0)), ('.*', _affine(8, 5.0, 100.0))]
  )
  state = routed.init(params)
  old = trees.named(params)
  seen = trees.named(routed.views(params, state, CTX)[types.MAIN])
  np.testing.assert_allclose(seen['head/kernel'], 2 * old['head/kernel'])
  np.testing.assert_allclose(seen['dense/kernel'], 5 * old['dense/kernel'])
  assert routed.penalty(params, state, CTX) == 110
  new, _, moved = routed.after_update(params, state, CTX)
  assert jax.tree.structure(new) == jax.tree.structure(params)
  assert jax.tree.structure(moved) == jax.tree.structure(params)
  new = trees.named(new)
  np.testing.assert_allclose(new['head/kernel'], old['head/kernel'] + 10)
  np.testing.assert_allclose(new['dense/kernel'], old['dense/kernel'] + 100)
  encoded = trees.named(routed.encode(params, state))
  assert encoded['head/kernel'].levels == 8
  assert encoded['dense/kernel'].levels == 256
  assert not qtensor.is_qtensor(encoded['dense/bias'])
  assert set(routed.metrics(params, state)) == {'distance', '1/distance'}


def test_by_path_leaves_the_others_in_floating_point():
  params = kinds.make('plain')
  routed = quantizers.by_path([('head/.*', _affine(3, 2.0, 10.0))])
  encoded = trees.named(routed.encode(params, routed.init(params)))
  assert [n for n, x in encoded.items() if qtensor.is_qtensor(x)] == [
    'head/kernel'
  ]


def test_members_of_by_path_see_full_names_of_their_own_weights_only():
  params = kinds.make('plain')
  routed = quantizers.by_path(
    [('head/.*', _affine([Rule('dense/kernel', 3)], 1.0, 0.0))]
  )
  with pytest.raises(ValueError, match=r'dense/kernel(.|\n)*head/kernel'):
    routed.init(params)


def test_an_unused_route_is_an_error():
  with pytest.raises(ValueError, match=r'decoder(.|\n)*head/kernel'):
    quantizers.by_path([('decoder/.*', quantizers.uniform(8))]).init(
      kinds.make('plain')
    )


def test_a_member_with_one_branch_serves_all_branches_of_the_others():
  params = kinds.make('plain')
  routed = quantizers.by_path(
    [
      ('head/.*', _affine(4, 1.0, 0.0, branches=('low', 'high'))),
      ('.*', _affine(4, 10.0, 0.0)),
    ]
  )
  branches = routed.views(params, routed.init(params), CTX)
  assert list(branches) == ['low', 'high']
  for factor, seen in enumerate(branches.values(), 1):
    for name, times in (('head', factor), ('dense', 10)):
      np.testing.assert_allclose(
        seen[name]['kernel'], times * params[name]['kernel']
      )


def test_members_with_different_branches_are_an_error():
  params = kinds.make('plain')
  routed = quantizers.by_path(
    [
      ('head/.*', _affine(4, 1.0, 0.0, branches=('low', 'high'))),
      ('.*', _affine(4, 1.0, 0.0, branches=('2bit', '1bit'))),
    ]
  )
  with pytest.raises(ValueError, match='branches'):
    routed.views(params, routed.init(params), CTX)


def test_ptq_keeps_the_fit_and_nothing_else():
  params = kinds.make('plain')
  inner = _affine(4, 2.0, 10.0)
  fitted = quantizers.ptq(inner)
  state = fitted.init(params)
  assert fitted.views(params, state, CTX) == {types.MAIN: params}
  assert fitted.penalty(params, state, CTX) == 0
  assert fitted.after_update(params, state, CTX)[0] == params
  unchanged = ('init', 'encode', 'metrics')
  for field in dataclasses.fields(fitted):
    same = getattr(fitted, field.name) is getattr(inner, field.name)
    assert same == (field.name in unchanged)


@pytest.mark.parametrize(
  'routes, message',
  [
    ([quantizers.uniform(4)], 'expected .pattern, quantizer.'),
    ([('.*', 4)], 'expected .pattern, quantizer.'),
    ([('*', quantizers.uniform(4))], "'[*]' is no regular expression"),
  ],
)
def test_routes_are_checked_at_once(routes, message):
  with pytest.raises(ValueError, match=message):
    quantizers.by_path(routes)
