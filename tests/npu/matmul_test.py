"""int8_matmul against exact arithmetic in Python integers and NumPy."""

import fractions
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from s8bqat_jax.npu import int8_matmul, matmul_report

SHAPES = [(1, 1, 1), (1, 5, 3), (2, 0, 3), (0, 4, 3), (3, 7, 0), (4, 9, 5)]


def exact(x, w, ratio, bias=0):
  """floor(acc * ratio + 1/2), saturated, in exact rational arithmetic."""
  acc = x.astype(np.int64) @ w.astype(np.int64) + bias
  acc = acc.astype(np.int32).astype(np.int64)
  ratios = np.broadcast_to(np.asarray(ratio, np.float64), acc.shape[-1:])
  out = np.zeros(acc.shape, np.int64)
  for index, a in np.ndenumerate(acc):
    # The documented multiplier: 31 bits below the power of two above.
    largest = max(ratios)
    e = 31 - math.frexp(largest)[1]
    m = min(round(ratios[index[-1]] * 2**e), 2**31 - 1)
    value = fractions.Fraction(int(a) * m, 2**e) + fractions.Fraction(1, 2)
    out[index] = min(max(math.floor(value), -128), 127)
  return out


def random_int8(r, *shape):
  return r.integers(-128, 128, shape).astype(np.int8)


@settings(max_examples=40)
@given(
  st.sampled_from(SHAPES),
  st.integers(0, 2**32 - 1),
  st.floats(1e-4, 10),
  st.booleans(),
  st.booleans(),
)
def test_bit_exact(shape, seed, out_scale, per_channel, biased):
  m, k, n = shape
  r = np.random.default_rng(seed)
  x, w = random_int8(r, m, k), random_int8(r, k, n)
  w_scale = r.uniform(0.001, 0.1, n) if per_channel and n else 0.013
  bias = r.integers(-(2**20), 2**20, n).astype(np.int32) if biased else None
  y = int8_matmul(x, w, 0.02, w_scale, out_scale, bias)
  ratio = 0.02 * np.asarray(w_scale) / out_scale
  expected = exact(x, w, ratio, 0 if bias is None else bias)
  assert y.dtype == jnp.int8
  np.testing.assert_array_equal(y, expected)


def test_extreme_values_and_every_code_pair():
  x = np.arange(-128, 128, dtype=np.int8)[:, None]
  w = np.arange(-128, 128, dtype=np.int8)[None, :]
  y = int8_matmul(x, w, 1.0, 1.0, 128.0)
  product = x.astype(np.int64) * w.astype(np.int64)
  np.testing.assert_array_equal(y, np.clip((product + 64) >> 7, -128, 127))


@pytest.mark.parametrize('levels', [2, 3, 16, 32, 256])
def test_codes_and_table_are_the_looked_up_weights(levels):
  r = np.random.default_rng(levels)
  table = np.sort(r.integers(-128, 128, levels)).astype(np.int8)
  codes = r.integers(0, levels, (11, 6)).astype(np.uint8)
  x = random_int8(r, 3, 11)
  np.testing.assert_array_equal(
    int8_matmul(x, codes, 0.1, 0.1, 2.0, table=table),
    int8_matmul(x, table[codes], 0.1, 0.1, 2.0),
  )


def test_saturation_is_clipping_and_is_counted():
  x = np.full((1, 4), 127, np.int8)
  w = np.stack([np.full(4, 127), np.full(4, -128), np.ones(4)], 1)
  w = w.astype(np.int8)
  y = int8_matmul(x, w, 1.0, 1.0, 4.0)
  np.testing.assert_array_equal(y, [[127, -128, 127]])
  report = matmul_report(x, w, 1.0, 1.0, 4.0)
  assert report.saturated == 2 and report.overflowed == 0
  assert report.peak == 127 * 128 * 4 and report.bound == 128 * 128 * 4


def test_overflow_wraps_and_is_counted():
  k = 2**17
  x, w = np.full((1, k), -128, np.int8), np.full((k, 2), -128, np.int8)
  w[:, 1] = 1
  report = matmul_report(x, w, 1.0, 1.0, 2.0**24)
  assert report.overflowed == 1 and report.peak == 2**31
  # 2^31 wraps to -2^31.
  y = int8_matmul(x, w, 1.0, 1.0, 2.0**24)
  np.testing.assert_array_equal(y, [[-128, -1]])


def test_inside_jit_with_concrete_scales():
  r = np.random.default_rng(0)
  x, w = random_int8(r, 2, 8), random_int8(r, 8, 3)
  jitted = jax.jit(lambda x, w: int8_matmul(x, w, 0.1, 0.1, 1.0))
  np.testing.assert_array_equal(jitted(x, w), int8_matmul(x, w, 0.1, 0.1, 1.0))


