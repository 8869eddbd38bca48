"""check_quantizer: a member from scratch passes, broken ones are caught."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from s8bqat_jax.artifacts.qtensor import QTensor
from s8bqat_jax.quantizers import State, check_quantizer, lift_tensor
from s8bqat_jax.quantizers import tree as trees
from tests.quantizers import kinds


def shrinking(rules, rate=0.1):
  """A method from scratch: magnitudes below half the mean fade to zero."""

  def init(w, spec):
    return State(carried=jnp.mean(jnp.abs(w)))

  def codes(w, scale):
    return jnp.where(jnp.abs(w) < scale / 2, 0, jnp.sign(w)).astype(jnp.int8)

  def quantize(w, state, spec):
    return QTensor(codes(w, state.carried), state.carried, None, spec.levels)

  def penalty(w, state, spec, ctx):
    small = codes(w, state.carried) == 0
    return jnp.mean(jnp.where(small, w * w, 0))

  def after_update(w, state, spec, ctx):
    small = codes(w, state.carried) == 0
    w = jnp.where(small, (1 - rate * ctx.learning_rate) * w, w)
    return w, state, jnp.zeros((), bool)

  return lift_tensor(
    rules,
    init=init,
    quantize=quantize,
    penalty=penalty,
    after_update=after_update,
  )


@pytest.mark.parametrize('kind', kinds.KINDS)
def test_a_member_written_from_scratch_passes(kind):
  check_quantizer(shrinking('ternary'), kinds.make(kind))


def _changed(**functions):
  return dataclasses.replace(shrinking('ternary'), **functions)


GOOD = shrinking('ternary')


def _views(change):
  return lambda params, state, ctx: {'main': change(params)}


def _python_branch(params, state, ctx):
  return jnp.float32(1.0 if state.carried['head/kernel'] > 0 else 0.0)


def _encode(change):
  def encode(params, state):
    encoded = GOOD.encode(params, state)
    w = trees.named(encoded)['head/kernel']
    return trees.replace(encoded, {'head/kernel': change(w)})

  return encode


def _update(params=lambda p: p, state=lambda s: s, moved=lambda m: m):
  def after_update(*args):
    new, new_state, jumped = GOOD.after_update(*args)
    return params(new), state(new_state), moved(jumped)

  return after_update


def _bias_changed(params, state):
  encoded = GOOD.encode(params, state)
  return trees.replace(encoded, {'dense/bias': jnp.ones(6)})


BROKEN = {
  'init must return a State': {'init': lambda params: ()},
  'penalty does not run under jit': {'penalty': _python_branch},
  'penalty must be a scalar': {'penalty': lambda *args: jnp.zeros(2)},
  'penalty must be finite': {'penalty': lambda *args: jnp.float32(jnp.inf)},
  'gradient of the penalty is not finite': {
    'penalty': lambda params, state, ctx: jnp.linalg.norm(
      0 * params['head']['kernel']
    )
  },
  'views must return at least one': {'views': lambda *args: {}},
  "branch 'main': structure": {
    'views': lambda params, state, ctx: {'main': {'head': params['head']}}
  },
  "branch 'main': head/kernel is bfloat16": {
    'views': _views(
      lambda params: {
        **params,
        'head': {'kernel': params['head']['kernel'].astype(jnp.bfloat16)},
      }
    )
  },
  'no gradient reaches dense/kernel': {'views': _views(jax.lax.stop_gradient)},
  'encode yields no QTensor': {'encode': lambda params, state: params},
  'encode changes dense/bias': {'encode': _bias_changed},
  'codes must lie in': {
    'encode': _encode(lambda q: dataclasses.replace(q, codes=q.codes * 2))
  },
  'above zero': {
    'encode': _encode(lambda q: dataclasses.replace(q, scale=-q.scale))
  },
  "metric 'worst' must be a scalar": {
    'metrics': lambda params, state: {'worst': jnp.ones(2)}
  },
  "metric 'worst' must be finite": {
    'metrics': lambda params, state: {'worst': jnp.float32(jnp.nan)}
  },
  'after_update: params: head/kernel': {
    'after_update': _update(
      params=lambda p: {**p, 'head': {'kernel': p['head']['kernel'][:1]}}
    )
  },
  'after_update: state: structure': {
    'after_update': _update(state=lambda s: State())
  },
  'after_update: a value is not finite': {
    'after_update': _update(params=lambda p: jax.tree.map(jnp.log, p))
  },
  'moved must have booleans for dense/bias': {
    'after_update': _update(moved=lambda m: {'head': m['head']})
  },
  'moved for head/kernel has shape': {
    'after_update': _update(
      moved=lambda m: {**m, 'head': {'kernel': jnp.zeros((1, 1, 1), bool)}}
    )
  },
}


@pytest.mark.parametrize('promise', BROKEN)
def test_a_broken_promise_is_named(promise):
  with pytest.raises((AssertionError, ValueError)) as error:
    check_quantizer(_changed(**BROKEN[promise]), kinds.make('plain'))
  assert promise in str(error.value)


def test_codes_that_change_when_encoded_again_are_caught():
  def drifting(params, state):
    # A scale of its own for every call: decoded weights get another one.
    fresh = GOOD.init(params)
    return GOOD.encode(params, fresh)

  with pytest.raises(AssertionError, match='encode of decoded weights'):
    check_quantizer(_changed(encode=drifting), kinds.make('plain'))


def test_a_float_view_is_not_what_ships():
  with pytest.raises(AssertionError, match='is not what ships'):
    check_quantizer(GOOD, kinds.make('plain'), ships_what_it_sees=True)


def test_views_that_depend_on_the_python_step_are_caught():
  def views(params, state, ctx):
    return {'main': params if int(ctx.step) else params}

  with pytest.raises(AssertionError, match='views does not run under jit'):
    check_quantizer(_changed(views=views), kinds.make('plain'))


def test_state_that_ignores_the_layout_of_its_weight_is_caught():
  def init(params):
    state = GOOD.init(params)
    carried = {
      n: {'scale': s, 'dual': jnp.zeros(trees.named(params)[n].shape)}
      for n, s in state.carried.items()
    }
    return State(state.learned, carried)

  plain = lambda state: State(
    state.learned, {n: s['scale'] for n, s in state.carried.items()}
  )
  broken = _changed(
    init=init,
    encode=lambda params, state: GOOD.encode(params, plain(state)),
    penalty=lambda params, state, ctx: GOOD.penalty(params, plain(state), ctx),
    after_update=lambda params, state, ctx: (
      params,
      state,
      jax.tree.map(lambda _: jnp.zeros((), bool), params),
    ),
    metrics=lambda params, state: {},
  )
  with pytest.raises(AssertionError, match='laid out over devices'):
    check_quantizer(broken, kinds.make('plain'))
