"""The polynomials against float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from s8bqat_jax.quantizers import trig


@pytest.mark.parametrize(
  'ours, exact, end',
  [(trig.tan, np.tan, np.pi / 4), (trig.arctan, np.arctan, 1.0)],
)
def test_float32_within_two_units(ours, exact, end):
  x = np.concatenate(
    [np.linspace(0, end, 200_001), np.geomspace(1e-30, end, 20_001)]
  ).astype(np.float32)
  x = np.minimum(x, np.float32(end))
  found = np.asarray(jax.jit(ours)(jnp.asarray(x)), np.float64)
  wanted = exact(x.astype(np.float64))
  error = np.abs(found - wanted)[wanted > 0] / wanted[wanted > 0]
  assert error.max() < 2.5e-7
  assert found[x == 0].tolist() == [0.0] * int((x == 0).sum())
  np.testing.assert_array_equal(ours(jnp.asarray(-x)), -ours(jnp.asarray(x)))


@pytest.mark.parametrize('name', ['tan', 'arctan'])
def test_other_dtypes_take_the_library(name):
  with jax.enable_x64(True):
    x = jnp.linspace(-0.7, 0.7, 11, dtype=jnp.float64)
    np.testing.assert_array_equal(getattr(trig, name)(x), getattr(jnp, name)(x))
