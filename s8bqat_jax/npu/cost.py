"""What an integer function costs on an accelerator, read off its jaxpr.

Per operation:
  compute  multiply-accumulates / multipliers, or results / lanes
  memory   (weight bytes + activation bytes that leave SRAM) / bandwidth
  cycles   max of both when double-buffered, else their sum, plus an overhead

Weights cost the bytes they are stored in: n-bit codes packed, plus the table;
a constant that is no parameter, 8 bits each. Inside a scan they are fetched
once if the loop's weights fit the weight SRAM, otherwise at every step: this is
what sub-8-bit weights buy. A scan over stacked weights reads others at every
step. Reshapes, slices and transposes are addressing and cost nothing.

The machine is the idealized one of the papers (an index from memory, an int8
value into the multiplier); no figure here is fitted to a product.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from s8bqat_jax.artifacts import qtensor
from s8bqat_jax.integer import IntegerFunction, keys, primitives
from s8bqat_jax.integer import _jax_internals as internals


class NpuSpec(NamedTuple):
  """An accelerator as data.

  Attributes:
    name: of the machine.
    clock_hz: cycles per second.
    multipliers: int8 multiply-accumulates per cycle.
    lanes: elementwise results per cycle.
    weight_sram: bytes of weights that stay on chip.
    activation_sram: bytes; a larger tensor goes through DRAM.
    dram_bytes_per_second: bandwidth.
    min_weight_bits: narrowest code its weight decoder reads (8: none).
    double_buffered: whether memory and compute overlap.
    overhead_cycles: per operation.
  """

  name: str
  clock_hz: float
  multipliers: int
  lanes: int
  weight_sram: int
  activation_sram: int
  dram_bytes_per_second: float
  min_weight_bits: int = 1
  double_buffered: bool = True
  overhead_cycles: int = 0


# A microcontroller-class machine with an n-bit index decoder, and the same
# machine without one, so that the difference is the decoder's.
INDEX_NPU = NpuSpec(
  'n-bit-index NPU', 1e9, 256, 32, 512 << 10, 512 << 10, 4e9,
  overhead_cycles=200,
)  # fmt: skip
INT8_NPU = INDEX_NPU._replace(name='int8 NPU', min_weight_bits=8)


class OpCost(NamedTuple):
  """One operation, all its repetitions included."""

  op: str
  site: str
  repeats: int
  macs: int
  weight_bytes: int
  activation_bytes: int
  compute_cycles: float
  memory_cycles: float
  cycles: float

  @property
  def bound(self) -> str:
    return 'memory' if self.memory_cycles > self.compute_cycles else 'compute'


class Latency(NamedTuple):
  """The costs of a program."""

  spec: NpuSpec
  ops: tuple[OpCost, ...]

  @property
  def cycles(self) -> float:
    return sum(o.cycles for o in self.ops)

  @property
  def milliseconds(self) -> float:
    return self.cycles / self.spec.clock_hz * 1e3

  @property
  def weight_bytes(self) -> int:
    return sum(o.weight_bytes for o in self.ops)

  def __str__(self) -> str:
    lines = [f'{"op":14}{"cycles":>12}{"weight B":>11}  {"bound":8} site']
    for o in self.ops:
      lines.append(
        f'{o.op:14}{o.cycles:12.0f}{o.weight_bytes:11d}  {o.bound:8} {o.site}'
      )
    lines.append(
      f'{self.spec.name}: {self.milliseconds:.3f} ms, {self.cycles:.0f} '
      f'cycles, {self.weight_bytes} weight bytes fetched'
    )
    return '\n'.join(lines)


class _Found(NamedTuple):
  eqn: Any
  repeats: int
  loops: tuple[Any, ...]  # The scans around it, outermost first.
  computed: tuple[Any, ...]  # Operands that are no constants, each once.
  weight: int | None  # Which operand is weights.
  varies: frozenset[int]  # Ids of the loops that read others at every step.
  levels: int  # How many different values they have.


def latency(integer_fn: Any, spec: NpuSpec) -> Latency:
  """Estimates the cost of one call.

  Args:
    integer_fn: an IntegerFunction; its `weights` say how each is stored.
    spec: the machine.

  Returns:
    A Latency; `str` is the table.

  Raises:
    TypeError: `integer_fn` is no IntegerFunction.
    ValueError: the program has a while loop, whose length is not known, or the
      machine has no clock, multipliers, lanes or bandwidth.
  """
  check_lowered(integer_fn)
  for name in ('clock_hz', 'multipliers', 'lanes', 'dram_bytes_per_second'):
    value = getattr(spec, name)
    if not value > 0:
      raise ValueError(f'{spec.name}: {name} is {value}, expected more than 0')
  found: list[_Found] = []
  program = integer_fn.jaxpr.jaxpr
  consts = [_Origin(True, levels=_levels(c)) for c in integer_fn.jaxpr.consts]
  _collect(program, consts, [_Origin()] * len(program.invars), 1, (), found)
  bits = {
    name: max(w.bits, spec.min_weight_bits) if qtensor.is_qtensor(w) else 8
    for name, w in integer_fn.weights.items()
  }
  stored = [_weight_bytes(f, bits) for f in found]
  per_loop: dict[int, int] = {}
  for f, size in zip(found, stored):
    for loop in reversed(f.loops):
      per_loop[id(loop)] = per_loop.get(id(loop), 0) + size
      if id(loop) in f.varies:  # The loops around it read all its slices.
        size *= loop.params['length']
  return Latency(
    spec,
    tuple(_cost(f, s, per_loop, spec) for f, s in zip(found, stored)),
  )


def check_lowered(integer_fn: Any) -> None:
  """Raises a TypeError that says what to do with a function in float."""
  if not isinstance(integer_fn, IntegerFunction):
    raise TypeError(
      f'got {type(integer_fn).__name__}, expected an IntegerFunction: lower '
      'the function first, integer.lower(fn, params, ranges, *inputs)'
    )


class _Origin(NamedTuple):
  """Where a value comes from.

  Attributes:
    stored: it is (a part of) a constant of the program.
    varies: ids of the loops at whose steps it is another one.
    levels: how many different values the constant has.
  """

  stored: bool = False
  varies: frozenset[int] = frozenset()
  levels: int = 0


def _levels(constant: Any) -> int:
  """How many different values there are in an int8 constant; 0 for others."""
  x = np.asarray(constant)
  there = np.zeros(256, bool)
  if x.dtype == np.int8:
    there[x.view(np.uint8)] = True
  return int(there.sum())


def _collect(
  jaxpr: Any,
  consts: Sequence[_Origin],
  ins: Sequence[_Origin],
  repeats: int,
  loops: tuple[Any, ...],
  found: list[_Found],
) -> list[_Origin]:
  """Appends the operations of a jaxpr; returns the origins of its outputs."""
  env: dict[Any, _Origin] = dict(zip(jaxpr.constvars, consts))
  env.update(zip(jaxpr.invars, ins))

  def origin(a: Any) -> _Origin:
    return _Origin(True) if hasattr(a, 'val') else env[a]

  for e in jaxpr.eqns:
    args = [origin(a) for a in e.invars]
    varies = frozenset().union(*(a.varies for a in args))
    name = e.primitive.name
    outs = [_Origin(False, varies)] * len(e.outvars)
    if name in primitives.REGISTRY:
      computed = {v: None for v, a in zip(e.invars, args) if not a.stored}
      found.append(
        _Found(e, repeats, loops, tuple(computed), *_stored_operand(e, args))
      )
      env.update(zip(e.outvars, outs))
      continue
    inner = [_body(j) for j in internals.inner_jaxprs(e)]
    if not (name in _CONTROL or internals.is_call(e)):
      # What moves constants still fetches them; indices are of another type.
      moved = [
        a
        for a, v in zip(args, e.invars)
        if v.aval.dtype == e.outvars[0].aval.dtype
      ]
      stored = bool(moved) and all(a.stored for a in moved)
      levels = max((a.levels for a in moved), default=0)
      outs = [_Origin(stored, varies, levels)] * len(outs)
    elif name == 'while':
      raise ValueError('a while loop has no known length; use scan to cost it')
    elif name == 'scan':
      fixed, carries = internals.scan_split(e.params)
      step = frozenset([id(e)])
      rows = [
        a._replace(varies=a.varies | step) for a in args[fixed + carries :]
      ]
      state = [_Origin(False, varies | step)] * carries
      _collect(
        *inner[0], [*args[:fixed], *state, *rows],
        repeats * e.params['length'], (*loops, e), found,
      )  # fmt: skip
    elif name == 'cond':
      # The branch with the most arithmetic.
      branches: list[list[_Found]] = []
      for body in inner:
        branches.append([])
        _collect(*body, args[1:], repeats, loops, branches[-1])
      found += max(
        branches, key=lambda b: sum(_macs(f.eqn) * f.repeats for f in b)
      )
    else:
      outs = _collect(*inner[0], args, repeats, loops, found)
    env.update(zip(e.outvars, outs))
  return [origin(a) for a in jaxpr.outvars]


def _body(inner: Any) -> tuple[Any, list[_Origin]]:
  """A jaxpr inside of another, and where its own constants come from."""
  jaxpr = getattr(inner, 'jaxpr', inner)
  known = getattr(inner, 'consts', ())
  levels = [_levels(c) for c in known] or [0] * len(jaxpr.constvars)
  return jaxpr, [_Origin(True, levels=n) for n in levels]


def _stored_operand(
  e: Any, args: Sequence[_Origin]
) -> tuple[int | None, frozenset[int], int]:
  """Which operand of a product or embedding is weights, and what they are."""
  if e.primitive.name in _PRODUCTS or e.primitive.name == 'q_embed':
    for i in (1, 0):
      if args[i].stored:
        return i, args[i].varies, args[i].levels
  return None, frozenset(), 0


_PRODUCTS = ('q_dot', 'q_conv', 'q_depthwise')
_CONTROL = ('scan', 'while', 'cond')


def _macs(e: Any) -> int:
  """Multiply-accumulates of one execution; 0 for elementwise operations."""
  name, out = e.primitive.name, math.prod(e.outvars[0].aval.shape)
  if name not in _PRODUCTS:
    return 0
  shape = e.invars[1].aval.shape
  if name == 'q_dot':
    contract = e.params['dimension_numbers'][0][1]
    return out * math.prod(shape[i] for i in contract)
  return out * math.prod(shape[:-1])


def _weight_bytes(f: _Found, bits: dict[str, int]) -> int:
  """Stored bytes of the weights that an operation reads once."""
  if f.weight is None:
    return 0
  e = f.eqn
  width = bits.get(keys.weight_of(e.params['site']), 8)
  if f.levels > 2**width:
    width = 8  # Another constant than the parameter that the site is named by.
  read = e.outvars[0] if e.primitive.name == 'q_embed' else e.invars[f.weight]
  table = 2**width if width < 8 else 0
  return math.ceil(math.prod(read.aval.shape) * width / 8) + table


def _cost(f: _Found, stored: int, per_loop, spec: NpuSpec) -> OpCost:
  e = f.eqn
  macs = _macs(e) * f.repeats
  results = math.prod(e.outvars[0].aval.shape) * f.repeats
  fetches = f.repeats
  for loop in reversed(f.loops):
    if id(loop) in f.varies:
      continue
    if per_loop[id(loop)] > spec.weight_sram:
      break  # Evicted before the next step, and so by the loops around it.
    fetches //= max(loop.params['length'], 1)
  weights = stored * fetches
  moved = 0
  for v in (*f.computed, e.outvars[0]):
    size = math.prod(v.aval.shape) * np.dtype(v.aval.dtype).itemsize
    if size > spec.activation_sram:
      moved += size * f.repeats
  compute = max(macs / spec.multipliers, results / spec.lanes)
  memory = (weights + moved) / spec.dram_bytes_per_second * spec.clock_hz
  cycles = max(compute, memory) if spec.double_buffered else compute + memory
  return OpCost(
    e.primitive.name,
    e.params['site'],
    f.repeats,
    macs,
    weights,
    moved,
    compute,
    memory,
    cycles + spec.overhead_cycles * f.repeats,
  )
