"""Integer softmax within the bounds its module states."""

import numpy as np
import pytest

from s8bqat_jax.integer import softmax
from s8bqat_jax.integer.requantize import Out, to_multiplier


def probabilities(x):
  e = np.exp(x - x.max(axis=-1, keepdims=True))
  return e / e.sum(axis=-1, keepdims=True)


def published_exponential(x_q, scale):
  """exp of codes <= 0 by I-BERT's integer polynomial (arXiv 2101.01321)."""
  a, b, c = 0.35815147, 0.96963238 / 0.35815147, 1 / 0.35815147
  ln2, b_q, c_q = (int(x // scale) for x in (np.log(2), b, c / scale))
  z = -x_q // ln2
  p = x_q + z * ln2
  return ((p + b_q) * p + c_q) >> np.minimum(z, 62), a * scale**2


@pytest.mark.parametrize('scale', [0.01, 0.07, 0.5])
def test_exp_table_is_correctly_rounded_everywhere(scale):
  exact = np.exp(-np.arange(256) * scale)
  assert np.abs(softmax.exp_table(scale) / 2**15 - exact).max() <= 2.0**-16


@pytest.mark.parametrize('scale', [0.005, 0.02, 0.1])
def test_softmax_is_closer_than_with_the_published_exponential(scale):
  x = np.random.default_rng(0).integers(-128, 128, (300, 20)).astype(np.int8)
  p = probabilities(x * scale)
  y = softmax.q_softmax(
    x, softmax.exp_table(scale), masked=False, bits=15,
    out=Out(0, 0, 32767, 'int16'), site='',
  )  # fmt: skip
  ours = np.abs(np.asarray(y) / 2**15 - p).max()
  d = x.astype(np.int32) - x.max(axis=-1, keepdims=True)
  e, step = published_exponential(d.astype(np.int64), scale)
  # It is the polynomial, and as close as is said.
  assert 0 < np.abs(e * step - np.exp(d * scale)).max() <= 1.9e-3 + 0.75 * scale
  published = np.abs(e / e.sum(axis=-1, keepdims=True) - p).max()
  # The same probabilities: the exponential's error, relative to its sum >= 1.
  assert published <= 2 * (1.9e-3 + 0.75 * scale)
  assert ours < published / 4


@pytest.mark.parametrize('width', [1, 2, 7, 300])
def test_softmax_error_bound(width):
  r = np.random.default_rng(width)
  scale = 0.04
  x = r.integers(-128, 128, (200, width)).astype(np.int8)
  x[0], x[1] = -128, 127
  y = softmax.q_softmax(
    x, softmax.exp_table(scale), masked=False, bits=15,
    out=Out(0, 0, 32767, 'int16'), site='',
  )  # fmt: skip
  p = probabilities(x * scale)
  bound = p * width * 2.0**-16 + 2.0**-16 + 2.0**-16
  # One more LSB where p = 1 saturates at 2^15 - 1.
  error = np.abs(np.asarray(y) / 2**15 - p)
  assert np.all(error <= bound + (p > 1 - 2.0**-14) * 2.0**-15)


def test_softmax_of_all_pairs():
  """Exhaustive: every pair of 8-bit inputs, 8-bit probabilities."""
  a, b = np.meshgrid(np.arange(-128, 128), np.arange(-128, 128))
  x = np.stack([a, b], -1).astype(np.int8)
  y = softmax.q_softmax(
    x, softmax.exp_table(0.03), masked=False, bits=8, out=Out(-128), site=''
  )
  p = probabilities(x * 0.03)
  expected = np.clip(p * 256 - 128, -128, 127)
  assert np.abs(np.asarray(y) - expected).max() <= 0.5 + 256 * 3 * 2.0**-16


PAIRS = np.stack(np.meshgrid(*[np.arange(-128, 128)] * 2), -1).astype(np.int8)


@pytest.mark.parametrize('step', [1 / 8, 1 / 256, 1 / 4096])
@pytest.mark.parametrize('scale', [0.005, 0.05, 0.3, 2.0, 20.0])
def test_log_softmax_of_all_pairs(scale, step):
  """Exhaustive: every pair of 8-bit inputs, within the module's bound."""
  first, second = to_multiplier(
    scale / step, np.log(2) * 2.0**-softmax.LOG_BITS / step
  )
  limit = 2**31 - 1
  y = softmax.q_log_softmax(
    PAIRS, softmax.exp_table(scale), softmax.log_table(), first.multiplier,
    second.multiplier, masked=False, shift=first.shift,
    out=Out(0, -limit, limit, 'int32'), site='',
  )  # fmt: skip
  real = PAIRS * scale
  expected = real - np.logaddexp(*np.moveaxis(real, -1, 0))[..., None]
  error = np.abs(np.asarray(y) * step - expected)
  # A multiplier of 31 bits errs by 2^-31 of the value.
  rounding = step / 2 + np.abs(expected) * 2.0**-30
  assert np.all(error <= 2.0**-12 + 2 * 2.0**-16 + rounding)


def test_masked_entries_have_no_weight():
  x = np.int8([[-128, 0, 0, -128], [-128] * 4])
  y = softmax.q_softmax(
    x, softmax.exp_table(0.01), masked=True, bits=8, out=Out(-128), site=''
  )
  np.testing.assert_array_equal(y, [[-128, 0, 0, -128], [-128] * 4])


@pytest.mark.parametrize('width', [1, 2, 40, 1000])
def test_log_softmax_error_bound(width):
  r = np.random.default_rng(width)
  scale, step = 0.05, 1 / 256
  x = r.integers(-128, 128, (100, width)).astype(np.int8)
  first, second = to_multiplier(
    scale / step, np.log(2) * 2.0**-softmax.LOG_BITS / step
  )
  y = softmax.q_log_softmax(
    x, softmax.exp_table(scale), softmax.log_table(), first.multiplier,
    second.multiplier, masked=False, shift=first.shift,
    out=Out(0, -32767, 32767, 'int16'), site='',
  )  # fmt: skip
  error = np.abs(np.asarray(y) * step - np.log(probabilities(x * scale)))
  assert error.max() <= 2.0**-12 + width * 2.0**-16 + step / 2
