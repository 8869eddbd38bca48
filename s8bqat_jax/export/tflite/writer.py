"""The file being written, the rules that write it, and where values are."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from s8bqat_jax.export.program import Op, Rules, Value
from s8bqat_jax.export.tflite import flatbuffer

rule = Rules('.tflite')


class Writer:
  """A graph, and where our values are in it."""

  def __init__(self):
    self.graph = flatbuffer.Graph()
    self.tensors: dict[Value, int] = {}
    self._wide: dict[tuple[Value, float], int] = {}
    self._relabelled: dict[tuple[Value, float], int] = {}
    self._plain: dict[Value, int] = {}
    self._op, self._inner = '', 0

  def begin(self, op: Op) -> None:
    """Names what follows after the operation it is for: 'q_lut_7/0' ..."""
    self._op, self._inner = op.outs[0].name, 0

  def index(self, v: Value) -> int:
    """The tensor of a value."""
    if v not in self.tensors:
      self.tensors[v] = self.graph.tensor(
        v.shape, v.dtype, v.scale, v.zero, v.const, v.name
      )
    return self.tensors[v]

  def operand(self, v: Value, like: Value) -> int:
    """A value's tensor, meaning by its codes what `like` means by its own."""
    if v.scale is None or like.scale is None:
      if v.const is not None and like.scale is not None:
        return self.constant(v.const, like.scale, like.zero)
      return self.index(v)
    return self.relabelled(v, like.scale)

  def relabelled(self, v: Value, scale: float) -> int:
    """The same codes at another scale: times one, a code of that scale.

    A positive factor is free in our program (a code just means more), while
    the format holds every operator to the scales of its tensors.
    """
    if math.isclose(v.scale, scale, rel_tol=1e-6):
      return self.index(v)
    if (v, scale) not in self._relabelled:
      target = self.make(v.shape, v.dtype, scale, v.zero)
      one = self.constant(np.ones((1,), v.dtype), scale / v.scale)
      self.graph.op('MUL', [self.index(v), one], [target], 2, 'Mul')
      self._relabelled[v, scale] = target
    return self._relabelled[v, scale]

  def constant(self, data: Any, scale: Any = None, zero: int = 0, axis=0):
    data = np.asarray(data)
    return self.graph.tensor(
      data.shape, data.dtype, scale, zero, data, axis=axis
    )

  def make(self, shape: Any, dtype: Any, scale: Any = None, zero: int = 0):
    """A tensor between two operators of one operation."""
    self._inner += 1
    name = f'{self._op}/{self._inner}'
    return self.graph.tensor(shape, dtype, scale, zero, name=name)

  def like(self, v: Value, shape: Any = None) -> int:
    return self.make(
      v.shape if shape is None else shape, v.dtype, v.scale, v.zero
    )

  def widened(self, v: Value, scale: float | None = None) -> int:
    """The value in 16 bits, zero point 0, at the same scale: exact.

    Args:
      v: the value.
      scale: what its codes are to mean, if not what they do.
    """
    scale = v.scale if scale is None else scale
    if v.dtype == np.int16 and v.zero == 0:
      return self.relabelled(v, scale)
    if (v, scale) not in self._wide:
      wide = self.make(v.shape, np.int16, scale)
      self.quantize(self.relabelled(v, scale), wide)
      self._wide[v, scale] = wide
    return self._wide[v, scale]

  def plain(self, v: Value) -> int:
    """The codes of a value as plain integers; truth values as they are."""
    if v.dtype.itemsize > 2 or v.dtype == np.bool_:
      return self.index(v)
    if v.const is not None:
      return self.constant(v.const.astype(np.int32))
    if v not in self._plain:
      self._plain[v] = self.make(v.shape, np.int32)
      self.cast(self.index(v), self._plain[v], v.dtype, np.int32)
    return self._plain[v]

  def cast(self, source: int, target: int, before: Any, after: Any) -> None:
    types = flatbuffer.schema.TensorType
    self.graph.op(
      'CAST', [source], [target], 1, 'Cast',
      inDataType=getattr(types, np.dtype(before).name.upper()),
      outDataType=getattr(types, np.dtype(after).name.upper()),
    )  # fmt: skip

  def quantize(self, source: int, target: int) -> None:
    self.graph.op('QUANTIZE', [source], [target], 2, 'Quantize')

  def reshape(self, source: int, target: int, shape: Any) -> None:
    shape = np.asarray(shape, np.int32).reshape(-1)
    self.graph.op(
      'RESHAPE',
      [source, self.constant(shape)],
      [target],
      options='Reshape',
      newShape=[int(n) for n in shape],
    )

  def transpose(self, source: int, target: int, order: Any) -> None:
    perm = self.constant(np.asarray(order, np.int32))
    self.graph.op('TRANSPOSE', [source, perm], [target], options='Transpose')

  def copy(self, v: Value) -> int:
    copied = self.like(v)
    self.reshape(self.index(v), copied, v.shape)
    return copied

  def saturate(self, op: Op, emit: Callable[[int, int], None]) -> None:
    """Emits an operator whose result is clipped as our primitive's is.

    Args:
      op: the operation; its parameter `out` has the bounds.
      emit: (tensor, fused activation) -> None, emits the operator.
    """
    (v,), out = op.outs, op.params['out']
    info = np.iinfo(v.dtype)
    activation = flatbuffer.schema.ActivationFunctionType
    # 16-bit codes are symmetric; the one code below that range may occur.
    low = out.low if out.low > info.min + (v.dtype == np.int16) else None
    high = out.high if out.high < info.max else None
    narrow = v.dtype == np.int8
    if narrow and low is not None and low == out.zero and high is None:
      emit(self.index(v), activation.RELU)
      return
    bounds = [('MAXIMUM', low), ('MINIMUM', high)]
    bounds = [(code, b) for code, b in bounds if b is not None]
    source = self.like(v) if bounds else self.index(v)
    emit(source, activation.NONE)
    for i, (code, bound) in enumerate(bounds):
      target = self.index(v) if i == len(bounds) - 1 else self.like(v)
      limit = self.constant(np.full((1,), bound, v.dtype), v.scale, v.zero)
      self.graph.op(code, [source, limit], [target], 2, 'MaximumMinimum')
      source = target
