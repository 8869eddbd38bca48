"""One file that holds a packed model: what ships, and what a size claim counts.

The file is a safetensors container. A float leaf at path `encoder/w` is the
tensor `encoder/w`; a QTensor there has its packed codes in `encoder/w#codes`.
All scales of one dtype lie end to end in one tensor (`#scale:float32`), and so
do the codebooks (`#codebook:int8`): a header entry for each would cost more
than a 1-bit matrix may waste. The metadata holds the config, the tokenizer and
what the tensors cannot say: shapes and levels of codes, in the order of their
scales and codebooks, which paths are tied, which dicts are empty.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import pathlib
import urllib.parse
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from s8bqat_jax.artifacts import container, entropy, packing, qtensor

PackedFileError = container.PackedFileError

_FORMAT = 's8bqat_jax packed model 1'
_EMPTY = object()
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
_PLAIN, _RANS = 'bits', 'rans'
_ROLES = '#scale', '#codebook'


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


def encoded_bytes(tree: Mapping) -> int:
  """Returns the size in bytes of the entropy-coded file of a tree.

  Args:
    tree: as in `save`.

  Returns:
    Bytes of the file, header and all.
  """
  return len(serialize(tree, entropy_code=True))


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
  records: dict[str, dict[str, _Record]] = {}
  tied: dict[str, str] = {}
  empty: list[str] = []
  first_with: dict[bytes, str] = {}
  for name, leaf in _flatten(tree):
    if leaf is _EMPTY:
      empty.append(name)
      continue
    if qtensor.is_qtensor(leaf):
      record = _record(name, leaf, entropy_code)
      fingerprint = _fingerprint(record.kind, leaf.shape, *record.arrays)
    elif hasattr(leaf, 'dtype') and hasattr(leaf, 'shape'):
      record, array = None, np.asarray(leaf)
      fingerprint = _fingerprint('', (), array)
    else:
      raise ValueError(
        f'tensor {name!r}: expected an array, a QTensor or a dict of them, got '
        f'{type(leaf).__name__}'
      )
    same = first_with.setdefault(fingerprint, name)
    if same != name:
      tied[name] = same
    elif record is None:
      arrays[name] = array
    else:
      records.setdefault(record.kind, {})[name] = record
  metadata = {
    'format': _FORMAT,
    'codes': _json(_pool(records, arrays), 'codes'),
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
    leaves.update(_unpool(about['codes'], arrays))
    leaves.update(arrays)
    for name, same in about['tied'].items():
      leaves[name] = leaves[same]
    tree = _unflatten(leaves)
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
    partial = target.with_name(f'{target.name}.{os.getpid()}.partial')
    try:
      with open(partial, 'wb') as file:
        file.write(data)
        file.flush()
        # Else a power failure could leave the name without its content.
        os.fsync(file.fileno())
      os.replace(partial, target)
    finally:
      partial.unlink(missing_ok=True)
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


class _Record(NamedTuple):
  """A QTensor as it is stored; `kind` is all but its shapes, in words."""

  kind: str
  shape: tuple[int, ...]
  arrays: tuple[np.ndarray, ...]  # codes' bytes, scale and perhaps codebook


def _record(name: str, leaf: qtensor.QTensor, entropy_code: bool) -> _Record:
  qtensor.check(leaf, f'tensor {name!r}')
  codes, levels = np.asarray(leaf.codes), leaf.levels
  parts = [np.asarray(leaf.scale)]
  if leaf.codebook is None:
    low, _ = qtensor.uniform_range(levels)
    codes = codes.view(np.uint8) + np.uint8(-low)  # modulo 256
  else:
    parts.append(np.asarray(leaf.codebook))
  stream, coding = packing.pack(codes, levels), _PLAIN
  if entropy_code:
    encoded = entropy.encode(codes, levels)
    if encoded.size < stream.size:
      stream, coding = encoded, _RANS
  kind = ' '.join([str(levels), coding, *(str(p.dtype) for p in parts)])
  return _Record(kind, leaf.shape, (stream, *parts))


def _pool(
  records: dict[str, dict[str, _Record]], arrays: dict[str, np.ndarray]
) -> dict[str, dict[str, list]]:
  """Adds the records' tensors to `arrays`.

  Returns:
    {kind: {name: [shape] or [shape, scale's shape]}}, in the order in which
    scales and codebooks lie in their pools.
  """
  pools: dict[str, list[np.ndarray]] = {}
  shapes: dict[str, dict[str, list]] = {}
  for kind, of_kind in records.items():
    shapes[kind] = {}
    for name, record in of_kind.items():
      stream, *parts = record.arrays
      arrays[f'{name}#codes'] = stream
      for role, part in zip(_ROLES, parts):
        pools.setdefault(f'{role}:{part.dtype}', []).append(part.reshape(-1))
      per_channel = [list(parts[0].shape)] if parts[0].shape else []
      shapes[kind][name] = [list(record.shape), *per_channel]
  arrays.update({name: np.concatenate(pool) for name, pool in pools.items()})
  return shapes


def _unpool(
  shapes: dict[str, dict[str, list]], arrays: dict[str, np.ndarray]
) -> dict[str, qtensor.QTensor]:
  """Takes QTensors' tensors out of `arrays` and inverts `_pool`."""
  leaves: dict[str, qtensor.QTensor] = {}
  used: dict[str, int] = {}

  def take(role, dtype, shape):
    pool = f'{role}:{dtype}'
    start = used.get(pool, 0)
    used[pool] = start + math.prod(shape)
    return arrays[pool][start : used[pool]].reshape(shape)

  for kind, of_kind in shapes.items():
    count, coding, *dtypes = kind.split(' ')
    levels = int(count)
    if not 2 <= levels <= qtensor.MAX_LEVELS:
      raise ValueError(f'{levels} levels')
    if coding not in (_PLAIN, _RANS):
      raise ValueError(f'unknown coding {coding!r}')
    for name, (shape, *per_channel) in of_kind.items():
      stream, size = arrays.pop(f'{name}#codes'), math.prod(shape)
      if coding == _RANS:
        codes = entropy.decode(stream, levels, size)
      else:
        codes = packing.unpack(stream, levels, size)
      codes = codes.reshape(shape)
      parts = [
        take(role, dtype, of_part)
        for role, dtype, of_part in zip(
          _ROLES, dtypes, [(per_channel or [()])[0], (levels,)]
        )
      ]
      codebook = parts[1] if len(parts) == 2 else None
      if codebook is None:
        low, _ = qtensor.uniform_range(levels)
        codes = (codes - np.uint8(-low)).view(np.int8)  # modulo 256
      codes = np.asarray(codes)
      codes.flags.writeable = False
      leaf = qtensor.QTensor(codes, parts[0], codebook, levels)
      leaves[name] = qtensor.check(leaf, f'tensor {name!r}')
  for pool, end in used.items():
    if arrays.pop(pool).size != end:
      raise ValueError(f'{pool!r} holds more than its {end} values')
  orphans = [name for name in arrays if '#' in name]
  if orphans:
    raise ValueError(f'{orphans[0]!r} belongs to no tensor')
  return leaves


def _fingerprint(
  kind: str, shape: tuple[int, ...], *arrays: np.ndarray
) -> bytes:
  """Returns a digest of a leaf's content: equal ones are tied."""
  digest = hashlib.sha256(f'{kind} {shape}'.encode())
  for array in arrays:
    digest.update(f' {array.dtype} {array.shape} '.encode())
    digest.update(array.tobytes())
  return digest.digest()


def _flatten(tree: Any, path: tuple = ()) -> Iterator[tuple[str, Any]]:
  """Yields (name, leaf); an empty dict yields _EMPTY."""
  if not isinstance(tree, Mapping):
    if not path:
      raise ValueError(
        f'a packed file holds nested dicts, got {type(tree).__name__}'
      )
    yield _name(path), _unbox(tree)
    return
  if not tree and path:
    yield _name(path), _EMPTY
  for key, value in tree.items():
    yield from _flatten(value, (*path, key))


def _unbox(leaf: Any) -> Any:
  """Returns the one leaf of a box, such as an nnx Variable around a weight."""
  if isinstance(leaf, np.ndarray | jax.Array | list | tuple):
    return leaf
  inside = jax.tree.leaves(leaf, is_leaf=qtensor.is_qtensor)
  return inside[0] if len(inside) == 1 else leaf


def _unflatten(leaves: dict[str, Any]) -> dict:
  tree: dict = {}
  for name, leaf in leaves.items():
    *parents, last = _path(name)
    node = tree
    for key in parents:
      node = node.setdefault(key, {})
    node[last] = leaf
  return tree


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
