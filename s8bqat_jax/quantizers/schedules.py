"""What is a number, or changes over training."""

import jax
import jax.numpy as jnp
import numpy as np
import optax


def at(value: optax.ScalarOrSchedule, step: jax.typing.ArrayLike) -> jax.Array:
  """Returns a number, or what a schedule says of a step, in float32.

  Args:
    value: the number, or (step) -> number.
    step: 0 at the first one.
  """
  return jnp.asarray(value(step) if callable(value) else value, jnp.float32)


def values(value: optax.ScalarOrSchedule, steps: int) -> np.ndarray:
  """Returns what `at` says of the first steps, float64 [steps], under jit too.

  Args:
    value: as for `at`.
    steps: how many.
  """
  with jax.ensure_compile_time_eval():
    found = jax.vmap(lambda step: at(value, step))(jnp.arange(steps))
    return np.asarray(found, np.float64)
