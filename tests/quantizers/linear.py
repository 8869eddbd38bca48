"""Two tiny weights, a loss whose slope is given, and a member for them."""

import jax.numpy as jnp

from s8bqat_jax.quantizers import State, lift_tensor
from s8bqat_jax.quantizers.uniform import max_scale, quantize

PARAMS = {'a': jnp.array([[1.0, 2.0]]), 'b': jnp.array([[3.0]])}
GRADS = {'a': jnp.array([[3.0, 0.0]]), 'b': jnp.array([[4.0]])}  # norm 5


def member(rules=8, init=None, **functions):
  """Returns a quantizer to 8 bits with the given functions."""
  return lift_tensor(
    rules,
    init=init or (lambda w, spec: State(carried=max_scale(w, spec.levels))),
    quantize=lambda w, state, spec: quantize(w, max_scale(w, 256), 256),
    **functions,
  )


def loss(params, batch, key):
  """A loss whose gradient is the batch itself."""
  del key
  terms = [jnp.sum(params[n] * g) for n, g in batch.items()]
  return sum(terms), {}
