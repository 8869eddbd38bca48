"""Integer square root and LayerNorm."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from s8bqat_jax.integer import norm
from s8bqat_jax.integer.requantize import Out, to_multiplier


def test_isqrt_is_floor_of_the_root():
  r = np.random.default_rng(0)
  roots = r.integers(0, 2**31, 2000)
  x = np.concatenate(
    [
      np.arange(4000),
      roots**2,
      roots**2 + 2 * roots,
      np.maximum(roots**2, 1) - 1,
    ]
  )
  x = np.minimum(x, 2**62 - 1)
  with jax.enable_x64(True):
    y = np.asarray(jax.jit(norm.isqrt)(jnp.asarray(x, jnp.int64)))
  np.testing.assert_array_equal(y, [math.isqrt(int(v)) for v in x])


@pytest.mark.parametrize('dtype', ['int8', 'int16'])
@pytest.mark.parametrize('center', [True, False])
@pytest.mark.parametrize('width', [2, 16, 512, 4096])
def test_error_bound(dtype, center, width):
  r = np.random.default_rng(width)
  info = np.iinfo(dtype)
  x = r.integers(info.min, info.max, (64, width), endpoint=True).astype(dtype)
  x[0] = 5  # No variance at all.
  x[1] = 5 + (np.arange(width) == 1)  # One code apart.
  scale, zero, epsilon = 0.01, 4, 1e-6
  gamma, beta = r.normal(size=width), r.normal(size=width)
  real = (x.astype(np.float64) - zero) * scale
  c = real - real.mean(-1, keepdims=True) if center else real
  n = c / np.sqrt((c**2).mean(-1, keepdims=True) + epsilon)
  step = 2.0**-11
  fixed, _ = to_multiplier(
    gamma / 2.0**norm.VALUE_BITS / step, 2.0**-norm.BIAS_BITS
  )
  y = norm.q_layernorm(
    x, fixed.multiplier,
    np.rint(beta / step * 2.0**norm.BIAS_BITS).astype(np.int32),
    center=center, zero=zero, epsilon=round(
      epsilon * (16 * width / scale / 2**norm.dropped_bits(width, info.bits))**2
    ),
    shift=fixed.shift, out=Out(0, -32767, 32767, 'int16'), site='',
  )  # fmt: skip
  # floor(sqrt(v)) is off by at most 1 in 16 N sigma.
  deviation = np.sqrt((c**2).mean(-1, keepdims=True) + epsilon) / scale
  root = 1 / (16 * width * deviation)
  coarse = 0.0
  if dropped := norm.dropped_bits(width, info.bits):
    coarse = 0.6 * 2**dropped / (width * deviation)
  assert (dropped > 0) == (width == 4096 and dtype == 'int16')
  bound = (2.0**-13 + root + coarse) * np.abs(n) + 2.0**-13 + coarse
  bound = np.abs(gamma) * bound
  bound = bound + step * 0.502
  error = np.abs(np.asarray(y) * step - np.clip(n * gamma + beta, -16, 16))
  assert np.all(error <= bound)


@pytest.mark.parametrize('bits', [8, 16])
def test_no_width_overflows(bits):
  """Worst rows, half at either end, against Python's own integers."""
  widths = [2**k + d for k in range(1, 18) for d in (-1, 0, 1)]
  for width in [*widths, 645, 646, 26_007, 26_008]:
    dropped = norm.dropped_bits(width, bits)
    ends = width * (2**bits - 1)  # of c, |zero| included
    kept = (ends + (1 << dropped >> 1)) >> dropped
    assert width * kept**2 < 2**63
    assert kept**2 * 4**norm.ROOT_FRACTION < 2**62
    if dropped:  # and no bit more than that takes
      lost = ends >> (dropped - 1)
      assert width * (2 * lost) ** 2 * 1.01 > 2**62
  assert norm.dropped_bits(645 if bits == 16 else 26_007, bits) == 0
  assert norm.dropped_bits(646 if bits == 16 else 26_008, bits) == 1


@pytest.mark.parametrize('center', [True, False])
@pytest.mark.parametrize(
  'scale, epsilon, zero',
  [(0.01, 1e-6, 4), (0.05, 1e-6, -128), (0.001, 1e-5, 0), (0.1, 1e-3, 127)],
)
def test_all_pairs(scale, epsilon, zero, center):
  """Exhaustive: every pair of 8-bit inputs, within the module's bound."""
  width, step = 2, 2.0**-11
  x = np.stack(np.meshgrid(*[np.arange(-128, 128)] * width), -1).astype(np.int8)
  real = (x.astype(np.float64) - zero) * scale
  c = real - real.mean(-1, keepdims=True) if center else real
  deviation = np.sqrt((c**2).mean(-1, keepdims=True) + epsilon)
  n = c / deviation
  fixed, _ = to_multiplier(
    np.ones(width) / 2.0**norm.VALUE_BITS / step, 2.0**-norm.BIAS_BITS
  )
  y = norm.q_layernorm(
    x, fixed.multiplier, np.zeros(width, np.int32), center=center,
    epsilon=round(epsilon * (16 * width / scale) ** 2), zero=zero,
    shift=fixed.shift, out=Out(0, -32767, 32767, 'int16'), site='',
  )  # fmt: skip
  error = np.abs(np.asarray(y) * step - n)
  # The root is a floor: off by at most 1 in 16 N deviations, in codes.
  root = 1 / (16 * width * deviation / scale)
  bound = (2.0**-13 + root) * np.abs(n) + 2.0**-13
  assert np.all(error <= bound + 0.502 * step)
