"""Running an exported ONNX file in ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime

from s8bqat_jax.export.onnxfile import Exported
from s8bqat_jax.export.program import Value


def load(data: bytes, threads: int = 0) -> onnxruntime.InferenceSession:
  """Returns ONNX Runtime's session of any file, on the CPU.

  Args:
    data: of the file.
    threads: that it may use; 0 for all.
  """
  options = onnxruntime.SessionOptions()
  options.intra_op_num_threads = threads
  # Idle threads would spin on the cores of whatever else runs.
  options.add_session_config_entry('session.intra_op.allow_spinning', '0')
  return onnxruntime.InferenceSession(
    data, options, providers=['CPUExecutionProvider']
  )


class Session:
  """A session of one file."""

  def __init__(self, exported: Exported, *, threads: int = 0):
    """Loads a file.

    Args:
      exported: the file.
      threads: that it may use; 0 for all.
    """
    self._session = load(exported.data, threads)
    self._inputs = [v.name for v in exported.program.inputs]
    # Inputs that nothing reads are no inputs of the session.
    self._known = {i.name for i in self._session.get_inputs()}
    self._outputs = [o.name for o in self._session.get_outputs()]
    self._count = len(exported.program.outputs)
    self._kept: dict[str, np.ndarray] = {}

  def __call__(self, *codes: Any) -> list[np.ndarray]:
    """Runs the file: flat integer inputs in, flat integer outputs out."""
    named = zip(self._inputs, codes, strict=True)
    feed = {n: np.asarray(c) for n, c in named if n in self._known}
    results = self._session.run(None, feed)
    self._kept = {**feed, **dict(zip(self._outputs, results))}
    return results[: self._count]

  def value(self, v: Value) -> np.ndarray:
    """Returns a value's codes of the last run (`export(keep_all=True)`)."""
    return self._kept[v.name]
