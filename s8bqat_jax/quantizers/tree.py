"""Leaves of any params pytree by name: linen, nnx state, plain containers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from s8bqat_jax.artifacts import qtensor
from s8bqat_jax.artifacts.names import name_of, named

_BIASES_AND_GAINS = ('bias', 'scale', 'gamma', 'beta')


def quantized(encoded: Any) -> dict[str, qtensor.QTensor]:
  """Returns the QTensors of an encoded tree by name.

  Args:
    encoded: what `Quantizer.encode` returns.

  Returns:
    {name: QTensor} in the tree's own order.
  """
  leaves = named(encoded)
  return {n: x for n, x in leaves.items() if qtensor.is_qtensor(x)}


def replace(tree: Any, leaves: Mapping[str, Any]) -> Any:
  """Returns `tree` with the named leaves replaced and the others as they are.

  Args:
    tree: a pytree.
    leaves: new leaves by name; a leaf may be a QTensor.

  Returns:
    A tree of the same structure.
  """
  return jax.tree_util.tree_map_with_path(
    lambda path, leaf: leaves.get(name_of(path), leaf),
    tree,
    is_leaf=qtensor.is_qtensor,
  )


def keep(tree: Any, names: Any) -> Any:
  """Returns `tree` with `None` for every leaf whose name is not in `names`.

  What is left keeps its full path, so that a rule sees the same names in a
  masked tree as in a whole one.

  Args:
    tree: a pytree.
    names: a container of names.

  Returns:
    A tree whose other leaves are masked out.
  """
  return jax.tree_util.tree_map_with_path(
    lambda path, leaf: leaf if name_of(path) in names else None,
    tree,
    is_leaf=qtensor.is_qtensor,
  )


def mark_moved(moved: Any, names: Iterable[str]) -> Any:
  """Returns the `moved` tree with the named tensors marked too.

  Args:
    moved: {..: bool}, the shape of the params tree.
    names: of the tensors to mark.

  Returns:
    The tree with a boolean array in every leaf.
  """
  names = set(names)
  return jax.tree_util.tree_map_with_path(
    lambda path, x: jnp.logical_or(x, name_of(path) in names), moved
  )


def weights(tree: Any) -> dict[str, Any]:
  """Returns what quantizers may take: floating point, two axes or more.

  Biases and normalization gains are a thousandth of the bytes and stay in
  floating point, those too that have an axis for attention's heads or for the
  layers of a scan; they are known by their names.

  Args:
    tree: any params pytree.

  Returns:
    {name: leaf} in the tree's own order.
  """
  return {
    name: leaf
    for name, leaf in named(tree).items()
    if jnp.ndim(leaf) >= 2
    and jnp.issubdtype(jnp.result_type(leaf), jnp.floating)
    and name.rpartition('/')[2] not in _BIASES_AND_GAINS
  }


def shard_like(x: jax.Array, w: jax.Array) -> jax.Array:
  """Returns `x` laid out over devices as `w` is, inside `jit` or outside.

  Args:
    x: an array of the shape of `w`.
    w: the array whose layout is wanted.

  Returns:
    `x`, value for value.
  """
  if not isinstance(w, jax.core.Tracer):
    committed = isinstance(w, jax.Array) and w.committed
    return jax.device_put(x, w.sharding) if committed else x
  sharding = jax.typeof(w).sharding
  if sharding.mesh.explicit_axes and jax.typeof(x).sharding != sharding:
    x = jax.sharding.reshard(x, sharding)
  # On automatic axes a layout is known only to the compiler, which lays
  # elementwise operands out alike.
  return jnp.where(w != w, x, x)


def whole(w: jax.Array) -> jax.Array:
  """Returns `w` such that one may sort it and count in it.

  Where a mesh has explicit axes these go over nothing that is split.

  Args:
    w: an array or tracer.
  """
  sharding = jax.typeof(w).sharding
  if not sharding.mesh.explicit_axes:
    return w
  together = jax.NamedSharding(sharding.mesh, jax.P(*[None] * jnp.ndim(w)))
  return jax.sharding.reshard(w, together)


def inherit_sharding(state: Any, weights: Mapping[str, jax.Array]) -> Any:
  """Gives param-shaped state the layout of the weight it belongs to.

  Args:
    state: any pytree of dicts keyed by weight names, at any depth.
    weights: the weights by name.

  Returns:
    `state`, where every leaf that lies below the name of a weight and has its
    shape is laid out over the devices as that weight is.
  """

  def place(path, leaf):
    for entry in path:
      w = weights.get(str(getattr(entry, 'key', '')))
      if w is not None and jnp.shape(leaf) == jnp.shape(w):
        return shard_like(leaf, w)
    return leaf

  return jax.tree_util.tree_map_with_path(place, state)


def check_fit(w: jax.Array, levels: int) -> None:
  """Raises ValueError for what no table can be fitted to.

  Args:
    w: the weight.
    levels: of the table.
  """
  if not jnp.issubdtype(w.dtype, jnp.floating):
    raise ValueError(f'weights must be floating point, got {w.dtype}')
  if not w.size:
    raise ValueError(f'there is no fit to no weights (shape {w.shape})')
  if not 2 <= levels <= qtensor.MAX_LEVELS:
    raise ValueError(f'levels must be in 2..{qtensor.MAX_LEVELS}, got {levels}')
