"""The safetensors container: named arrays and strings in one file, no pickle.

Its documented layout: the header's length as 8 little-endian bytes, a JSON
header of `{name: {dtype, shape, data_offsets}}` and `__metadata__` (strings to
strings), then the arrays' bytes without holes. Any safetensors reader opens
these files. One entry of the metadata is ours: a SHA-256 of the whole file
(itself taken as zeros), so that a file that was cut short or changed anywhere
is refused.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np

_DTYPES = {
  'BOOL': np.bool_,
  'U8': np.uint8,
  'I8': np.int8,
  'U16': np.uint16,
  'I16': np.int16,
  'F16': np.float16,
  'BF16': ml_dtypes.bfloat16,
  'U32': np.uint32,
  'I32': np.int32,
  'F32': np.float32,
  'U64': np.uint64,
  'I64': np.int64,
  'F64': np.float64,
  'F8_E4M3': ml_dtypes.float8_e4m3fn,
  'F8_E5M2': ml_dtypes.float8_e5m2,
}
_NAMES = {np.dtype(dtype): name for name, dtype in _DTYPES.items()}
_METADATA = '__metadata__'
_CHECKSUM = 'sha256'
_ZEROS = '0' * 64
_MAX_HEADER = 100_000_000  # the format's own limit


class PackedFileError(ValueError):
  """A file that is truncated, changed or of another kind."""


def dump(
  arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]
) -> bytes:
  """Returns the file's bytes; the same content gives the same bytes.

  Args:
    arrays: by name; any dtype the format knows, bfloat16 included.
    metadata: strings to strings.

  Returns:
    The whole file.
  """
  for name, array in arrays.items():
    if array.dtype not in _NAMES:
      raise ValueError(
        f'tensor {name!r}: a packed file cannot hold dtype {array.dtype}; it '
        f'holds {", ".join(str(dtype) for dtype in _NAMES)}'
      )
  # Wide types first, so that every array is aligned without holes.
  order = sorted(arrays, key=lambda name: (-arrays[name].itemsize, name))
  header: dict[str, Any] = {_METADATA: {**metadata, _CHECKSUM: _ZEROS}}
  end = 0
  for name in order:
    array = arrays[name]
    start, end = end, end + array.nbytes
    header[name] = {
      'dtype': _NAMES[array.dtype],
      'shape': list(array.shape),
      'data_offsets': [start, end],
    }
  text = json.dumps(header, separators=(',', ':'), allow_nan=False).encode()
  text += b' ' * (-len(text) % 8)
  parts = [len(text).to_bytes(8, 'little'), text]
  parts += [np.ascontiguousarray(arrays[name]).tobytes() for name in order]
  digest = hashlib.sha256()
  for part in parts:
    digest.update(part)
  parts[1] = text.replace(_entry(_ZEROS), _entry(digest.hexdigest()), 1)
  return b''.join(parts)


def parse(data: bytes, where: str) -> tuple[dict[str, np.ndarray], dict]:
  """Inverts `dump`.

  Args:
    data: the file's bytes.
    where: how errors name the file.

  Returns:
    (arrays, metadata). The arrays are read-only views of `data`.

  Raises:
    PackedFileError: naming the file and what is wrong with it.
  """

  def refuse(what: str) -> PackedFileError:
    return PackedFileError(f'{where}: {what}')

  length = int.from_bytes(data[:8], 'little')
  if len(data) < 8 or length > min(len(data) - 8, _MAX_HEADER):
    raise refuse(
      f'not a whole safetensors file: its header should take {length} bytes, '
      f'the file has {len(data)}'
    )
  text = data[8 : 8 + length]
  try:
    header = json.loads(text, object_pairs_hook=_no_key_twice)
  except (ValueError, RecursionError) as error:
    raise refuse(f'its header is not JSON ({error})') from None
  metadata = header.pop(_METADATA, None) if isinstance(header, dict) else None
  if not isinstance(metadata, dict) or _CHECKSUM not in metadata:
    raise refuse(
      'not written by s8bqat_jax (no checksum in its metadata); make packed '
      'files with s8bqat_jax.artifacts.packed_file.save'
    )
  stated = metadata.pop(_CHECKSUM)
  entry = _entry(str(stated))
  at = text.find(entry)
  if at < 0 or len(entry) != len(_entry(_ZEROS)):
    raise refuse('its checksum is damaged')
  digest = hashlib.sha256(data[:8])
  digest.update(text[:at] + _entry(_ZEROS) + text[at + len(entry) :])
  digest.update(memoryview(data)[8 + length :])
  if digest.hexdigest() != stated:
    raise refuse(
      f'{len(data)} bytes whose checksum is {digest.hexdigest()[:12]}..., not '
      f'{stated[:12]}... as written: the file was cut short or changed'
    )
  arrays, spans = {}, []
  try:
    for name, about in header.items():
      arrays[name] = _array(data, 8 + length, about)
      spans.append(tuple(about['data_offsets']))
  except (ArithmeticError, LookupError, TypeError, ValueError) as error:
    raise refuse(f'tensor {name!r} is described wrongly ({error})') from None
  used = 0
  for start, end in sorted(spans):
    if start != used:
      raise refuse(f'its tensors overlap or leave a hole at byte {used}')
    used = end
  if used != len(data) - 8 - length:
    raise refuse(
      f'its tensors take {used} bytes, it holds {len(data) - 8 - length}'
    )
  return arrays, metadata


def _entry(checksum: str) -> bytes:
  return f'"{_CHECKSUM}":"{checksum}"'.encode(errors='replace')


def _no_key_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  found = dict(pairs)
  if len(found) < len(pairs):
    raise ValueError('a key occurs twice')
  return found


def _array(data: bytes, base: int, about: Any) -> np.ndarray:
  dtype = np.dtype(_DTYPES[about['dtype']])
  shape = tuple(about['shape'])
  start, end = about['data_offsets']
  if not all(type(n) is int for n in (*shape, start, end)):
    raise ValueError(f'shape {shape} at bytes {start} to {end}')
  if min(shape, default=0) < 0 or not 0 <= start <= end <= len(data) - base:
    raise ValueError(f'shape {shape} at bytes {start} to {end}')
  if math.prod(shape) * dtype.itemsize != end - start:
    raise ValueError(f'{end - start} bytes cannot be {dtype} of shape {shape}')
  flat = np.frombuffer(data, dtype, math.prod(shape), base + start)
  return flat.reshape(shape)
