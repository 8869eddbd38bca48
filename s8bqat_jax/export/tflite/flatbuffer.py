"""A .tflite file under construction, through the schema that LiteRT ships."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

try:
  import flatbuffers
  from ai_edge_litert import schema_py_generated as schema
except ImportError as e:
  raise ImportError(
    'writing .tflite needs the export extra: pip install "s8bqat_jax[export]"'
  ) from e

_TYPES = {
  'int8': schema.TensorType.INT8,
  'int16': schema.TensorType.INT16,
  'int32': schema.TensorType.INT32,
  'int64': schema.TensorType.INT64,
  'bool': schema.TensorType.BOOL,
}


class Graph:
  """One subgraph: tensors, constants and operators, in order."""

  def __init__(self):
    self._tensors: list[Any] = []
    self._operators: list[Any] = []
    self._buffers = [schema.BufferT()]  # The first one is empty by convention.
    self._codes: dict[tuple[int, int], int] = {}

  def tensor(
    self,
    shape: Sequence[int],
    dtype: Any,
    scale: Any = None,
    zero: int = 0,
    data: np.ndarray | None = None,
    name: str = '',
    axis: int = 0,
  ) -> int:
    """Adds a tensor.

    Args:
      shape: of the tensor.
      dtype: int8, int16, int32, int64 or bool.
      scale: real value of one code, one per channel, or None.
      zero: the code of 0.0.
      data: its codes, for a constant.
      name: for people.
      axis: of the channels, if there is one scale per channel.

    Returns:
      Its index.
    """
    t = schema.TensorT()
    t.name = name or f't{len(self._tensors)}'
    t.shape = [int(n) for n in shape]
    t.type = _TYPES[np.dtype(dtype).name]
    t.buffer = 0
    if data is not None:
      buffer = schema.BufferT()
      raw = np.ascontiguousarray(data, dtype).tobytes()
      buffer.data = np.frombuffer(raw, np.uint8)
      t.buffer = len(self._buffers)
      self._buffers.append(buffer)
    if scale is not None:
      q = schema.QuantizationParametersT()
      q.scale = np.atleast_1d(np.asarray(scale, np.float32))
      q.zeroPoint = np.full(q.scale.shape, zero, np.int64)
      q.quantizedDimension = axis
      t.quantization = q
    self._tensors.append(t)
    return len(self._tensors) - 1

  def op(
    self,
    code: str,
    ins: Sequence[int],
    outs: Sequence[int],
    version: int = 1,
    options: str = '',
    **fields: Any,
  ) -> None:
    """Adds an operator.

    Args:
      code: a name of BuiltinOperator.
      ins: tensors it reads.
      outs: tensors it writes.
      version: of the operator, as the schema counts them.
      options: the name of its options table, without 'Options'.
      **fields: of that table.
    """
    builtin = getattr(schema.BuiltinOperator, code)
    o = schema.OperatorT()
    o.opcodeIndex = self._codes.setdefault((builtin, version), len(self._codes))
    o.inputs, o.outputs = list(ins), list(outs)
    if options:
      o.builtinOptionsType = getattr(schema.BuiltinOptions, f'{options}Options')
      o.builtinOptions = getattr(schema, f'{options}OptionsT')()
      for name, value in fields.items():
        if not hasattr(o.builtinOptions, name):
          raise AttributeError(f'{options}Options has no field {name!r}')
        setattr(o.builtinOptions, name, value)
    self._operators.append(o)

  def finish(
    self, inputs: Sequence[int], outputs: Sequence[int], description: str = ''
  ) -> bytes:
    """Returns the file."""
    graph = schema.SubGraphT()
    graph.name = 'main'
    graph.tensors, graph.operators = self._tensors, self._operators
    graph.inputs, graph.outputs = list(inputs), list(outputs)
    model = schema.ModelT()
    model.version = 3
    model.description = description
    model.subgraphs, model.buffers = [graph], self._buffers
    model.operatorCodes = []
    for builtin, version in self._codes:
      code = schema.OperatorCodeT()
      code.builtinCode, code.version = builtin, version
      # Readers older than the wide field look here.
      code.deprecatedBuiltinCode = min(builtin, 127)
      model.operatorCodes.append(code)
    size = sum(0 if b.data is None else len(b.data) for b in self._buffers)
    builder = flatbuffers.Builder(size + 4096)
    builder.Finish(model.Pack(builder), b'TFL3')
    return bytes(builder.Output())
