"""Names of leaves: in any tree, for rules and ranges; and in a file.

A file knows tensors by name only: nested dicts become one flat dict, whose
names are escaped such that every key comes back.
"""

from __future__ import annotations

import urllib.parse
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from s8bqat_jax.artifacts import qtensor

EMPTY = object()  # stands for a dict without entries


def name_of(path: tuple[Any, ...]) -> str:
  """Returns the name of the leaf at a jax key path, wherever it comes from.

  The box that nnx (`Param`) or linen (`Partitioned`) puts around an array has
  no part in it, nor has a leading `params` collection.

  Args:
    path: as from `jax.tree_util.tree_leaves_with_path`.

  Returns:
    Its keys joined by slashes, such as `encoder/layer_0/kernel`.
  """
  last = path[-1] if path else None
  if isinstance(last, jax.tree_util.GetAttrKey) and last.name == 'value':
    path = path[:-1]
  keys = [jax.tree_util.keystr((entry,), simple=True) for entry in path]
  if len(keys) > 1 and keys[0] == 'params':
    keys = keys[1:]
  return '/'.join(keys)


def named(tree: Any) -> dict[str, Any]:
  """Returns {name: leaf} in the tree's own order; a QTensor is one leaf.

  Args:
    tree: a pytree. `None` in the place of a leaf means that it is masked out.

  Returns:
    The leaves by name.

  Raises:
    ValueError: if two leaves have the same name.
  """
  leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=qtensor.is_qtensor)
  by_name = {name_of(path): leaf for path, leaf in leaves}
  if len(by_name) < len(leaves):
    names = [name_of(path) for path, _ in leaves]
    twice = sorted({name for name in names if names.count(name) > 1})
    raise ValueError(
      f'these names stand for more than one leaf each: {twice}; rename the '
      'modules or keys that differ only in how they are boxed'
    )
  return by_name


def flatten(tree: Any, path: tuple = ()) -> Iterator[tuple[str, Any]]:
  """Yields the leaves of nested dicts and their names.

  Args:
    tree: nested dicts (string or integer keys) of leaves.
    path: keys that lead to `tree`.

  Yields:
    (name, leaf); for an empty dict (name, EMPTY).

  Raises:
    ValueError: if `tree` is no dict, or a key neither string nor integer.
  """
  if not isinstance(tree, Mapping):
    if not path:
      raise ValueError(
        f'a packed file holds nested dicts, got {type(tree).__name__}'
      )
    yield _name(path), _unbox(tree)
    return
  if not tree and path:
    yield _name(path), EMPTY
  for key, value in tree.items():
    yield from flatten(value, (*path, key))


def unflatten(leaves: dict[str, Any]) -> dict:
  """Inverts `flatten`.

  Args:
    leaves: {name: leaf}; an empty dict is a leaf of its own.

  Returns:
    Nested dicts.
  """
  tree: dict = {}
  for name, leaf in leaves.items():
    *parents, last = _path(name)
    node = tree
    for key in parents:
      node = node.setdefault(key, {})
    node[last] = leaf
  return tree


def _unbox(leaf: Any) -> Any:
  """Returns the one leaf of a box, such as an nnx Variable around a weight."""
  if isinstance(leaf, np.ndarray | jax.Array | list | tuple):
    return leaf
  inside = jax.tree_util.tree_leaves_with_path(leaf, is_leaf=qtensor.is_qtensor)
  boxes = all(getattr(k, 'name', '') == 'value' for p, _ in inside for k in p)
  return inside[0][1] if len(inside) == 1 and boxes else leaf


def _name(path: tuple) -> str:
  """Returns keys joined by '/', all else but letters, digits and _.-~ escaped.

  Integer keys get a colon, which no escaped string holds.
  """
  parts = []
  for key in path:
    if isinstance(key, str):
      parts.append(urllib.parse.quote(key, safe=''))
    elif isinstance(key, int) and not isinstance(key, bool):
      parts.append(f':{key}')
    else:
      raise ValueError(
        f'keys must be strings or integers, got {key!r} in {path}'
      )
  # The one name that safetensors keeps for itself.
  return '/'.join(parts).replace('__metadata__', '%5F_metadata__')


def _path(name: str) -> tuple:
  return tuple(
    int(part[1:]) if part.startswith(':') else urllib.parse.unquote(part)
    for part in name.split('/')
  )