X, W = np.zeros((2, 3), np.int8), np.zeros((3, 4), np.int8)


@pytest.mark.parametrize(
  'args, error, match',
  [
    ((X.astype(np.float32), W, 1.0, 1.0, 1.0), TypeError, 'x_q must be int8'),
    ((X, W.astype(np.int32), 1.0, 1.0, 1.0), TypeError, 'w_q must be int8'),
    ((X, W.T, 1.0, 1.0, 1.0), ValueError, r'\(2, 3\) and w_q \(4, 3\)'),
    ((X[0], W, 1.0, 1.0, 1.0), ValueError, 'must have 2 axes'),
    ((X, W, 0.0, 1.0, 1.0), ValueError, 'x_scale must be finite and above'),
    ((X, W, 1.0, float('nan'), 1.0), ValueError, 'w_scale'),
    ((X, W, 1.0, np.ones(3), 1.0), ValueError, r'expected \(\) or \(4,\)'),
    ((X, W, 1.0, 1.0, -1.0), ValueError, 'out_scale'),
    ((X, W, 1e20, 1.0, 1.0), ValueError, 'ratio must be finite and below'),
    ((X, W, 1.0, 1.0, 1.0, np.zeros(3, np.int32)), ValueError, 'bias'),
    ((X, W, 1.0, 1.0, 1.0, np.zeros(4)), TypeError, 'bias must be int32'),
    (
      (X, np.full((3, 4), 9, np.uint8), 1.0, 1.0, 1.0, None, np.int8([1, 2])),
      ValueError,
      'code 9',
    ),
    (
      (X, np.zeros((3, 4), np.uint8), 1.0, 1.0, 1.0, None, np.int8([])),
      ValueError,
      'table has 0 entries, expected 1 to 256',
    ),
    (
      (X, W.view(np.uint8), 1.0, 1.0, 1.0, None, np.zeros(257, np.int8)),
      ValueError,
      'table has 257 entries',
    ),
    ((X, W, 1e-200, 1e-200, 1.0), ValueError, 'is 0: its multiplier is 0'),
    ((X, W, 1e-15, 1e-15, 1.0), ValueError, 'is 1e-30: its multiplier is 0'),
    (
      (X, W, 1.0, np.array([1.0, 1e-12, 1.0, 1.0]), 1.0),
      ValueError,
      r'of column 1 is 1e-12: .* largest ratio 1 and .* check the units',
    ),
  ],
)
def test_malformed_use(args, error, match):
  with pytest.raises(error, match=match):
    int8_matmul(*args)


def test_the_smallest_ratio_that_has_a_multiplier():
  x, w = np.full((1, 1), 127, np.int8), np.full((1, 1), 127, np.int8)
  bias = np.int32([2**31 - 1 - 127 * 127])
  # (2^31 - 1) 2^-32 is just short of a half.
  assert int8_matmul(x, w, 2.0**-32, 1.0, 1.0, bias)[0, 0] == 0
  assert int8_matmul(x, w, 2.0**-31, 1.0, 1.0, bias)[0, 0] == 1
  assert int8_matmul(x, w, 2.0**-62, 1.0, 1.0)[0, 0] == 0
  with pytest.raises(ValueError, match='its multiplier is 0'):
    int8_matmul(x, w, 2.0**-64, 1.0, 1.0)


def test_traced_scale_is_an_error():
  with pytest.raises(TypeError, match='out_scale is traced'):
    jax.jit(lambda s: int8_matmul(X, W, 1.0, 1.0, s))(1.0)


def test_vmap_over_every_array_and_without_jit():
  r = np.random.default_rng(3)
  x = r.integers(-128, 128, (4, 3, 20)).astype(np.int8)
  w = r.integers(-128, 128, (4, 20, 17)).astype(np.int8)
  b = r.integers(-500, 500, (4, 17)).astype(np.int32)
  run = lambda x, w, b: int8_matmul(x, w, 0.1, 0.1, 2.0, b)
  for mapped in itertools.product((True, False), repeat=3):
    if not any(mapped):
      continue
    args = [a if m else a[0] for a, m in zip((x, w, b), mapped)]
    axes = tuple(0 if m else None for m in mapped)
    wanted = [
      run(*(a[i] if m else a for a, m in zip(args, mapped))) for i in range(4)
    ]
    np.testing.assert_array_equal(jax.vmap(run, axes)(*args), wanted)
  alone = run(x[0], w[0], b[0])
  with jax.disable_jit():
    np.testing.assert_array_equal(run(x[0], w[0], b[0]), alone)
