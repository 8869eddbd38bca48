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
