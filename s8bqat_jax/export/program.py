"""An integer function as a straight line of operations: what exporters read.

Inner functions are inlined, scans unrolled, constants folded and dead
operations dropped; every value knows the scale and the zero point of its
codes. Nothing here knows a file format.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from s8bqat_jax.integer import _jax_internals as internals
from s8bqat_jax.integer import primitives

# A longer scan is a loop, and no longer a step.
MAX_UNROLLED = 64


class UnsupportedExport(NotImplementedError):
  """An operation that the target cannot express."""


@dataclasses.dataclass(eq=False)
class Value:
  """A tensor of codes.

  Attributes:
    shape: of the tensor.
    dtype: of its codes.
    scale: real value of one code; None for plain integers and truth values.
    zero: the code of 0.0.
    const: its codes, if they are known.
    name: unique within the program.
  """

  shape: tuple[int, ...]
  dtype: np.dtype
  scale: Any = None
  zero: int = 0
  const: Any = None
  name: str = ''


class Op(NamedTuple):
  """One operation: an integer primitive or a movement.

  Attributes:
    name: of the JAX primitive.
    params: of the JAX primitive.
    ins: what it reads.
    outs: what it makes.
    primitive: the JAX primitive itself.
  """

  name: str
  params: dict[str, Any]
  ins: tuple[Value, ...]
  outs: tuple[Value, ...]
  primitive: Any

  @property
  def site(self) -> str:
    """What it computes, in the float model's words; '' for movements."""
    return self.params.get('site', '')

  def evaluate(self, *codes: Any) -> list[np.ndarray]:
    """The operation on concrete codes, as our own program computes it."""
    if self.name in primitives.REGISTRY:
      oracle = primitives.REGISTRY[self.name].oracle
      return [np.asarray(oracle(*codes, **self.params))]
    with jax.ensure_compile_time_eval():
      results = self.primitive.bind(
        *map(jax.numpy.asarray, codes), **self.params
      )
    many = self.primitive.multiple_results
    return [np.asarray(r) for r in (results if many else [results])]


class Program(NamedTuple):
  """Operations in order of execution."""

  inputs: tuple[Value, ...]
  outputs: tuple[Value, ...]
  ops: tuple[Op, ...]


Rule = Callable[[Any, Op], None]


class Rules:
  """How a file format expresses operations; `@rules(name, ...)` adds to it."""

  def __init__(self, target: str):
    """Starts without rules.

    Args:
      target: the format, for messages.
    """
    self._target = target
    self._rules: dict[str, Rule] = {}

  def __call__(self, *names: str) -> Callable[[Rule], Rule]:
    """Registers (writer, op) -> None for operations of these names."""

    def add(rule: Rule) -> Rule:
      self._rules.update(dict.fromkeys(names, rule))
      return rule

    return add

  def check(self, program: Program) -> None:
    """Raises UnsupportedExport that names every operation without a rule."""
    ops = [op for op in program.ops if op.name not in self._rules]
    if ops:
      sites = list(dict.fromkeys(op.site for op in ops if op.site))[:3]
      raise UnsupportedExport(
        f'the {self._target} exporter has no rule for '
        f'{", ".join(sorted({op.name for op in ops}))}'
        f'{" (at " + ", ".join(sites) + ")" if sites else ""}; export the part '
        'of the function without it, or keep it in our own integer program'
      )

  def write(self, writer: Any, op: Op) -> None:
    """Writes one operation."""
    self._rules[op.name](writer, op)


def read(integer_fn: Any) -> Program:
  """Reads an integer function.

  Args:
    integer_fn: an IntegerFunction.

  Returns:
    Its Program; inputs and outputs are the flat codes of
    `integer_fn.integers`.

  Raises:
    UnsupportedExport: it branches, loops without a known end, or scans more
      than MAX_UNROLLED steps.
  """
  closed = integer_fn.jaxpr
  reader = _Reader()
  inputs = []
  for i, (v, s) in enumerate(zip(closed.jaxpr.invars, integer_fn.in_specs)):
    scale, zero = (None, 0) if s is None else (float(s.scale), s.zero)
    aval = v.aval
    inputs.append(
      Value(
        tuple(aval.shape), np.dtype(aval.dtype), scale, zero, None, f'in{i}'
      )
    )
  consts = [reader.constant(np.asarray(c)) for c in closed.consts]
  outs = reader.walk(closed.jaxpr, consts, inputs)
  ops = _live(reader.ops, outs)
  return Program(tuple(inputs), tuple(outs), ops)


