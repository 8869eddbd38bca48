import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from s8bqat_jax.quantizers import schedules


@pytest.mark.parametrize('number', [3, 0.1, np.float64(0.1), jnp.float32(0.1)])
def test_a_number_is_itself_at_every_step(number):
  for step in (0, 7, jnp.int32(7)):
    got = schedules.at(number, step)
    assert got.dtype == jnp.float32 and got.shape == ()
    assert got == np.float32(number)


def test_the_values_of_all_steps_also_within_jit():
  ramp = optax.linear_schedule(0.0, 1.0, 10)
  for value, expected in ((ramp, np.arange(5) / 10), (0.5, np.full(5, 0.5))):
    total = jax.jit(lambda x, v=value: x + schedules.values(v, 5).sum())(0.0)
    np.testing.assert_allclose(total, expected.sum(), rtol=1e-6)
    np.testing.assert_allclose(schedules.values(value, 5), expected, rtol=1e-6)


def test_a_schedule_is_asked_also_within_jit_and_vmap():
  ramp = optax.linear_schedule(0.0, 1.0, 10)
  got = jax.jit(jax.vmap(lambda step: schedules.at(ramp, step)))(jnp.arange(12))
  expected = np.minimum(np.arange(12) / 10, 1)
  np.testing.assert_allclose(got, expected, rtol=1e-6)
  assert schedules.at(lambda step: step, 3).dtype == jnp.float32
