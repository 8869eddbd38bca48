"""Fitted machines: what an Ethos-U would take, in Vela's estimation.

A linear model per kind of operation, its constants fitted (fit.py) to what
Vela reports for a sweep of shapes and bit widths and kept in ethos.json:

  product, the longest of
    compute    c0 + c1 K + c2 N + c3 M + c4 K N + c5 M K N / multipliers
    weights    w0 + w1 weight bytes + w2 N + w3 outside in + w4 outside out
    maps       f0 + f1 N + f2 passes * outside in + f3 outside out + f4 results
  anything else, per kind
               e0 + e1 results + e2 outside in + e3 outside out

for M rows (positions of a window), K inputs and N outputs of each, and passes
= N / 256 rounded up. "Outside" counts the elements that the operation reads
from the program's inputs, or writes to its outputs: those lie in DRAM, values
in between mostly on the chip.
Weight bytes are what a compiler's entropy coder would store: the histogram's
entropy, plus fitted overheads. Operations that Vela fuses into others cost
(almost) nothing here for the same reason.

Weak on windows, on the U65 and U85: how often a map is read follows from the
blocks that a compiler cuts it into, by jumps that no linear term has.
benchmarks/cost_model.py measures each kind.
"""

from __future__ import annotations

import functools
import json
import math
import pathlib
from typing import Any, NamedTuple

import numpy as np

from s8bqat_jax.export import program, tables
from s8bqat_jax.export.program import Op, Value
from s8bqat_jax.npu.cost import Latency, NpuSpec, OpCost, check_lowered

CONSTANTS = pathlib.Path(__file__).parent / 'ethos.json'
# Output channels for which the inputs are read once.
_PASS = 256
_PRODUCTS = ('q_conv', 'q_depthwise', 'q_dot')


class Ethos(NamedTuple):
  """A fitted machine.

  Attributes:
    name: of the machine, a target of vela.py.
    clock_hz: cycles per second.
    multipliers: int8 multiply-accumulates per cycle.
    constants: {kind: coefficients}, of the features below in order.
  """

  name: str
  clock_hz: float
  multipliers: int
  constants: dict[str, list[float]]


class Work(NamedTuple):
  """One operation as the model sees it.

  Attributes:
    op: the operation.
    kind: which constants apply.
    rows: M.
    depth: K.
    channels: N.
    results: elements of the result.
    entropy_bytes: of the weights, by their own histogram; 0 without weights.
    weights: how many there are.
    outside_in: elements read from the program's inputs.
    outside_out: elements written to its outputs.
  """

  op: Op
  kind: str
  rows: int
  depth: int
  channels: int
  results: int
  entropy_bytes: float
  weights: int
  outside_in: int
  outside_out: int

  @property
  def macs(self) -> int:
    return self.rows * self.depth * self.channels

  def weight_features(self) -> list[float]:
    return [self.entropy_bytes, self.weights, self.channels]

  def compute_features(self, multipliers: int) -> list[float]:
    macs = self.macs / multipliers
    area = self.depth * self.channels
    return [1, self.depth, self.channels, self.rows, area, macs]

  def stream_features(self, weight_bytes: float) -> list[float]:
    reads, writes = self.outside_in, self.outside_out
    return [1, weight_bytes, self.channels, reads, writes]

  def map_features(self) -> list[float]:
    reads = self.outside_in * math.ceil(self.channels / _PASS)
    return [1, self.channels, reads, self.outside_out, self.results]

  def plain_features(self) -> list[float]:
    return [1, self.results, self.outside_in, self.outside_out]


@functools.cache
def machines() -> dict[str, Ethos]:
  """Returns the fitted machines by name."""
  return {
    name: Ethos(name, **fields)
    for name, fields in json.loads(CONSTANTS.read_text())['machines'].items()
  }


def latency(integer_fn: Any, machine: Ethos) -> Latency:
  """Estimates the cost of one call of a straight-line integer function.

  Args:
    integer_fn: an IntegerFunction, such as a streaming step; its scans are
      unrolled, as in a .tflite.
    machine: one of `machines()`.

  Returns:
    A Latency; `str` is the table.

  Raises:
    TypeError: `integer_fn` is no IntegerFunction.
    UnsupportedExport: the program loops or branches.
    ValueError: it holds an operation whose kind was not fitted.
  """
  ops = tuple(cost(work, machine) for work in works(integer_fn))
  spec = NpuSpec(
    machine.name, machine.clock_hz, machine.multipliers, 0, 0, 0, 0.0
  )
  return Latency(spec, ops)


