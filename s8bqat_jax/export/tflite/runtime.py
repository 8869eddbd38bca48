"""Running an exported .tflite in LiteRT's interpreter."""

from __future__ import annotations

from typing import Any

import numpy as np
from ai_edge_litert import interpreter

from s8bqat_jax.export.program import Value
from s8bqat_jax.export.tflite import Exported


class Session:
  """An interpreter of one file.

  The optimized kernels are meant: the reference kernel of a 16-bit product
  reads a 32-bit bias as if it had 64.
  """

  def __init__(
    self, exported: Exported, *, keep_all: bool = False, threads: int = 1
  ):
    """Loads a file.

    Args:
      exported: the file.
      keep_all: keep every value for `value`; without delegates, so slower.
      threads: that it may use.
    """
    self._tensors = exported.tensors
    resolvers = interpreter.OpResolverType
    self._interpreter = interpreter.Interpreter(
      model_content=exported.data,
      num_threads=threads,
      experimental_preserve_all_tensors=keep_all,
      experimental_op_resolver_type=resolvers.BUILTIN_WITHOUT_DEFAULT_DELEGATES
      if keep_all
      else resolvers.AUTO,
    )
    self._interpreter.allocate_tensors()
    self._ins = [d['index'] for d in self._interpreter.get_input_details()]
    self._outs = [d['index'] for d in self._interpreter.get_output_details()]

  def __call__(self, *codes: Any) -> list[np.ndarray]:
    """Runs the file: flat integer inputs in, flat integer outputs out."""
    for index, code in zip(self._ins, codes, strict=True):
      self._interpreter.set_tensor(index, np.asarray(code))
    self._interpreter.invoke()
    return [self._interpreter.get_tensor(index) for index in self._outs]

  def value(self, v: Value) -> np.ndarray:
    """Returns the codes that a value had in the last run (`keep_all`)."""
    return self._interpreter.get_tensor(self._tensors[v])
