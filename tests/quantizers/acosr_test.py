"""ACosR is |sin(pi w / step)| on its grid, and ships that uniform grid."""

import jax
import jax.numpy as jnp
import numpy as np

from s8bqat_jax import quantizers
from s8bqat_jax.artifacts import qtensor

W = {
  'w': jnp.asarray(np.random.default_rng(0).normal(size=(40, 10)), 'float32')
}


def ctx():
  return quantizers.Ctx(jnp.int32(0), jax.random.key(0), jnp.float32(0.1))


def test_penalty_is_the_absolute_sine_inside_the_grid():
  quantizer = quantizers.acosr(3, pressure=1.0, coupling='loss')
  state = quantizer.init(W)
  step = float(quantizer.encode(W, state)['w'].scale)
  inside = {'w': jnp.clip(W['w'], -4 * step, 3 * step)}
  want = (step / np.pi) ** 2 * np.sum(
    np.abs(np.sin(np.pi * np.asarray(inside['w'], np.float64) / step))
  )
  got = quantizer.penalty(inside, state, ctx())
  np.testing.assert_allclose(got, want, rtol=1e-4)
  assert quantizer.penalty({'w': 0 * W['w']}, state, ctx()) == 0


def test_ships_integers_and_the_flow_ends_on_them():
  for bits, levels in (('ternary', 3), (4, 16)):
    quantizer = quantizers.acosr(bits, pressure=1000.0)
    state = quantizer.init(W)
    shipped = qtensor.check(quantizer.encode(W, state)['w'])
    assert shipped.codebook is None and shipped.levels == levels
    new, _, _ = quantizer.after_update(W, state, ctx())
    np.testing.assert_array_equal(new['w'], qtensor.dequantize(shipped))
