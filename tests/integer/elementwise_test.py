"""Elementwise primitives within their stated bounds, over all 8-bit inputs."""

import numpy as np
import pytest

from s8bqat_jax.integer import elementwise as ew
from s8bqat_jax.integer.requantize import Out, to_multiplier

A, B = (g.astype(np.int8) for g in np.meshgrid(*[np.arange(-128, 128)] * 2))


def near(codes, real, out):
  """Largest distance from the unrounded code, saturation applied."""
  exact = np.clip(real + out.zero, out.low, out.high)
  return np.abs(np.asarray(codes, np.float64) - exact).max()


@pytest.mark.parametrize('ratio', [0.013, 0.7, 3.1])
def test_rescale(ratio):
  x = np.arange(-(2**15), 2**15).astype(np.int16)
  out = Out(-9)
  (m,) = to_multiplier(ratio)
  y = ew.q_rescale(x, m.multiplier, zero=3, shift=m.shift, out=out, site='')
  assert near(y, (x.astype(float) - 3) * ratio, out) <= 0.5 + 2.0**-15


@pytest.mark.parametrize('ratios', [(0.4, 0.6), (0.9, -0.003)])
def test_add_all_pairs(ratios):
  a, b = to_multiplier(*ratios)
  out = Out(11)
  y = ew.q_add(
    A, B, a.multiplier, b.multiplier, zeros=(3, -5), shift=a.shift, out=out,
    site='',
  )  # fmt: skip
  real = (A.astype(float) - 3) * ratios[0] + (B.astype(float) + 5) * ratios[1]
  assert near(y, real, out) <= 0.5 + 2.0**-20


def test_mul_all_pairs():
  (m,) = to_multiplier(0.0061)
  out = Out(0, -32767, 32767, 'int16')
  y = ew.q_mul(
    A, B, m.multiplier, zeros=(-128, 4), shift=m.shift, out=out, site=''
  )
  real = (A.astype(float) + 128) * (B.astype(float) - 4) * 0.0061
  assert near(y, real, out) <= 0.5 + 2.0**-20


@pytest.mark.parametrize('bits', [8, 16])
def test_a_table_of_all_16_bit_inputs(bits):
  x = np.arange(-(2**15), 2**15)
  scale, out_scale = 80 / 32767, 1 / (2 ** (bits - 1))
  high = 2 ** (bits - 1) - 1
  out = Out(0, -high, high, f'int{bits}')
  real = np.tanh(x * scale) / out_scale
  table = np.clip(np.rint(real), -high, high).astype(out.dtype)
  y = ew.q_lut(x.astype(np.int16), table, out=out, site='')
  assert y.dtype == out.dtype and near(y, real, out) <= 0.5


@pytest.mark.parametrize('bits', [8, 16])
@pytest.mark.parametrize('fn', [np.tanh, np.exp, np.square], ids=str)
def test_a_table_of_all_8_bit_inputs(fn, bits):
  x = np.arange(-128, 128, dtype=np.int8)
  real = fn((x - 3.0) * 0.03)
  out_scale = np.abs(real).max() / 2 ** (bits - 1)
  high = 2 ** (bits - 1) - 1
  out = Out(0, -high - 1, high, f'int{bits}')
  table = np.clip(np.floor(real / out_scale + 0.5), out.low, out.high)
  y = ew.q_lut(x, table.astype(out.dtype), out=out, site='')
  assert y.dtype == out.dtype and near(y, real / out_scale, out) <= 0.5


@pytest.mark.parametrize('dtype, size', [('int8', 255), ('int16', 256)])
def test_a_table_of_another_size_is_an_error(dtype, size):
  with pytest.raises(ValueError, match=rf'{dtype} needs .* got \({size},\)'):
    ew.q_lut(np.zeros(3, dtype), np.zeros(size, np.int8), out=Out(), site='')
