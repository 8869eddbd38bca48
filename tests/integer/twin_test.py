"""The twin of a function follows its parameters, scalars among them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from s8bqat_jax import integer

X = np.random.default_rng(0).normal(size=(4, 8)).astype(np.float32)


@pytest.mark.parametrize(
  'fn, other',
  [
    (lambda p, x: jnp.tanh(x * p['s']), 0.8),
    (lambda p, x: x * p['s'], 0.8),
    (lambda p, x: x / p['s'], 1.25),
    (lambda p, x: jnp.tanh(jnp.minimum(x, p['s'])), 0.8),
    (lambda p, x: jnp.tanh(jnp.clip(x, -p['s'], p['s'])), 0.8),
  ],
  ids=['gain before a table', 'gain', 'divisor', 'bound', 'clip'],
)
def test_a_scalar_parameter_is_the_one_given_and_gets_its_gradient(fn, other):
  made = {'s': 1.0}
  ranges = integer.calibrate(fn, made, [X])
  twin = integer.twin(fn, made, ranges)
  total = lambda f: jax.grad(lambda p: jnp.sum(f(p, X) * jnp.cos(X)))
  for s in (other, 1.0):  # within the ranges of 1
    params = {'s': s}
    np.testing.assert_allclose(twin(params, X), fn(params, X), atol=0.06)
    found, expected = total(twin)(params)['s'], total(fn)(params)['s']
    np.testing.assert_allclose(found, expected, rtol=0.05, atol=0.05)
  program = integer.lower(fn, made, ranges, X)
  np.testing.assert_allclose(program(X), fn(made, X), atol=0.06)
  assert integer.audit(program).ok


@pytest.mark.parametrize('given', [{'w': X.T}, {'w': X.T, 'b': 0.0, 'c': 0.0}])
def test_params_of_another_structure_are_refused(given):
  fn = lambda p, x: x @ p['w'] + p['b']
  made = {'w': X.T, 'b': np.float32(0.5)}
  twin = integer.twin(fn, made, integer.calibrate(fn, made, [X]))
  with pytest.raises(ValueError, match='the twin was made for'):
    twin(given, X)


def test_no_data_is_no_calibration():
  with pytest.raises(ValueError, match='all batches are empty'):
    integer.calibrate(lambda p, x: x * 2, {}, [X[:0]])