class _Reader:
  """Walks jaxprs and collects operations."""

  def __init__(self) -> None:
    self._made = 0
    self.ops: list[Op] = []

  def constant(self, codes: np.ndarray) -> Value:
    return Value(codes.shape, codes.dtype, const=codes)

  def walk(
    self, jaxpr: Any, consts: Sequence[Value], args: Sequence[Value]
  ) -> list[Value]:
    env: dict[Any, Value] = dict(zip(jaxpr.constvars, consts))
    env.update(zip(jaxpr.invars, args))

    def value(atom: Any) -> Value:
      if hasattr(atom, 'val'):
        return self.constant(np.asarray(atom.val, atom.aval.dtype))
      return env[atom]

    for e in jaxpr.eqns:
      ins = [value(a) for a in e.invars]
      name = e.primitive.name
      if name == 'scan':
        outs = self._scan(e, ins)
      elif name in ('cond', 'while'):
        raise UnsupportedExport(
          f'{name!r} has no place in a straight-line program: export the step '
          'function and keep the loop outside'
        )
      elif not internals.is_call(e):
        outs = self._apply(e, ins)
      else:
        (inner,) = internals.inner_jaxprs(e)
        held = [self.constant(np.asarray(c)) for c in inner.consts]
        outs = self.walk(inner.jaxpr, held, ins)
      env.update(zip(e.outvars, outs))
    return [value(a) for a in jaxpr.outvars]

  def _scan(self, e: Any, ins: list[Value]) -> list[Value]:
    p = e.params
    if p['length'] > MAX_UNROLLED:
      raise UnsupportedExport(
        f'a scan of {p["length"]} steps: export the step function, or a '
        f'chunk of at most {MAX_UNROLLED} steps'
      )
    closed = p['jaxpr']
    consts, carries = internals.scan_split(p)
    held, state = ins[:consts], ins[consts : consts + carries]
    rows = ins[consts + carries :]
    inner = [self.constant(np.asarray(c)) for c in closed.consts]
    stacked: list[list[Value]] = []
    steps = range(p['length'])
    for t in reversed(steps) if p['reverse'] else steps:
      row = [self._call(lambda x, t=t: x[t], r) for r in rows]
      outs = self.walk(closed.jaxpr, inner, [*held, *state, *row])
      state = outs[:carries]
      stacked.append(outs[carries:])
    if p['reverse']:
      stacked.reverse()
    columns = zip(*stacked) if stacked else ()
    stack = lambda *x: jax.numpy.stack(x)
    return [*state, *(self._call(stack, *c) for c in columns)]

  def _call(self, fn: Callable[..., Any], *ins: Value) -> Value:
    """The operations of a small JAX function."""
    shapes = [jax.ShapeDtypeStruct(v.shape, v.dtype) for v in ins]
    closed = jax.make_jaxpr(fn)(*shapes)
    held = [self.constant(np.asarray(c)) for c in closed.consts]
    (out,) = self.walk(closed.jaxpr, held, ins)
    return out

  def _apply(self, e: Any, ins: list[Value]) -> list[Value]:
    name, params = e.primitive.name, e.params
    scale, zero = self._meaning(name, params, ins)
    outs = []
    for v in e.outvars:
      dtype = np.dtype(v.aval.dtype)
      plain = dtype.kind == 'b' or dtype.itemsize > 2
      meaning = (None, 0) if plain else (scale, zero)
      self._made += 1
      label = f'{name}_{self._made}'
      outs.append(Value(tuple(v.aval.shape), dtype, *meaning, name=label))
    op = Op(name, params, tuple(ins), tuple(outs), e.primitive)
    if all(v.const is not None for v in ins):
      for v, codes in zip(outs, op.evaluate(*(v.const for v in ins))):
        v.const = codes
    else:
      self.ops.append(op)
    return outs

  def _meaning(
    self, name: str, params: Any, ins: Sequence[Value]
  ) -> tuple[float | None, int]:
    """Scale and zero point of what an operation makes."""
    if 'out' in params and not (name == 'q_pool' and params['kind'] == 'max'):
      return params['out'].scale, params['out'].zero
    if name == 'convert_element_type' and ins[0].dtype == np.bool_:
      return 1.0, 0  # Codes of a truth value: 0 and 1.
    # Movements keep the meaning; where several values meet, it is one.
    for v in ins:
      if v.scale is not None:
        return v.scale, v.zero
    return None, 0


def _live(ops: Sequence[Op], outs: Sequence[Value]) -> tuple[Op, ...]:
  """The operations that outputs depend on."""
  needed = set(outs)
  kept = []
  for op in reversed(ops):
    if needed.intersection(op.outs):
      kept.append(op)
      needed.update(op.ins)
  return tuple(reversed(kept))
