"""One file that holds a packed model: what ships, and what a size claim counts.

The file is a safetensors container. A float leaf at path `encoder/w` is the
tensor `encoder/w`; a QTensor there is stored as `records` says. The metadata
holds the config, the tokenizer and what the tensors cannot say: shapes and
levels of codes, in the order of their scales and codebooks, which paths are
tied, which dicts are empty.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from s8bqat_jax import files
from s8bqat_jax.artifacts import container, names, qtensor, records

PackedFileError = container.PackedFileError

_FORMAT = 's8bqat_jax packed model 1'
# What inconsistent metadata under a valid checksum can raise.
_DISAGREEMENTS = (
  ArithmeticError,
  AttributeError,
  LookupError,
  MemoryError,
  RecursionError,
  TypeError,
  ValueError,
)


class Packed(NamedTuple):
  """What a packed file holds.

  Attributes:
    tree: nested dicts of read-only NumPy arrays and QTensors of such.
    config: the dict that was saved.
    tokenizer: the dict that was saved (`Tokenizer.to_config()`), or None.
  """

  tree: dict
  config: dict
  tokenizer: dict | None


def save(
  path: os.PathLike | str,
  tree: Mapping,
  *,
  config: Mapping[str, Any] | None = None,
  tokenizer: Mapping[str, Any] | None = None,
  entropy_code: bool = False,
) -> int:
  """Writes a packed file, whole or not at all.

  Args:
    path: of the file; an older one is replaced.
    tree: nested dicts (string or integer keys) of arrays and QTensors. Leaves
      of equal content are stored once.
    config: JSON-able, what it takes to rebuild the model.
    tokenizer: JSON-able, `Tokenizer.to_config()`.
    entropy_code: whether to entropy-code the codes; takes longer to load.

  Returns:
    The file's size in bytes.

  Raises:
    ValueError: naming the leaf, key or argument that a file cannot hold.
    OSError: naming `path`, if it cannot be written; an older file is whole.
  """
  data = serialize(
    tree, config=config, tokenizer=tokenizer, entropy_code=entropy_code
  )
  _write(pathlib.Path(path), data)
  return len(data)


def load(path: os.PathLike | str) -> Packed:
  """Reads a packed file.

  Args:
    path: of a file that `save` wrote.

  Returns:
    A Packed; every array and code is exactly what was saved.

  Raises:
    PackedFileError: the file is truncated, changed, or of another kind.
  """
  return deserialize(pathlib.Path(path).read_bytes(), str(path))


def packed_bytes(tree: Mapping) -> int:
  """Returns the size in bytes of the packed file of a tree.

  Args:
    tree: as in `save`.

  Returns:
    Bytes of the file, header and all.
  """
  return len(serialize(tree))


def encoded_bytes(
  tree: Mapping,
  *,
  config: Mapping[str, Any] | None = None,
  tokenizer: Mapping[str, Any] | None = None,
) -> int:
  """Returns the size in bytes of the entropy-coded file of a tree.

  Args:
    tree: as in `save`.
    config: as in `save`.
    tokenizer: as in `save`.

  Returns:
    Bytes of the file, header and all.
  """
  return len(
    serialize(tree, config=config, tokenizer=tokenizer, entropy_code=True)
  )


def serialize(
  tree: Mapping,
  *,
  config: Mapping[str, Any] | None = None,
  tokenizer: Mapping[str, Any] | None = None,
  entropy_code: bool = False,
) -> bytes:
  """Returns the bytes that `save` writes.

  Args:
    tree: as in `save`.
    config: as in `save`.
    tokenizer: as in `save`.
    entropy_code: as in `save`.

  Returns:
    The whole file.

  Raises:
    ValueError: as in `save`.
  """
  arrays: dict[str, np.ndarray] = {}
  stored: dict[str, dict[str, records.Record]] = {}
  tied: dict[str, str] = {}
  empty: list[str] = []
  first_with: dict[bytes, str] = {}
  for name, leaf in names.flatten(tree):
    if leaf is names.EMPTY:
      empty.append(name)
      continue
    if qtensor.is_qtensor(leaf):
      record = records.record(name, leaf, entropy_code)
      fingerprint = _fingerprint(record.kind, leaf.shape, *record.arrays)
    elif _is_array(leaf):
      record, array = None, np.asarray(leaf)
      fingerprint = _fingerprint('', (), array)
    else:
      raise ValueError(
        f'tensor {name!r}: expected an array, a QTensor or a dict of them, got '
        f'{type(leaf).__name__}; a list is kept as dict(enumerate(it))'
      )
    same = first_with.setdefault(fingerprint, name)
    if same != name:
      tied[name] = same
    elif record is None:
      arrays[name] = array
    else:
      stored.setdefault(record.kind, {})[name] = record
  metadata = {
    'format': _FORMAT,
    'codes': _json(records.pool(stored, arrays), 'codes'),
    'tied': _json(tied, 'tied'),
    'empty': _json(empty, 'empty'),
    'config': _faithful_json(dict(config or {}), 'config'),
    'tokenizer': _faithful_json(
      None if tokenizer is None else dict(tokenizer), 'tokenizer'
    ),
  }
  return container.dump(arrays, metadata)


def deserialize(data: bytes, where: str = 'packed file') -> Packed:
  """Inverts `serialize`.

  Args:
    data: the whole file.
    where: how errors name the file.

  Returns:
    A Packed, as from `load`.

  Raises:
    PackedFileError: as in `load`.
  """
  arrays, metadata = container.parse(data, where)
  if metadata.get('format') != _FORMAT:
    raise PackedFileError(
      f'{where}: expected format {_FORMAT!r}, got {metadata.get("format")!r}'
    )
  try:
    about = {
      key: json.loads(metadata[key])
      for key in ('codes', 'tied', 'empty', 'config', 'tokenizer')
    }
    leaves: dict[str, Any] = {name: {} for name in about['empty']}
    leaves.update(records.unpool(about['codes'], arrays))
    leaves.update(arrays)
    for name, same in about['tied'].items():
      leaves[name] = leaves[same]
    tree = names.unflatten(leaves)
  except _DISAGREEMENTS as error:
    raise PackedFileError(
      f'{where}: its tensors and its metadata disagree ({error})'
    ) from None
  return Packed(tree, about['config'], about['tokenizer'])


def _write(path: pathlib.Path, data: bytes) -> None:
  """Puts `data` at `path`, or leaves there what there was."""
  try:
    # Where a link points to, so that the link stays one.
    target = path.resolve()
    with files.replacing(target) as partial, open(partial, 'wb') as file:
      file.write(data)
      file.flush()
      # Else a power failure could leave the name without its content.
      os.fsync(file.fileno())
  except (OSError, RuntimeError) as error:  # the latter: links in a circle
    number = getattr(error, 'errno', None) or errno.EIO
    reason = getattr(error, 'strerror', None) or error
    raise OSError(
      number, f'cannot write the packed file: {reason}', str(path)
    ) from error
  _sync_folder(target.parent)


def _sync_folder(folder: pathlib.Path) -> None:
  """Makes a new name durable, on systems that can."""
  with contextlib.suppress(OSError):
    descriptor = os.open(folder, os.O_RDONLY)
    try:
      os.fsync(descriptor)
    finally:
      os.close(descriptor)


def _is_array(leaf: Any) -> bool:
  """Whether a leaf has numbers to store; keys of random streams have none."""
  if not (hasattr(leaf, 'dtype') and hasattr(leaf, 'shape')):
    return False
  return not jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _fingerprint(
  kind: str, shape: tuple[int, ...], *arrays: np.ndarray
) -> bytes:
  """Returns a digest of a leaf's content: equal ones are tied."""
  digest = hashlib.sha256(f'{kind} {shape}'.encode())
  for array in arrays:
    digest.update(f' {array.dtype} {array.shape} '.encode())
    digest.update(array.tobytes())
  return digest.digest()


def _json(value: Any, what: str) -> str:
  try:
    return json.dumps(value, separators=(',', ':'), allow_nan=False)
  except (TypeError, ValueError) as error:
    raise ValueError(f'{what} must be JSON-able: {error}') from None


def _faithful_json(value: Any, what: str) -> str:
  """As `_json`, for what callers expect to get back as it was."""
  text = _json(value, what)
  if json.loads(text) != value:
    raise ValueError(
      f'{what} would not come back from JSON as it is: use string keys, and '
      'lists in place of tuples'
    )
  return text
