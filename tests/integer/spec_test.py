"""Scales, zero points and straight-through rounding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from s8bqat_jax import integer
from s8bqat_jax.integer import fake_quantize
from s8bqat_jax.integer.spec import Spec, from_range, masked_range

reals = st.floats(-1e4, 1e4)


@settings(max_examples=200)
@given(reals, reals, st.sampled_from([8, 16]))
def test_range_is_covered_and_zero_is_exact(a, b, bits):
  low, high = min(a, b), max(a, b)
  spec = from_range(low, high, bits)
  assert spec.quantize_np(0.0) == spec.zero
  ends = np.asarray([low, high])
  error = np.abs((spec.quantize_np(ends).astype(float) - spec.zero) * spec.scale
                 - ends)  # fmt: skip
  # The zero point's rounding may cost the ends half a step.
  assert np.all(error <= 1.01 * spec.scale)


@pytest.mark.parametrize(
  'fn',
  [
    lambda p, x, y: jnp.where(y > 10, x, 0.0),
    lambda p, x, y: x - y,
    lambda p, x, y: jnp.maximum(jnp.minimum(x, y), 0) * x,
  ],
)
def test_values_that_were_all_zero_when_calibrated_can_be_lowered(fn):
  x = np.float32([-1, -2, -3])
  lowered = integer.lower(fn, {}, integer.calibrate(fn, {}, [(x, x)]), x, x)
  np.testing.assert_allclose(lowered(x, x), fn({}, x, x), atol=1e-6)


def test_numpy_and_jax_round_alike():
  spec = Spec(0.5, 3)
  x = np.linspace(-80, 80, 641, dtype=np.float32)
  np.testing.assert_array_equal(spec.quantize(x), spec.quantize_np(x))
  codes = np.arange(-128, 128, dtype=np.int8)
  np.testing.assert_array_equal(
    spec.quantize(spec.dequantize(jnp.asarray(codes))), codes
  )


@pytest.mark.parametrize('bad', [(np.nan, 1), (-np.inf, 0), (1, 0)])
def test_bad_ranges(bad):
  with pytest.raises(ValueError, match='range of x must be finite'):
    from_range(*bad, name='x')


def test_fake_quantize_is_the_grid_and_its_gradient_passes_inside():
  spec = from_range(-1.0, 1.0)
  x = jnp.asarray([-5.0, -0.3, 0.0, 0.77, 5.0])
  y, g = jax.vmap(jax.value_and_grad(lambda v: fake_quantize(v, spec)))(x)
  np.testing.assert_array_equal(y, spec.dequantize(spec.quantize(x)))
  np.testing.assert_array_equal(g, [0, 1, 1, 1, 0])


@pytest.mark.parametrize('bits', [8, 16])
def test_masks_have_a_code_below_all_data(bits):
  spec = masked_range(-3.0, 5.0, bits)
  x = np.array([-np.inf, -1e9, -5e5, -3.0, 0.0, 5.0])
  codes = spec.quantize_np(x)
  assert np.all(codes[:3] == spec.mask_code) and np.all(codes[3:] >= spec.low)
  assert spec.mask_code == np.iinfo(spec.dtype).min < spec.low
  np.testing.assert_allclose(spec.dequantize(codes)[:3], -1e9)
  np.testing.assert_allclose(
    spec.dequantize(codes)[3:], x[3:], atol=spec.scale * 0.51
  )
  assert not spec.clipped(-3.0, 9.0).masked and spec.clipped(-np.inf, 2).masked


def test_a_clip_narrows_and_a_narrower_spec_holds_less():
  spec = from_range(-1.0, 1.0)
  relu = spec.clipped(0.0, np.inf)
  assert (relu.low, relu.high) == (spec.zero, spec.high)
  assert spec.holds(relu) and not relu.holds(spec)
  assert spec.scaled(3.0).scaled(1 / 3).holds(spec)
  assert not spec.scaled(3.0).holds(spec)
  assert spec.clipped(5.0, 9.0).interval[0] == spec.interval[1]