def works(integer_fn: Any) -> list[Work]:
  """Returns the operations of an integer function, as the model sees them."""
  check_lowered(integer_fn)
  read = program.read(integer_fn)
  inside = {v for op in read.ops for v in op.outs}
  ends = set(read.outputs)
  return [_work(op, inside, ends) for op in read.ops]


def _work(op: Op, inside: set[Value], ends: set[Value]) -> Work:
  y = op.outs[0]
  size = lambda v: math.prod(v.shape)
  reads = sum(size(v) for v in op.ins if v.const is None and v not in inside)
  writes = sum(size(v) for v in op.outs if v in ends)
  results = sum(size(v) for v in op.outs)
  rows, depth, channels, entropy, weights = results, 0, 0, 0.0, 0
  if op.name in _PRODUCTS:
    kernel = op.ins[1] if op.ins[1].const is not None else op.ins[0]
    if op.name == 'q_dot':
      (contract, _), _ = op.params['dimension_numbers']
      depth = math.prod(op.ins[0].shape[i] for i in contract)
      channels = (
        size(kernel) // depth if kernel.const is not None else y.shape[-1]
      )
    else:
      channels = y.shape[-1]
      depth = size(kernel) // channels
    rows = results // channels
    if kernel.const is not None:
      weights = size(kernel)
      entropy = _entropy_bytes(kernel.const)
  return Work(
    op, _kind(op), rows, depth, channels, results, entropy, weights, reads,
    writes,
  )  # fmt: skip


def _kind(op: Op) -> str:
  """Operations of one kind share constants."""
  x, y = op.ins[0], op.outs[0]
  if op.name == 'q_dot':
    if all(v.const is None for v in op.ins[:2]):
      return 'matmul'
    # A 16-bit result takes 16-bit inputs, at another rate.
    return 'dense int16' if y.dtype == np.int16 else 'dense'
  if op.name in _PRODUCTS:
    return op.name[2:]
  if op.name == 'q_lut':
    name = tables.identify(x, y, op.ins[1].const, op.params['out'])
    return f'lut {name or "any"} {x.dtype}->{y.dtype}'
  if op.name.startswith('q_'):
    data = [v for v in op.ins if v.dtype.itemsize <= 2]
    widest = max((v.dtype for v in data), key=lambda d: d.itemsize)
    return f'{op.name[2:]} {widest}->{y.dtype}'
  return f'{op.name} {x.dtype}'


def _entropy_bytes(weights: np.ndarray) -> float:
  counts = np.unique(weights, return_counts=True)[1]
  return float(np.sum(counts * np.log2(counts.sum() / counts)) / 8)


def weight_bytes(work: Work, machine: Ethos) -> float:
  """Returns the bytes of an operation's weights as a compiler stores them."""
  if not work.weights:
    return 0.0
  return _dot(machine.constants['weight bytes'], work.weight_features())


def cost(work: Work, machine: Ethos) -> OpCost:
  """Estimates one operation.

  Args:
    work: the operation.
    machine: the machine.
  """
  stored, constants = weight_bytes(work, machine), machine.constants
  if f'{work.kind} compute' in constants:
    features = work.compute_features(machine.multipliers)
    compute = _dot(constants[f'{work.kind} compute'], features)
    memory = max(
      _dot(constants[f'{work.kind} weights'], work.stream_features(stored)),
      _dot(constants[f'{work.kind} maps'], work.map_features()),
    )
  elif not work.macs and (alike := _fitted_as(work.kind, constants)):
    compute = max(_dot(constants[k], work.plain_features()) for k in alike)
    memory = 0.0
  else:
    raise ValueError(
      f'{machine.name}: no constants for {work.kind!r} (at {work.op.site}); '
      'add a shape of it to the sweep and fit again'
    )
  traffic = work.outside_in + work.outside_out
  return OpCost(
    work.op.name, work.op.site or work.op.outs[0].name, 1, work.macs,
    round(stored), traffic, compute, memory, max(compute, memory),
  )  # fmt: skip


def _fitted_as(kind: str, constants: dict[str, list[float]]) -> list[str]:
  """Kinds whose constants may apply: an unknown table is the dearest of its
  types, an unknown movement the dearest of its name, of those that the
  compiler did not fuse away."""
  if kind in constants:
    return [kind]
  if kind.startswith('lut '):
    types = kind.rsplit(' ', 1)[-1]
    alike = [k for k in constants if k.startswith('lut ') and k.endswith(types)]
    return [k for k in alike if any(constants[k])]
  if '->' in kind:
    return []
  return [k for k in constants if k.split(' ')[0] == kind.split(' ')[0]]


def _dot(a: list[float], b: list[float]) -> float:
  return float(np.dot(a, b))
