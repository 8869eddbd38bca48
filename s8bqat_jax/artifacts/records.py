"""QTensors as tensors of a file: codes packed one by one, the rest pooled.

A QTensor `encoder/w` becomes the tensor `encoder/w#codes`. All scales of one
dtype lie end to end in one tensor (`#scale:float32`), and so do the codebooks
(`#codebook:int8`): a header entry for each would cost more than a 1-bit matrix
may waste.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from s8bqat_jax.artifacts import entropy, packing, qtensor

_PLAIN, _RANS = 'bits', 'rans2'  # `rans` had another layout
_ROLES = '#scale', '#codebook'


class Record(NamedTuple):
  """A QTensor as it is stored.

  Attributes:
    kind: all but its shapes, in words: levels, coding and dtypes.
    shape: of the tensor.
    arrays: bytes of its codes, its scale and perhaps its codebook.
  """

  kind: str
  shape: tuple[int, ...]
  arrays: tuple[np.ndarray, ...]


def record(name: str, leaf: qtensor.QTensor, entropy_code: bool) -> Record:
  """Packs or entropy-codes the codes of a QTensor.

  Args:
    name: how an error names the tensor.
    leaf: a QTensor of concrete arrays.
    entropy_code: whether to entropy-code the codes where that is shorter.

  Returns:
    The Record.

  Raises:
    ValueError: naming the tensor and what is wrong with it.
  """
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
  return Record(kind, leaf.shape, (stream, *parts))


def pool(
  records: dict[str, dict[str, Record]], arrays: dict[str, np.ndarray]
) -> dict[str, dict[str, list]]:
  """Adds the records' tensors to `arrays`.

  Args:
    records: {kind: {name: record}}.
    arrays: tensors by name; those of the records are added.

  Returns:
    {kind: {name: [shape] or [shape, scale's shape]}}, in the order in which
    scales and codebooks lie in their pools.
  """
  pools: dict[str, list[np.ndarray]] = {}
  shapes: dict[str, dict[str, list]] = {}
  for kind, of_kind in records.items():
    shapes[kind] = {}
    for name, stored in of_kind.items():
      stream, *parts = stored.arrays
      arrays[f'{name}#codes'] = stream
      for role, part in zip(_ROLES, parts):
        pools.setdefault(f'{role}:{part.dtype}', []).append(part.reshape(-1))
      per_channel = [list(parts[0].shape)] if parts[0].shape else []
      shapes[kind][name] = [list(stored.shape), *per_channel]
  arrays.update({name: np.concatenate(parts) for name, parts in pools.items()})
  return shapes


def unpool(
  shapes: dict[str, dict[str, list]], arrays: dict[str, np.ndarray]
) -> dict[str, qtensor.QTensor]:
  """Takes QTensors' tensors out of `arrays` and inverts `pool`.

  Args:
    shapes: what `pool` returned.
    arrays: tensors by name; those of the QTensors are taken out.

  Returns:
    {name: QTensor} of read-only arrays.

  Raises:
    ValueError: if the two do not belong together; other exceptions of the
      kinds that indexing raises, if `shapes` is not what `pool` returned.
  """
  leaves: dict[str, qtensor.QTensor] = {}
  used: dict[str, int] = {}

  def take(role, dtype, shape):
    name = f'{role}:{dtype}'
    start = used.get(name, 0)
    used[name] = start + math.prod(shape)
    return arrays[name][start : used[name]].reshape(shape)

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
  for name, end in used.items():
    if arrays.pop(name).size != end:
      raise ValueError(f'{name!r} holds more than its {end} values')
  orphans = [name for name in arrays if '#' in name]
  if orphans:
    raise ValueError(f'{orphans[0]!r} belongs to no tensor')
  return leaves
