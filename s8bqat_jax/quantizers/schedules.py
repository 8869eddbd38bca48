"""What is a number, or changes over training."""

import jax
import jax.numpy as jnp
import optax


def at(value: optax.ScalarOrSchedule, step: jax.typing.ArrayLike) -> jax.Array:
  """Returns a number, or what a schedule says of a step, in float32.

  Args:
    value: the number, or (step) -> number.
    step: 0 at the first one.
  """
  return jnp.asarray(value(step) if callable(value) else value, jnp.float32)
