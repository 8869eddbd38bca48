"""The ONNX graph being written, and the rules that write it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from s8bqat_jax.export.program import Rules, Value

try:
  import onnx
  from onnx import helper, numpy_helper
except ImportError as e:
  raise ImportError(
    'writing ONNX needs the export extra: pip install "s8bqat_jax[export]"'
  ) from e

_OPSET = 18
_IR_VERSION = 9

rule = Rules('ONNX')


class Writer:
  """Nodes and constants, in order."""

  def __init__(self):
    self._nodes: list[Any] = []
    self._constants: dict[tuple, str] = {}
    self._casts: dict[tuple[str, str], str] = {}
    self._held: dict[str, np.ndarray] = {}
    self._unsigned: dict[str, str] = {}

  def node(
    self, op: str, *ins: str, to: str | None = None, domain: str = '', **attrs
  ) -> str:
    """Adds a node.

    Args:
      op: the operator.
      *ins: names it reads; '' leaves one out.
      to: the name of its result; a new one, if None.
      domain: of the operator; ONNX's own if empty.
      **attrs: its attributes.

    Returns:
      The name of its result.
    """
    to = to or f'n{len(self._nodes)}'
    attrs = {name.rstrip('_'): value for name, value in attrs.items()}
    made = helper.make_node(op, list(ins), [to], domain=domain, **attrs)
    self._nodes.append(made)
    return to

  def constant(self, value: Any, dtype: Any = None) -> str:
    array = np.array(value, dtype, copy=True)
    key = (array.dtype.str, array.shape, array.tobytes())
    if key not in self._constants:
      self._constants[key] = name = f'c{len(self._constants)}'
      self._held[name] = array
    return self._constants[key]

  def name(self, v: Value) -> str:
    return v.name if v.const is None else self.constant(v.const)

  def cast(self, name: str, dtype: Any, to: str | None = None) -> str:
    """Adds a cast; the same one again is the first one."""
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    if to is not None:
      return self.node('Cast', name, to=to, to_=kind)
    key = (name, np.dtype(dtype).name)
    if key not in self._casts:
      self._casts[key] = self.node('Cast', name, to_=kind)
    return self._casts[key]

  def reshape(self, name: str, shape: Sequence[int], to: str | None = None):
    # allowzero: an empty axis is one, and does not mean `as before`.
    sizes = self.constant(shape, np.int64)
    return self.node('Reshape', name, sizes, to=to, allowzero=1)

  def transpose(self, name: str, order: Sequence[int], to: str | None = None):
    return self.node('Transpose', name, to=to, perm=[int(i) for i in order])

  def centered(self, v: Value, zero: int, dtype: Any = np.int64) -> str:
    """Codes minus their zero point, in a wider type."""
    wide = self.cast(self.name(v), dtype)
    if not zero:
      return wide
    return self.node('Sub', wide, self.constant(zero, dtype))

  def product(self, wide: str, multiplier: Any) -> str:
    """int64 times a constant."""
    return self.node('Mul', wide, self.constant(multiplier, np.int64))

  def shifted(self, wide: str, shift: int, plus: int = 0) -> str:
    """floor((x + 2^(shift-1)) / 2^shift) + plus, of int64 |x| < 2^62.

    Division rounds towards zero: x is moved up by 2^62, a multiple of the
    divisor, and the quotient back down.
    """
    if shift:
      top = 62
      offset = self.constant((1 << (shift - 1)) + (1 << top), np.int64)
      wide = self.node('Add', wide, offset)
      wide = self.node('Div', wide, self.constant(1 << shift, np.int64))
      plus -= 1 << (top - shift)
    return (
      self.node('Add', wide, self.constant(plus, np.int64)) if plus else wide
    )

  def rescaled(self, wide: str, shift: int, out: Any, to: str) -> None:
    """Shifts an int64, adds the zero point, clips and narrows it."""
    made = self.shifted(wide, shift, out.zero)
    low, high = (self.constant(b, np.int64) for b in (out.low, out.high))
    self.cast(self.node('Clip', made, low, high), out.dtype, to=to)

  def unsigned(self, name: str) -> str:
    """int8 codes plus 128, as uint8."""
    if name in self._held:
      return self.constant(self._held[name].astype(np.int16) + 128, np.uint8)
    if name not in self._unsigned:
      flipped = self.node('BitwiseXor', name, self.constant(-128, np.int8))
      self._unsigned[name] = self.cast(flipped, np.uint8)
    return self._unsigned[name]

  def signed(self, name: str, to: str) -> None:
    """The reverse of `unsigned`."""
    flipped = self.cast(name, np.int8)
    self.node('BitwiseXor', flipped, self.constant(-128, np.int8), to=to)

  def requantized(
    self, accumulator: str, multiplier: Any, shift: int, out: Any, to: str
  ) -> None:
    """requantize.requantize, of an int32 accumulator."""
    wide = self.product(self.cast(accumulator, np.int64), multiplier)
    self.rescaled(wide, shift, out, to)

  def renamed(self, v: Value, name: str) -> str:
    return self.node('Identity', self.name(v), to=name)

  def finish(
    self, inputs: Sequence[Value], outputs: Sequence[tuple[str, Value]]
  ) -> bytes:
    """Returns the file."""

    def info(name: str, v: Value) -> Any:
      kind = helper.np_dtype_to_tensor_dtype(v.dtype)
      return helper.make_tensor_value_info(name, kind, v.shape)

    read = {name for node in self._nodes for name in node.input}
    graph = helper.make_graph(
      self._nodes,
      's8bqat_jax',
      [info(v.name, v) for v in inputs],
      [info(name, v) for name, v in outputs],
      [
        numpy_helper.from_array(x, n)
        for n, x in self._held.items()
        if n in read
      ],
    )
    model = helper.make_model(
      graph,
      producer_name='s8bqat_jax',
      ir_version=_IR_VERSION,
      opset_imports=[
        helper.make_opsetid('', _OPSET),
        helper.make_opsetid('com.microsoft', 1),
      ],
    )
    onnx.checker.check_model(model)
    return model.SerializeToString()
