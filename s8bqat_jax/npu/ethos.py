"""Fitted machines: what an Ethos-U would take, in Vela's estimation.

A linear model per kind of operation, its constants fitted (fit.py) to what
Vela reports for a sweep of shapes and bit widths and kept in ethos.json:

  product, the longest of
    compute    c0 + c1 K + c2 N + c3 M + c4 K N + c5 M K N / multipliers
    weights    w0 + w1 weight bytes + w2 N + w3 outside in + w4 outside out
    maps       f0 + f1 N + f2 passes * outside in + f3 outside out + f4 results
  what reduces (softmax, sums, maxima, pools, products of two values), per kind
               e0 + e1 results + e2 outside in + e3 outside out
                  + e4 M + e5 M K + e6 M K N
  anything else, per kind
               e0 + e1 results + e2 outside in + e3 outside out

for M rows (positions of a window), K inputs and N outputs of each, and passes
= N / 256 rounded up. "Outside" counts the elements that the operation reads
from the program's inputs, or writes to its outputs: those lie in DRAM, values
in between mostly on the chip.
Weight bytes are what a compiler's entropy coder would store: the histogram's
entropy, plus fitted overheads. Operations that Vela fuses into others cost
(almost) nothing here for the same reason: a table of a product's result, while
the same table of anything else is a kind of its own, `alone`. So are matrices
of more rows than a streaming step has, `of rows`.

What Vela was never asked about, or leaves to the CPU or the .tflite cannot say
(a LayerNorm, log or masked softmax), costs what the dearest fitted kind like it
does: tables of the same types; the same operation of other types; reductions;
movements; sums and products.

Weak on windows, pools and sums over columns, on the U65 and U85: how often a
map is read follows from the blocks that a compiler cuts it into, by jumps that
no linear term has.
benchmarks/cost_model.py measures each kind.
"""

from __future__ import annotations

import collections
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
# Rows that a streaming step has at most.
_STEP_ROWS = 8
_PRODUCTS = ('q_conv', 'q_depthwise', 'q_dot')
_ROWS = ('q_softmax', 'q_log_softmax', 'q_layernorm')
_REDUCING = (
  'q_sum', 'q_pool', 'reduce_max', 'reduce_min', 'argmax', 'argmin', *_ROWS,
)  # fmt: skip


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
    rows: M; of what reduces, how often it does.
    depth: K; of what reduces, how many elements it takes each time.
    channels: N; 0 for what is no product.
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
    plain = [1.0, self.results, self.outside_in, self.outside_out]
    if self.depth:
      plain += [self.rows, self.rows * self.depth, self.macs]
    return plain


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
    ValueError: it holds a kind of operation for which the machine has no
      constants, nor any for a kind like it; none of `machines()` is such a one.
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
  made = {v: op.name for op in read.ops for v in op.outs}
  readers = collections.Counter(v for op in read.ops for v in op.ins)
  # A product's result that only one operation sees may become a part of it.
  alone = {v for v in made if readers[v] == 1 and v not in ends}
  found = []
  for op in read.ops:
    makers = [made.get(v, '') for v in op.ins]
    fused = makers[0] in _PRODUCTS and op.ins[0] in alone
    windows = any(name in ('q_conv', 'q_depthwise') for name in makers)
    found.append(_work(op, inside, ends, fused, windows))
  return found


def _work(
  op: Op, inside: set[Value], ends: set[Value], fused: bool, windows: bool
) -> Work:
  y = op.outs[0]
  size = lambda v: math.prod(v.shape)
  reads = sum(size(v) for v in op.ins if v.const is None and v not in inside)
  writes = sum(size(v) for v in op.outs if v in ends)
  results = sum(size(v) for v in op.outs)
  rows, depth, channels, entropy, weights = results, 0, 0, 0.0, 0
  if op.name in _PRODUCTS:
    kernel = op.ins[0] if op.ins[0].const is not None else op.ins[1]
    if op.name == 'q_dot':
      (contract, _), (batch, _) = op.params['dimension_numbers']
      depth, products = (
        math.prod(op.ins[0].shape[i] for i in axes)
        for axes in (contract, batch)
      )
      channels = size(kernel) // (products * depth)
    else:
      channels = y.shape[-1]
      depth = size(kernel) // channels
    rows = results // channels
    if kernel.const is not None:
      weights = size(kernel)
      entropy = _entropy_bytes(kernel.const)
  elif op.name in _REDUCING:
    x = op.ins[0]
    if op.name in _ROWS:
      depth = x.shape[-1]
      rows = results // max(depth, 1)
    elif op.name == 'q_pool':
      depth = math.prod(op.params['window'])
    else:
      depth = size(x) // max(results, 1)
  lines = results // max(y.shape[-1], 1) if y.shape else 1
  if op.name in _PRODUCTS:
    lines = rows
  # Sequences cost otherwise than the few rows of a step, or than images.
  many = lines > _STEP_ROWS and not windows
  return Work(
    op, _kind(op, fused, many), rows, depth, channels, results, entropy,
    weights, reads, writes,
  )  # fmt: skip


