"""A packed recognizer's streaming step as files of other runtimes."""

from __future__ import annotations

import os
import pathlib
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


class Opened(NamedTuple):
  """An exported function, loaded by what runs its format.

  Attributes:
    exported: the file, and the program that it was made of.
    session: codes in, codes out.
  """

  exported: Any
  session: Any


def _tflite(fn: integer.IntegerFunction, watched: bool) -> Opened:
  from s8bqat_jax.export import tflite
  from s8bqat_jax.export.tflite import runtime

  exported = tflite.export(fn)
  return Opened(exported, runtime.Session(exported, keep_all=watched))


def _onnx(fn: integer.IntegerFunction, watched: bool) -> Opened:
  from s8bqat_jax.export import onnxfile
  from s8bqat_jax.export.onnxfile import runtime

  exported = onnxfile.export(fn, keep_all=watched)
  return Opened(exported, runtime.Session(exported, threads=1))


_FORMATS = {'tflite': _tflite, 'onnx': _onnx}
FORMATS = tuple(_FORMATS)


def opened(
  fn: integer.IntegerFunction, kind: str, *, watched: bool = False
) -> Opened:
  """Exports and loads a function.

  Args:
    fn: the function.
    kind: of FORMATS.
    watched: keep every value, for a witness; slower, and no file to ship.
  """
  return _FORMATS[kind](fn, watched)


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
    exported, self._session = opened(fn, kind, watched=True)
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
  data = opened(fn, kind).exported.data
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
