"""QTensor: one quantized tensor, as an 8-bit accelerator would read it.

A QTensor is a pytree, so it can ride in a params tree, through `jit` and
through a checkpoint. Treat it as a leaf with `is_leaf=is_qtensor`.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

MAX_LEVELS = 256


@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=('codes', 'scale', 'codebook'),
  meta_fields=('levels',),
)
@dataclasses.dataclass(frozen=True)
class QTensor:
  """Codes and what they stand for.

  With K = `levels` (2..256), elementwise over the tensor's own shape:

    uniform    (codebook is None)   value = codes * scale,
               codes int8, -(K // 2) <= codes <= (K - 1) // 2
    centroids  (codebook of K)      value = codebook[codes] * scale,
               codes uint8, 0 <= codes < K, codebook non-decreasing

  `bits` = ceil(log2 K). K = 3 is ternary and packs five codes to a byte.
  Three uniform levels are -1, 0, +1; one-bit weights are the centroids
  (-1, +1), because no uniform grid of two levels is symmetric.

  Attributes:
    codes: int8 or uint8, the shape of the tensor it replaces.
    scale: positive floating-point scalar, or one scale per channel in any
      shape that broadcasts against `codes`. Its dtype is the tensor's dtype.
    codebook: None, or K sorted values: int8 on the accelerator's grid, or
      floating point where a method is studied without that constraint (such
      a tensor can't be lowered to integers).
    levels: K.
  """

  codes: Any
  scale: Any
  codebook: Any
  levels: int

  @property
  def shape(self) -> tuple[int, ...]:
    return self.codes.shape

  @property
  def size(self) -> int:
    return math.prod(self.codes.shape)

  @property
  def ndim(self) -> int:
    return len(self.codes.shape)

  @property
  def dtype(self) -> Any:
    return self.scale.dtype

  @property
  def bits(self) -> int:
    return (self.levels - 1).bit_length()


def uniform_range(levels: int) -> tuple[int, int]:
  """Returns (lowest, highest) code of a uniform QTensor with `levels`.

  Args:
    levels: 2..256.

  Returns:
    Two integers of int8.
  """
  return -(levels // 2), (levels - 1) // 2


def is_qtensor(x: Any) -> bool:
  """True for a QTensor: pass as `is_leaf` to jax.tree functions.

  Args:
    x: anything.

  Returns:
    Whether it is a QTensor.
  """
  return isinstance(x, QTensor)


def look_up(table: Any, index: Any) -> jax.Array:
  """Returns table[index], laid out over devices as `index` is.

  Args:
    table: one axis.
    index: integers within it, any shape.

  Returns:
    An array of the shape of `index`.
  """
  table, index = jnp.asarray(table), jnp.asarray(index).astype(jnp.int32)
  layout = jax.typeof(index).sharding
  return table.at[index].get(
    mode='promise_in_bounds',
    # Of automatic axes only the compiler knows.
    out_sharding=layout if layout.mesh.explicit_axes else None,
  )


def grid_values(q: QTensor) -> jax.Array:
  """Returns the values before the scale: int8 unless the codebook is float.

  Args:
    q: a QTensor.

  Returns:
    An array of its shape.
  """
  if q.codebook is None:
    return q.codes
  return look_up(q.codebook, q.codes)


def dequantize(q: QTensor) -> jax.Array:
  """Returns the tensor that `q` stands for, in the dtype of its scale.

  This product *defines* the value of a quantized weight: training-time views
  compute it with the same two operands, so that they agree to the last bit.

  Args:
    q: a QTensor.

  Returns:
    A float array of its shape.
  """
  return grid_values(q).astype(q.scale.dtype) * q.scale


def decode(tree: Any) -> Any:
  """Returns `tree` with every QTensor replaced by its dequantized array.

  Args:
    tree: a pytree, of which any leaf may be a QTensor.

  Returns:
    The tree with plain arrays only.
  """
  return jax.tree.map(
    lambda x: dequantize(x) if is_qtensor(x) else x, tree, is_leaf=is_qtensor
  )


def scales_fit(scale: tuple[int, ...], shape: tuple[int, ...]) -> bool:
  """Returns whether scales broadcast to a tensor and leave its shape alone.

  Args:
    scale: shape of the scales.
    shape: of the tensor.
  """
  try:
    return np.broadcast_shapes(scale, shape) == shape
  except ValueError:
    return False


def check(q: QTensor, name: str = 'tensor') -> QTensor:
  """Verifies the equations of the class docstring on concrete values.

  Args:
    q: a QTensor of concrete arrays.
    name: how an error names the tensor.

  Returns:
    `q` itself.

  Raises:
    ValueError: naming the tensor, what was expected and what was found.
  """

  def require(ok: Any, message: str) -> None:
    if not ok:
      raise ValueError(f'{name}: {message}')

  codes, scale = np.asarray(q.codes), np.asarray(q.scale)
  require(
    2 <= q.levels <= MAX_LEVELS,
    f'levels must be in 2..{MAX_LEVELS}, got {q.levels}',
  )
  require(
    jnp.issubdtype(scale.dtype, jnp.floating),
    f'scale must be floating point, got {scale.dtype}',
  )
  require(
    scales_fit(scale.shape, codes.shape),
    f'scale of shape {scale.shape} does not broadcast to codes of shape '
    f'{codes.shape}',
  )
  finite = np.isfinite(scale.astype(np.float32))
  require(
    np.all(finite & (scale > 0)), 'every scale must be finite and above zero'
  )
  if q.codebook is None:
    low, high = uniform_range(q.levels)
    require(codes.dtype == np.int8, f'codes must be int8, got {codes.dtype}')
    farthest, what = max(-low, high), 'codes'
  else:
    low, high = 0, q.levels - 1
    book = np.asarray(q.codebook)
    require(codes.dtype == np.uint8, f'codes must be uint8, got {codes.dtype}')
    require(
      book.shape == (q.levels,),
      f'codebook must have shape ({q.levels},), got {book.shape}',
    )
    require(
      book.dtype == np.int8 or jnp.issubdtype(book.dtype, jnp.floating),
      f'codebook must be int8 or floating point, got {book.dtype}',
    )
    require(np.all(book[1:] >= book[:-1]), 'codebook must be sorted')
    farthest = np.abs(book[[0, -1]].astype(np.float64)).max(initial=0)
    what = 'codebook'
  require(
    np.all(farthest * scale.astype(np.float64) <= float(jnp.finfo(scale).max)),
    f'{what} times scale overflows {scale.dtype}',
  )
  if codes.size:
    require(
      low <= codes.min() and codes.max() <= high,
      f'codes must lie in [{low}, {high}], found '
      f'[{codes.min()}, {codes.max()}]',
    )
  return q
