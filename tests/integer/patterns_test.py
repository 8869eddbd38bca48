"""Patterns are found by what they compute, however they are written."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from s8bqat_jax.integer import _jax_internals as internals
from s8bqat_jax.integer import patterns

X = jnp.zeros((3, 16))
GAMMA, BETA = np.linspace(0.5, 2, 16), np.linspace(-1, 1, 16)


def found(fn, x=X):
  graph, _ = internals.trace(fn, x)
  return {e.name: e.params for e in patterns.match(graph, {}).eqns}


def two_pass(x):
  d = x - x.mean(-1, keepdims=True)
  return d / jnp.sqrt((d * d).mean(-1, keepdims=True) + 1e-3) * GAMMA + BETA


def one_pass(x):
  mean = x.mean(-1, keepdims=True)
  var = (x**2).mean(-1, keepdims=True) - mean**2
  return (x - mean) * jax.lax.rsqrt(var + 1e-3) * GAMMA + BETA


@pytest.mark.parametrize('fn', [two_pass, one_pass])
def test_layernorm_both_ways(fn):
  ops = found(fn)
  assert set(ops) == {'layernorm'}
  p = ops['layernorm']
  np.testing.assert_allclose(p['gamma'], GAMMA, rtol=1e-3)
  np.testing.assert_allclose(p['beta'], BETA, atol=1e-3)
  assert p['epsilon'] == pytest.approx(1e-3) and p['axis'] == 1


def test_rmsnorm():
  fn = lambda x: x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-5)
  assert set(found(fn)) == {'rmsnorm'}


@pytest.mark.parametrize('axis', [-1, 0])
def test_softmax_and_log_softmax(axis):
  ops = found(lambda x: jax.nn.softmax(x, axis))
  assert set(ops) == {'softmax'} and ops['softmax']['axis'] == axis % 2
  ops = found(lambda x: jax.nn.log_softmax(x, axis))
  assert set(ops) == {'log_softmax'}
  naive = lambda x: jnp.exp(x) / jnp.exp(x).sum(axis, keepdims=True)
  assert set(found(naive)) == {'softmax'}


def test_softmax_is_of_the_scores_not_of_their_shift():
  graph, _ = internals.trace(jax.nn.softmax, X)
  (e,) = patterns.match(graph, {}).eqns
  assert e.ins == graph.ins


@pytest.mark.parametrize(
  'fn',
  [
    lambda x: jnp.exp(x) / (1 + jnp.exp(x).sum(-1, keepdims=True)),
    lambda x: jnp.exp(2 * x) / jnp.exp(x).sum(-1, keepdims=True),
    lambda x: x / jnp.sqrt((jnp.abs(x)).mean(-1, keepdims=True) + 1e-3),
    lambda x: jnp.exp(x) - x.sum(),
  ],
)
def test_lookalikes_are_left_alone(fn):
  names = set(found(fn))
  assert not names & {'softmax', 'log_softmax', 'layernorm', 'rmsnorm'}


# Whatever is done to one entry of many matters where that entry is the largest.
@pytest.mark.parametrize(
  'fn, constant',
  [
    (lambda x, c: jax.nn.softmax(jnp.where(c, -1e9, x)), np.arange(1000) == 0),
    (lambda x, c: jax.nn.softmax(x + c), -20.0 * (np.arange(1000) == 0)),
    (lambda x, c: jax.nn.log_softmax(x + c), 1e-2 * (np.arange(1000) == 0)),
  ],
)
def test_what_is_done_to_the_scores_is_no_part_of_the_softmax(fn, constant):
  constant = np.broadcast_to(constant, (2, 1000)).astype(
    np.float32 if constant.dtype == float else bool
  )
  graph, _ = internals.trace(fn, jnp.zeros((2, 1000)), constant)
  matched = patterns.match(graph, {graph.ins[1]: constant}).eqns
  (last,) = [e for e in matched if 'softmax' in e.name]
  assert last.ins[0] is not graph.ins[0]


def test_a_clip_of_a_normalization_is_no_part_of_it():
  assert 'max' in found(lambda x: jnp.maximum(two_pass(x), -3.0))


def test_what_is_done_to_probabilities_is_no_softmax():
  keep = np.arange(1000) > 0
  ops = [
    e.name
    for e in patterns.match(
      internals.trace(lambda x: jax.nn.softmax(x) * keep, jnp.zeros((2, 1000)))[
        0
      ],
      {},
    ).eqns
  ]
  assert 'softmax' in ops and 'mul' in ops
  one_more = lambda x: jnp.exp(x) / (1 + jnp.exp(x).sum(-1, keepdims=True))
  assert 'softmax' not in found(one_more, jnp.zeros((2, 5000)))
