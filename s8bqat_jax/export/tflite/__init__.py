"""Integer functions as int8 .tflite files, written without TensorFlow.

What LiteRT's interpreter runs and what Arm's Vela compiles. Weights stay int8,
a sub-8-bit one with the few values of its codebook, so that a compiler's own
weight encoding profits. Where the interpreter has no operator of our mixed
widths (8-bit in, 16-bit out), operands are first widened with the same scale,
which is exact; a sigmoid or tanh of any scale is taken in 16 bits at its fixed
scale 2^-15 and then rescaled.

Rescaling in the interpreter rounds twice (a doubling high product, then a
shift) where we round once, and real scales are stored in float32, so that a
code may differ by one where ours lies close to a tie; witness.py counts.

Not expressible: LayerNorm, masked and log softmax, tables of 16-bit codes other
than sigmoid and tanh (the format fixes these), slices at a place that is
computed, and products with another constant weight per head.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from s8bqat_jax.export import program
from s8bqat_jax.export.program import Program, Value
from s8bqat_jax.export.tflite import (  # noqa: F401  rules
  elementwise,
  movement,
  products,
  windows,
)
from s8bqat_jax.export.tflite.writer import Writer, rule


class Exported(NamedTuple):
  """A file, and where the program's values are in it.

  Attributes:
    data: the file's bytes.
    program: what was exported.
    tensors: {value: index of its tensor}; all of the program's values that
      are not constant.
  """

  data: bytes
  program: Program
  tensors: dict[Value, int]


def export(integer_fn: Any) -> Exported:
  """Writes an integer function as a .tflite file.

  Args:
    integer_fn: an IntegerFunction, such as a streaming step. The file's inputs
      and outputs are its flat codes, in order, states included.

  Returns:
    An Exported; `data` is the file.

  Raises:
    UnsupportedExport: naming every operation that the format cannot express.
    ImportError: the export extra is not installed.
  """
  read = program.read(integer_fn)
  rule.check(read)
  writer = Writer()
  inputs = [writer.index(v) for v in read.inputs]
  for op in read.ops:
    writer.begin(op)
    rule.write(writer, op)
  # An output may be an input or a constant: the format wants its own tensor.
  outputs = [
    writer.copy(v) if v in read.inputs or v.const is not None
    else writer.index(v)
    for v in read.outputs
  ]  # fmt: skip
  data = writer.graph.finish(inputs, outputs, 's8bqat_jax')
  return Exported(data, read, writer.tensors)
