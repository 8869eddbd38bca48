"""Malformed calls: which input, what was expected, what came, what to do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from s8bqat_jax.integer import (
  UnsupportedPrimitive,
  audit,
  calibrate,
  checks,
  lower,
  twin,
  uncalibrated,
)

R = np.random.default_rng(0)
PARAMS = {
  'w': R.normal(size=(3, 4)).astype(np.float32),
  'b': np.ones(4, np.float32),
}
X = R.normal(size=(5, 3)).astype(np.float32)
IDS = np.array([1, 0, 1, 1, 0], np.int32)


def dense(p, x):
  return x @ p['w'] + p['b']


def two(p, x, ids):
  return jnp.where(ids[:, None] > 0, dense(p, x['a']), 0.0)


def cell(p, h, x):
  h = jnp.tanh(dense(p, x) + h)
  return h, 0.5 * h


@pytest.fixture(scope='module')
def integer():
  inputs = {'a': X}, IDS
  ranges = calibrate(two, PARAMS, [inputs])
  return lower(two, PARAMS, ranges, *inputs)


CODES = np.zeros((5, 3), np.int8)
# inputs, error, match.
BAD_REALS = {
  'none': ((), ValueError, 'expected 2 inputs, got 0; pass what'),
  'three': (({'a': X}, IDS, IDS), ValueError, 'expected 2 inputs, got 3'),
  'tree': ((X, IDS), ValueError, "structure .*'a'.* got"),
  'missing': (({}, IDS), ValueError, 'structure'),
  'shape': (
    ({'a': X[:3]}, IDS),
    ValueError,
    r"inputs\[0\]\['a'\] has shape \(3, 3\), expected \(5, 3\).* pad",
  ),
  'codes': (
    ({'a': CODES}, IDS),
    TypeError,
    r"inputs\[0\]\['a'\] takes reals floating point\[5, 3\], got int8\[5, 3\]"
    '.*give codes to `integers`',
  ),
  'real ids': (
    ({'a': X}, IDS.astype(np.float32)),
    TypeError,
    r'inputs\[1\] must be int32\[5\], got float32\[5\]; cast it to int32',
  ),
  'short ids': (({'a': X}, IDS.astype(np.int8)), TypeError, r'got int8\[5\]'),
}
BAD_CODES = {
  'none': ((), ValueError, 'takes 2 arrays of codes, got 0; pass all'),
  'three': ((CODES, IDS, IDS), ValueError, '2 arrays of codes, got 3'),
  'list': (([CODES, IDS],), TypeError, r'codes\[0\] is a list; .*\*codes'),
  'reals': (
    (X, IDS),
    TypeError,
    r'codes\[0\] must be int8\[5, 3\], got float32\[5, 3\]; integers takes '
    'codes: call `quantize` first',
  ),
  'wide': ((CODES.astype(np.int32), IDS), TypeError, 'cast it to int8'),
  'shape': (
    (CODES[:, :2], IDS),
    ValueError,
    r'codes\[0\] has shape \(5, 2\), expected \(5, 3\)',
  ),
}


@pytest.mark.parametrize('case', BAD_REALS)
@pytest.mark.parametrize('traced', [False, True])
def test_bad_reals(integer, case, traced):
  inputs, error, match = BAD_REALS[case]
  for call in (integer, integer.quantize):
    with pytest.raises(error, match=match):
      (jax.jit(call) if traced else call)(*inputs)


@pytest.mark.parametrize('case', BAD_CODES)
@pytest.mark.parametrize('traced', [False, True])
def test_bad_codes(integer, case, traced):
  codes, error, match = BAD_CODES[case]
  call = integer.integers
  with pytest.raises(error, match=match):
    (jax.jit(call) if traced else call)(*codes)


def test_no_array(integer):
  with pytest.raises(TypeError, match=r"inputs\[0\]\['a'\] must be .* str"):
    integer.quantize({'a': 'speech'}, IDS)


def test_good_calls_of_every_kind(integer):
  expected = integer({'a': X}, IDS)
  # 64-bit NumPy arrays are what JAX makes of them: 32-bit ones.
  wide = {'a': X.astype(np.float64)}, IDS.astype(np.int64)
  for inputs in (({'a': X}, IDS), ({'a': jnp.asarray(X)}, IDS), wide):
    np.testing.assert_array_equal(integer(*inputs), expected)
    np.testing.assert_array_equal(jax.jit(integer)(*inputs), expected)
    codes = integer.integers(*integer.quantize(*inputs))
    np.testing.assert_array_equal(integer.dequantize(codes), expected)
  mapped = jax.vmap(integer, ({'a': 0}, None))({'a': X[None]}, IDS)
  np.testing.assert_array_equal(mapped[0], expected)


def test_checks_run_when_traced_only(integer, monkeypatch):
  integer({'a': X}, IDS)
  codes = integer.quantize({'a': X}, IDS)
  integer.integers(*codes)
  calls = []
  for name in ('check_reals', 'check_codes'):
    monkeypatch.setattr(checks, name, lambda *a: calls.append(a))
  integer({'a': X}, IDS)
  integer.integers(*codes)
  assert not calls


RANGES = calibrate(dense, PARAMS, [X])


@pytest.mark.parametrize('bad', [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize('name', ['w', 'b'])
def test_parameters_that_are_not_finite(name, bad):
  params = {k: v.copy() for k, v in PARAMS.items()}
  params[name].flat[1] = bad
  with pytest.raises(ValueError, match=f"'{name}' .* in 1 of .* places"):
    lower(dense, params, RANGES, X)


@pytest.mark.parametrize('bad', [np.nan, np.inf])
def test_a_constant_that_is_not_finite(bad):
  constant = np.float32([0, 0, bad, 0])
  fn = lambda p, x: dense(p, x) + constant
  with pytest.raises(ValueError, match='of the function is NaN or infinite'):
    lower(fn, PARAMS, RANGES, X)


@pytest.mark.parametrize('bits', [0, 4, 32, None, '8'])
def test_output_bits(bits):
  match = f'output_bits must be 8 or 16, got {bits!r}'
  with pytest.raises(ValueError, match=match):
    lower(dense, PARAMS, RANGES, X, output_bits=bits)
  with pytest.raises(ValueError, match=match):
    twin(dense, PARAMS, RANGES, output_bits=bits)


@pytest.mark.parametrize('ranges', [None, [], 'auto'])
def test_ranges(ranges):
  match = f'as `calibrate` returns them, got {type(ranges).__name__}'
  with pytest.raises(TypeError, match=match):
    lower(dense, PARAMS, ranges, X)
  with pytest.raises(TypeError, match=match):
    twin(dense, PARAMS, ranges)


@pytest.mark.parametrize('of', [3, (1,), None, (0, 1, 2)])
def test_a_range_that_is_no_pair(of):
  with pytest.raises(
    TypeError, match=r"ranges\['in:0'\] must be \(low, high\)"
  ):
    lower(dense, PARAMS, {**RANGES, 'in:0': of}, X)


H = np.zeros((5, 4), np.float32)
# function, inputs, match.
BAD_CARRIES = {
  'no input': (lambda p: p['b'], (), 'needs a state as the first input'),
  'one output': (dense, (X,), r'\(params, state, \*inputs\) -> \(state, outp'),
  'structure': (
    lambda p, s, x: cell(p, s['h'], x),
    ({'h': H}, X),
    "the state is .*'h'",
  ),
  'shape': (
    lambda p, s, x: ((s[0][:1],), x),
    ((H,), X),
    r'state\[0\] enters as float32\[5, 4\], but leaves as float32\[1, 4\]',
  ),
  'dtype': (
    lambda p, s, x: (s.astype(jnp.int32), x),
    (H, X),
    'but leaves as int32',
  ),
}


@pytest.mark.parametrize('case', BAD_CARRIES)
def test_carries(case):
  fn, inputs, match = BAD_CARRIES[case]
  with pytest.raises(ValueError, match=match):
    lower(fn, PARAMS, RANGES, *inputs, carry=True)


def test_a_good_carry():
  scan = lambda p, h, x: jax.lax.scan(lambda h, x: cell(p, h, x), h, x)
  ranges = calibrate(scan, PARAMS, [(H, X[None])])
  assert audit(lower(cell, PARAMS, ranges, H, X, carry=True)).ok


def _noisy(p, x):
  return x @ p['w'] + jax.random.normal(jax.random.key(0), x.shape)


def _noisy_inside(p, x):
  keys = jax.random.key_data(jax.random.split(jax.random.key(0), 3))
  wrapped = lambda raw: jax.random.wrap_key_data(raw)
  step = lambda c, k: (c + jax.random.normal(wrapped(k), c.shape), ())
  return jax.lax.scan(step, x @ p['w'], keys)[0]


KEY = jax.random.key(0)


def _closed_over(p, x):
  return x + jax.random.normal(KEY, x.shape)


def _given_a_key(p, x, key):
  return x @ p['w'] + jax.random.normal(key, x.shape)


@pytest.mark.parametrize(
  'fn', [_noisy, _noisy_inside, _closed_over, _given_a_key]
)
def test_random_numbers(fn):
  params = {'w': np.eye(2, dtype=np.float32)}
  inputs = [np.ones((3, 2), np.float32)]
  if fn is _given_a_key:
    inputs.append(jax.random.key(1))
  with pytest.raises(UnsupportedPrimitive, match='random key'):
    lower(fn, params, uncalibrated(), *inputs)


def test_a_key_among_the_parameters():
  params = {'w': np.eye(2, dtype=np.float32), 'rngs': jax.random.key(0)}
  fn = lambda p, x: x @ p['w']
  with pytest.raises(
    UnsupportedPrimitive, match="parameter 'rngs' is a random key"
  ):
    lower(fn, params, uncalibrated(), np.ones((3, 2), np.float32))
