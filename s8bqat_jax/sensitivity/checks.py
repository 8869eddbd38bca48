"""Clear errors about params and batches."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from s8bqat_jax.artifacts.names import named

PyTree = Any


def check_float_params(params: PyTree) -> None:
  """Raises unless every leaf can be differentiated and there is one at all."""
  tensors = named(params)
  for name, leaf in tensors.items():
    if not hasattr(leaf, 'dtype'):
      raise TypeError(
        f'params tensor {name!r} is a {type(leaf).__name__}, expected an array'
      )
  if not any(np.size(leaf) for leaf in tensors.values()):
    raise ValueError(
      'params has no tensors with elements; pass a pytree of float arrays'
    )
  for name, leaf in tensors.items():
    dtype = jnp.result_type(leaf)
    if not jnp.issubdtype(dtype, jnp.floating):
      raise TypeError(
        f'params tensor {name!r} has dtype {dtype}; expected a float dtype. '
        'Leave integer state out of params and close over it in the function.'
      )


def check_batches(batches: Any) -> list[PyTree]:
  """`batches` as a non-empty list."""
  batches = list(batches)
  if not batches:
    raise ValueError(
      'batches is empty; pass at least one batch (an empty corpus, or an '
      'iterator that was already consumed, looks like this)'
    )
  return batches