def _kind(op: Op, fused: bool, many: bool) -> str:
  """Operations of one kind share constants.

  Args:
    op: the operation.
    fused: it alone reads a product's result.
    many: it goes over more rows than a step has.
  """
  x, y = op.ins[0], op.outs[0]
  rows = ' of rows' if many else ''
  if op.name == 'q_dot':
    if all(v.const is None for v in op.ins[:2]):
      return 'matmul'
    # A 16-bit result takes 16-bit inputs, at another rate.
    kind = 'dense int16' if y.dtype == np.int16 else 'dense'
    return kind + rows
  if op.name in _PRODUCTS:
    return op.name[2:]
  if op.name == 'q_lut':
    name = tables.identify(x, y, op.ins[1].const, op.params['out'])
    name = 'gelu' if name == 'gelu_tanh' else name or 'any'
    kind = f'lut {name} {x.dtype}->{y.dtype}'
    if x.dtype == y.dtype == np.int8 and not fused:
      kind += ' alone'
    return kind + rows
  if op.name.startswith('q_'):
    data = [v for v in op.ins if v.dtype.itemsize <= 2]
    widest = max((v.dtype for v in data), key=lambda d: d.itemsize)
    kind = f'{op.name[2:]}{_way(op)} {widest}->{y.dtype}'
    return kind if op.name in _REDUCING else kind + rows
  if op.name == 'transpose':
    # Where only axes of length 1 move it is a reshape.
    kept = [i for i in op.params['permutation'] if x.shape[i] > 1]
    if kept != sorted(kept):
      return f'transposed {x.dtype}'
  if op.name == 'broadcast_in_dim' and x.dtype.itemsize <= 2:
    if math.prod(x.shape) == math.prod(y.shape):
      return f'reshape {x.dtype}'
  return f'{op.name} {x.dtype}'


def _way(op: Op) -> str:
  """What else tells reductions apart."""
  x = op.ins[0]
  if op.name == 'q_pool':
    return f' {op.params["kind"]}'
  if op.name == 'q_sum':
    return '' if len(x.shape) - 1 in op.params['over'] else ' of columns'
  if op.name in _ROWS:
    return ' of one matrix' if sum(n > 1 for n in x.shape[:-1]) < 2 else ''
  return ''


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
  product = _product_as(work.kind, constants)
  if product is not None:
    features = work.compute_features(machine.multipliers)
    compute = _dot(constants[f'{product} compute'], features)
    memory = max(
      _dot(constants[f'{product} weights'], work.stream_features(stored)),
      _dot(constants[f'{product} maps'], work.map_features()),
    )
  elif alike := _fitted_as(work, constants):
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


def _product_as(kind: str, constants: dict[str, list[float]]) -> str | None:
  """The kind of product whose constants apply, if one's do."""
  kinds = (kind, kind.removesuffix(' of rows'))
  return next((k for k in kinds if f'{k} compute' in constants), None)


def _fitted_as(work: Work, constants: dict[str, list[float]]) -> list[str]:
  """Kinds whose constants may apply; what is meant is the dearest of them.

  Args:
    work: the operation.
    constants: of the machine.
  """
  kind = work.kind
  for same in (kind, kind.removesuffix(' of rows')):
    if same in constants:
      return [same]
  if work.macs:
    return []
  first, *_ = words = kind.split(' ')
  if first == 'lut':
    # What the compiler fused says nothing about what it can't.
    tables = [
      k for k in constants if k.startswith('lut ') and any(constants[k])
    ]
    alike = [k for k in tables if k.split(' ')[2:] == words[2:]]
    alike = alike or [k for k in tables if words[2] in k.split(' ')]
    return alike or tables
  others = [
    k
    for k, values in constants.items()
    if len(values) == len(work.plain_features())
    and not k.startswith(('lut ', 'matmul', 'weight bytes'))
    and not k.endswith((' compute', ' weights', ' maps'))
  ]
  named = [k for k in others if k.split(' ')[0] == first]
  return named or [k for k in others if ('->' in k) == ('->' in kind)] or others


def _dot(a: list[float], b: list[float]) -> float:
  return float(np.dot(a, b))
