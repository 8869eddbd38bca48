"""Fixed-point requantization against exact rationals."""

import fractions
import math

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from s8bqat_jax.integer import requantize as rq

WIDE = rq.Out(0, -(2**31), 2**31 - 1, 'int32')
ratios = st.floats(2.0**-40, 2.0**20).flatmap(
  lambda r: st.sampled_from([r, -r])
)


@settings(max_examples=200)
@given(ratios)
def test_multiplier_has_31_significant_bits(ratio):
  (fixed,) = rq.to_multiplier(ratio)
  value = int(fixed.multiplier) * 2.0**-fixed.shift
  assert 1 <= fixed.shift <= rq.MAX_SHIFT
  tolerance = max(abs(ratio) * 2.0**-30, 2.0**-62)
  assert abs(value - ratio) <= tolerance


def test_common_shift_and_zero():
  small, large, zero = rq.to_multiplier(1e-6, [0.5, -3.0], 0.0)
  assert small.shift == large.shift == zero.shift
  assert zero.multiplier == 0 and large.multiplier[1] < 0


@pytest.mark.parametrize('bad', [np.nan, np.inf, 2.0**30])
def test_bad_ratio(bad):
  with pytest.raises(ValueError, match='finite and below'):
    rq.to_multiplier(bad)


@settings(max_examples=30)
@given(
  st.lists(st.integers(-(2**31), 2**31 - 1), min_size=4, max_size=4),
  st.floats(2.0**-36, 2.0**4),
  st.integers(-128, 127),
)
def test_bit_exact(acc, ratio, zero):
  (fixed,) = rq.to_multiplier(ratio)
  out = rq.Out(zero, -100, 90, 'int8')
  m, e = int(fixed.multiplier), fixed.shift
  expected = [
    min(max(math.floor(fractions.Fraction(2 * a * m + 2**e, 2 ** (e + 1)))
            + zero, -100), 90)
    for a in acc
  ]  # fmt: skip
  acc = np.asarray(acc, np.int32)
  np.testing.assert_array_equal(
    rq.requantize_np(acc, fixed.multiplier, e, out), expected
  )
  np.testing.assert_array_equal(
    rq.requantize(acc, fixed.multiplier, e, out), expected
  )


def test_no_64_bit_values_leak_and_none_are_float():
  (fixed,) = rq.to_multiplier(0.3)
  run = lambda a: rq.requantize(a, fixed.multiplier, fixed.shift, WIDE)
  jaxpr = jax.make_jaxpr(run)(np.zeros(3, np.int32))
  assert jaxpr.out_avals[0].dtype == np.int32
  assert not jax.config.jax_enable_x64
  assert 'f32' not in str(jaxpr) and 'f64' not in str(jaxpr)
