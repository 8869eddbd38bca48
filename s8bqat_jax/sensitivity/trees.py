"""Names of the tensors of a params pytree, and clear errors about them."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

PyTree = Any


def path_name(path: tuple[Any, ...]) -> str:
  """`('params', 'Dense_0', 'kernel')` as `params/Dense_0/kernel`."""
  return jax.tree_util.keystr(path, simple=True, separator='/')


def named_leaves(params: PyTree) -> dict[str, Any]:
  """The leaves of `params` by name, in the order of `jax.tree.leaves`."""
  leaves, _ = jax.tree_util.tree_flatten_with_path(params)
  return {path_name(path): leaf for path, leaf in leaves}


def check_float_params(params: PyTree) -> None:
  """Raises unless every leaf can be differentiated and there is one at all."""
  named = named_leaves(params)
  if not named:
    raise ValueError('params has no tensors; pass a pytree of float arrays')
  for name, leaf in named.items():
    dtype = getattr(leaf, 'dtype', np.asarray(leaf).dtype)
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
