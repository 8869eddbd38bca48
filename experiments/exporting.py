"""A packed recognizer's streaming step as files of other runtimes."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from experiments import integer_recognizer
from experiments import recognizer as recognizer_lib
from s8bqat_jax import files, integer
from s8bqat_jax.artifacts import packed_file
from s8bqat_jax.export import witness


def functions(path: os.PathLike | str) -> dict[str, integer.IntegerFunction]:
  """Returns the integer programs of a packed recognizer's streaming step.

  Args:
    path: of the packed file.

  Raises:
    ValueError: its activations have no ranges.
  """
  recognizer, _, config = recognizer_lib.load(path)
  ranges = integer_recognizer.ranges_of(path, config)
  tree = packed_file.load(path).tree
  programs = integer_recognizer.Programs(recognizer, tree, ranges)
  encoder, predictor = programs.encode_chunk(1), programs.predict_step(1)
  # The last output of each, without the axis of one frame.
  width = encoder.jaxpr.out_avals[-1].shape[-1]
  return {
    'encoder': encoder,
    'predictor': predictor,
    'joint': programs.joint((1, width), predictor.jaxpr.out_avals[-1].shape),
  }


class Format(NamedTuple):
  """What writes a file and what runs it.

  Attributes:
    export: (function, watched) -> its file, and the program it was made of;
      watched keeps every value, for a witness, and is no file to ship.
    session: (what was exported, watched) -> codes in, codes out.
  """

  export: Callable[[integer.IntegerFunction, bool], Any]
  session: Callable[[Any, bool], Any]


def _tflite() -> Format:
  from s8bqat_jax.export import tflite
  from s8bqat_jax.export.tflite import runtime

  return Format(
    lambda fn, watched: tflite.export(fn),
    lambda file, watched: runtime.Session(file, keep_all=watched),
  )


def _onnx() -> Format:
  from s8bqat_jax.export import onnxfile
  from s8bqat_jax.export.onnxfile import runtime

  return Format(
    lambda fn, watched: onnxfile.export(fn, keep_all=watched),
    lambda file, watched: runtime.Session(file, threads=1),
  )


# Each made when it is asked for: they need the export extra.
FORMATS = {'tflite': _tflite, 'onnx': _onnx}


def session(fn: integer.IntegerFunction, kind: str) -> Any:
  """Returns a function in its runtime: codes in, codes out.

  Args:
    fn: the function.
    kind: of FORMATS.
  """
  form = FORMATS[kind]()
  return form.session(form.export(fn, False), False)


class Watched:
  """An exported function in its runtime, every operation judged by ours.

  Attributes:
    rows: one witness.Row per operation of every call so far.
  """

  def __init__(self, fn: integer.IntegerFunction, kind: str):
    """Exports and loads a function.

    Args:
      fn: the function.
      kind: of FORMATS.
    """
    form = FORMATS[kind]()
    exported = form.export(fn, True)
    self._session = form.session(exported, True)
    self._program = exported.program
    self.rows: list[witness.Row] = []

  def __call__(self, *codes: Any) -> list[np.ndarray]:
    """Runs the function: codes in, codes out."""
    results = self._session(*codes)
    self.rows += witness.per_op(self._program, self._session.value)
    return results


def write(
  fn: integer.IntegerFunction, kind: str, path: pathlib.Path
) -> dict[str, witness.Agreement]:
  """Writes one function and runs it once beside our own program.

  Args:
    fn: the function.
    kind: of FORMATS.
    path: of the file.

  Returns:
    {operation: its Agreement on random codes}.
  """
  data = FORMATS[kind]().export(fn, False).data
  with files.replacing(path) as partial:
    partial.write_bytes(data)
  watched = Watched(fn, kind)
  watched(*_random_codes(fn))
  return witness.summary(watched.rows)


def _random_codes(fn: integer.IntegerFunction) -> list[np.ndarray]:
  r = np.random.default_rng(0)
  codes = []
  for aval, spec in zip(fn.jaxpr.in_avals, fn.in_specs):
    low, high = (0, 1) if spec is None else (spec.low, spec.high)
    codes.append(r.integers(low, high + 1, aval.shape).astype(aval.dtype))
  return codes


def describe(fn: integer.IntegerFunction) -> dict[str, Any]:
  """What a function's codes stand for, JSON-able."""

  def one(aval, spec):
    told = {'shape': list(aval.shape), 'dtype': aval.dtype.name}
    if spec is not None:
      told |= {'scale': float(spec.scale), 'zero': int(spec.zero)}
    return told

  pairs = (
    zip(fn.jaxpr.in_avals, fn.in_specs),
    zip(fn.jaxpr.out_avals, fn.out_specs),
  )
  return {
    side: [one(aval, spec) for aval, spec in codes]
    for side, codes in zip(('inputs', 'outputs'), pairs)
  }
