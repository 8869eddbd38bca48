"""Integer functions as ONNX files for ONNX Runtime: CPU deployment.

Integers throughout, and equal to our own program to the last bit, but for
8-bit products with an 8-bit result: those become QGemm (ONNX Runtime's own) or
QLinearConv, which are fast, rescale in float32 and round half to even, so that
a code may differ by one. Products are of unsigned codes, 128 higher than ours:
of those ONNX Runtime has kernels that are quick and exact on any x86. Every
other rescaling is a 64-bit product and a shift, as ours; tables are gathered,
16-bit ones with all their 65,536 entries.

Not expressible: log softmax, transposed convolutions, branches, slices at a
place that is computed, look-ups at constant indices, negative padding, bits of
integers, their quotients and signs, and convolutions or windows with 16 bits on
either side, such as a convolution that its own input is added to. Each is an
error that says so.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from s8bqat_jax.export import program
from s8bqat_jax.export.onnxfile import (  # noqa: F401  rules
  elementwise,
  movement,
  normalize,
  products,
)
from s8bqat_jax.export.onnxfile.writer import Writer, rule
from s8bqat_jax.export.program import Program


class Exported(NamedTuple):
  """A file, and what it was made of.

  Attributes:
    data: the file's bytes.
    program: what was exported; its values go by their names.
  """

  data: bytes
  program: Program


def export(integer_fn: Any, *, keep_all: bool = False) -> Exported:
  """Writes an integer function as an ONNX file.

  Args:
    integer_fn: an IntegerFunction, such as a streaming step. The file's inputs
      and outputs are its flat codes, in order, states included.
    keep_all: also return the result of every operation, by name: what
      witness.py wants.

  Returns:
    An Exported; `data` is the file.

  Raises:
    UnsupportedExport: naming every operation that cannot be expressed.
    ImportError: the export extra is not installed.
  """
  read = program.read(integer_fn)
  rule.check(read)
  writer = Writer()
  for op in read.ops:
    rule.write(writer, op)
  outputs = [
    (writer.renamed(v, f'out{i}'), v) for i, v in enumerate(read.outputs)
  ]
  if keep_all:
    made = {v: v for op in read.ops for v in op.outs}
    outputs += [(v.name, v) for v in made]
  return Exported(writer.finish(read.inputs, outputs), read)
