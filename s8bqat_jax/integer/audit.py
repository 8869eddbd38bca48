"""audit: a proof that an integer function is what it claims to be.

It walks the program, every inner jaxpr, and the kernel behind every integer
primitive, and checks that
  - no value anywhere is floating point (or complex);
  - no int32 accumulator and no int64 intermediate can overflow, whatever
    codes arrive: weights are read from the program, every other operand is
    taken at the worst its dtype allows;
  - no integer equation between those primitives can overflow either, by the
    static ranges of its operands (intervals.py). Arithmetic of scalars alone
    (loop counters, indices) accumulates nothing and is let pass. Integers that
    are inputs of the float function itself (ids, lengths) are assumed to stay
    within `ASSUMED`; the printout says so.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core as jex_core

from s8bqat_jax.integer import _jax_internals as internals
from s8bqat_jax.integer import bounds, intervals, primitives
from s8bqat_jax.integer.intervals import Span
from s8bqat_jax.integer.lower import IntegerFunction

ASSUMED = Span(-(2**24), 2**24)


class Row(NamedTuple):
  """One integer primitive of the program.

  Attributes:
    op: its name.
    site: the value of the float model it computes.
    shape: of its result.
    bound: the largest absolute value its accumulator can take.
    limit: the largest it may take: of int32, or of int64 where it is 64-bit.
  """

  op: str
  site: str
  shape: tuple[int, ...]
  bound: int
  limit: int


class Audit(NamedTuple):
  """What was proven, or what contradicts it.

  Attributes:
    rows: one per integer primitive.
    floats: 'equation: dtype' of every floating-point value found.
    equations: how many equations were visited, inner jaxprs included.
    unproven: 'equation: bound' of every integer equation, other than the
      integer primitives, that may overflow or that has no known bound.
    assumptions: what is taken for granted about inputs that are not codes.
  """

  rows: tuple[Row, ...]
  floats: tuple[str, ...]
  equations: int
  unproven: tuple[str, ...]
  assumptions: tuple[str, ...]

  @property
  def overflows(self) -> tuple[Row, ...]:
    return tuple(r for r in self.rows if r.bound > r.limit)

  @property
  def ok(self) -> bool:
    return not (self.floats or self.overflows or self.unproven)

  def __str__(self) -> str:
    lines = [f'{"op":14}{"bits used":>12}  {"result":18} site']
    for r in self.rows:
      used = f'{math.log2(r.bound + 1):.1f} of {math.log2(r.limit + 1):.0f}'
      flag = ' OVERFLOW' if r.bound > r.limit else ''
      lines.append(f'{r.op:14}{used:>12}  {str(r.shape):18} {r.site}{flag}')
    lines += [f'FLOAT: {f}' for f in self.floats]
    lines += [f'UNPROVEN: {u}' for u in self.unproven]
    lines += [f'assumed: {a}' for a in self.assumptions]
    verdict = 'no floating-point value' if not self.floats else 'NOT integer'
    safe = 'no accumulator can overflow'
    if self.overflows:
      safe = 'OVERFLOW'
    elif self.unproven:
      safe = 'overflow NOT excluded'
    lines.append(
      f'{len(self.rows)} integer operations, {self.equations} equations: '
      f'{verdict}; {safe}'
    )
    return '\n'.join(lines)


def audit(integer_fn: Any) -> Audit:
  """Audits an integer function.

  Args:
    integer_fn: an IntegerFunction, or any closed jaxpr.

  Returns:
    An Audit; `ok` is the verdict, `str` the printout.

  Raises:
    TypeError: `integer_fn` is neither.
  """
  specs: Sequence[Any]
  if isinstance(integer_fn, IntegerFunction):
    closed, specs = integer_fn.jaxpr, integer_fn.in_specs
  elif isinstance(integer_fn, jex_core.ClosedJaxpr):
    # Nothing is known of its inputs, so that nothing is assumed of them.
    closed, specs = integer_fn, [True] * len(integer_fn.in_avals)
  else:
    raise TypeError(
      'audit takes an IntegerFunction, as `lower` returns it, or a closed '
      f'jaxpr, got {type(integer_fn).__name__}; lower the function first'
    )
  args, assumptions = [], []
  for i, (aval, s) in enumerate(zip(closed.in_avals, specs)):
    span = _widest(aval)
    if s is None and span is not None and not span <= ASSUMED:
      span = Span(max(span.low, ASSUMED.low), ASSUMED.high)
      assumptions.append(
        f'integer input {i} {aval.str_short()} lies in {list(span)}'
      )
    args.append(_Seen(None, span))
  found = _Found()
  _walk(closed.jaxpr, map(_known, closed.consts), args, found)
  return Audit(
    tuple(found.rows),
    tuple(found.floats),
    found.equations,
    tuple(found.unproven),
    tuple(assumptions),
  )


class _Seen(NamedTuple):
  """What is known of one value: all of it, or where its elements lie.

  Attributes:
    array: the value, where it is a constant of the program; else None.
    span: where its elements lie; None where it is a float (or a constant).
  """

  array: Any
  span: Span | None


@dataclasses.dataclass
class _Found:
  """What a walk collects; a `trial` only asks what ranges come out."""

  trial: bool = False
  rows: list[Row] = dataclasses.field(default_factory=list)
  floats: list[str] = dataclasses.field(default_factory=list)
  unproven: list[str] = dataclasses.field(default_factory=list)
  equations: int = 0


def _known(x: Any) -> _Seen:
  return _Seen(np.asarray(x), None)


def _widest(aval: Any) -> Span | None:
  """All that a dtype allows; None for floats."""
  if not intervals.is_integer(aval.dtype):
    return None
  return intervals.of_dtype(aval.dtype)


def _anything(variables: Sequence[Any]) -> list[_Seen]:
  return [_Seen(None, _widest(v.aval)) for v in variables]


def _span(seen: _Seen) -> Span | None:
  if seen.array is None or not intervals.is_integer(seen.array.dtype):
    return seen.span
  return intervals.of_array(seen.array)


def _varying(seen: _Seen) -> _Seen:
  """A slice, or an element, of a value: the same range."""
  return _Seen(None, _span(seen))


def _join(values: Sequence[_Seen]) -> _Seen:
  """What is known of a value that is one of several."""
  spans = [_span(v) for v in values]
  known = [s for s in spans if s is not None]
  if len(known) < len(spans):
    return _Seen(None, None)
  return _Seen(None, functools.reduce(lambda a, b: a | b, known))


def _is_float(aval: Any) -> bool:
  return jnp.issubdtype(aval.dtype, jnp.inexact)


def _read(env: dict[Any, _Seen], atom: Any) -> _Seen:
  return _known(atom.val) if hasattr(atom, 'val') else env[atom]


def _walk(jaxpr, consts, args, found: _Found) -> dict[Any, _Seen]:
  """Visits one jaxpr; returns what is known of each of its variables."""
  env: dict[Any, _Seen] = dict(zip(jaxpr.constvars, consts))
  env.update(zip(jaxpr.invars, args))
  for v in [*jaxpr.constvars, *jaxpr.invars]:
    if _is_float(v.aval):
      found.floats.append(f'input: {v.aval}')
  for e in jaxpr.eqns:
    found.equations += 1
    name = e.primitive.name
    for v in [*e.invars, *e.outvars]:
      if _is_float(v.aval):
        found.floats.append(f'{name}: {v.aval}')
    values = [_read(env, a) for a in e.invars]
    if name in primitives.REGISTRY:
      outs = _primitive(e, values, found)
    elif name in _LOOPS:
      outs = _LOOPS[name](e, values, found)
    elif internals.is_call(e) and internals.inner_jaxprs(e):
      (inner, *_) = internals.inner_jaxprs(e)
      outs = _call(inner, values, found)
    else:
      for inner in internals.inner_jaxprs(e):
        body = getattr(inner, 'jaxpr', inner)
        _call(inner, _anything(body.invars), found)
      outs = _plain(e, values, found)
    env.update(zip(e.outvars, outs))
  return env


def _call(inner: Any, args: Sequence[_Seen], found: _Found) -> list[_Seen]:
  """Visits an inner jaxpr; returns what is known of its results."""
  body = getattr(inner, 'jaxpr', inner)
  consts = map(_known, getattr(inner, 'consts', ()))
  env = _walk(body, consts, args, found)
  return [_read(env, a) for a in body.outvars]


def _primitive(e: Any, values: list[_Seen], found: _Found) -> list[_Seen]:
  """An integer primitive: its own bound, and where its codes lie."""
  if not found.trial:
    found.rows.append(_row(e, [v.array for v in values]))
    _kernel(e, found)
  name, out = e.primitive.name, e.params.get('out')
  if name == 'q_pool' and e.params['kind'] == 'max':
    return [_varying(values[0])]
  if name == 'q_lut':  # the table's entries, a mask's code among them
    return [_varying(values[1])]
  if out is None:
    return _anything(e.outvars)
  return [_Seen(None, Span(int(out.low), int(out.high)))]


def _plain(e: Any, values: list[_Seen], found: _Found) -> list[_Seen]:
  """An equation of JAX's own: where its results lie, if they fit."""
  avals = [a.aval for a in e.invars]
  results = [v.aval for v in e.outvars]
  if not all(intervals.is_integer(a.dtype) for a in [*avals, *results]):
    return _anything(e.outvars)
  ins = [
    (a, _span(v) or intervals.of_dtype(a.dtype)) for a, v in zip(avals, values)
  ]
  outs = []
  for aval in results:
    exact = intervals.span(e.primitive.name, e.params, ins, aval)
    limits = intervals.of_dtype(aval.dtype)
    fits = exact is not None and exact <= limits
    outs.append(_Seen(None, exact if fits else limits))
    # Scalars accumulate nothing: they are counters and indices.
    if not fits and (exact is None or any(a.shape for a in [*avals, aval])):
      found.unproven.append(
        f'{e.primitive.name} {aval.str_short()} {_reach(exact, limits)}, at '
        f'{internals.source_line(e)}'
      )
  return outs


def _reach(exact: Span | None, limits: Span) -> str:
  if exact is None:
    return 'has no known bound'
  end = exact.high if exact.high > limits.high else exact.low
  return f'may reach {"-" if end < 0 else ""}2^{math.log2(abs(end)):.1f}'


def _scan(e: Any, values: list[_Seen], found: _Found) -> list[_Seen]:
  (inner,) = internals.inner_jaxprs(e)
  consts, carries = internals.scan_split(e.params)
  first = consts + carries
  xs = [_varying(v) for v in values[first:]]
  state = _carried(
    inner, values[:consts], values[consts:first], xs, e.params['length']
  )
  outs = _call(inner, [*values[:consts], *state, *xs], found)
  return [*state, *map(_varying, outs[carries:])]


def _while(e: Any, values: list[_Seen], found: _Found) -> list[_Seen]:
  p = e.params
  skip = p['cond_nconsts']
  first = skip + p['body_nconsts']
  consts = values[skip:first]
  state = _carried(p['body_jaxpr'], consts, values[first:], [], None)
  _call(p['cond_jaxpr'], [*values[:skip], *state], found)
  _call(p['body_jaxpr'], [*consts, *state], found)
  return state


def _cond(e: Any, values: list[_Seen], found: _Found) -> list[_Seen]:
  outs = [_call(b, values[1:], found) for b in e.params['branches']]
  return [_join(same) for same in zip(*outs)]


_LOOPS = {'scan': _scan, 'while': _while, 'cond': _cond}


def _carried(
  inner: Any,
  consts: Sequence[_Seen],
  init: Sequence[_Seen],
  xs: Sequence[_Seen],
  length: int | None,
) -> list[_Seen]:
  """Where the state of a loop lies at every step.

  A trial with any state at all tells what the body can return. A counter or a
  sum, state + d, is bounded by the number of steps.
  """
  body = inner.jaxpr
  first = len(consts)
  inputs = body.invars[first : first + len(init)]
  closed_over = map(_known, inner.consts)
  args = [*consts, *_anything(inputs), *xs]
  env = _walk(body, closed_over, args, _Found(trial=True))
  makers = {v: e for e in body.eqns for v in e.outvars}
  state = []
  for start, v, out in zip(init, inputs, body.outvars):
    if out is v:
      state.append(_varying(start))
      continue
    seen = _join([start, _read(env, out)])
    step = _increment(makers.get(out), v, env)
    begin = _span(start)
    if step is not None and begin is not None and length is not None:
      grown = begin | (begin + step.times(length))
      if grown <= intervals.of_dtype(v.aval.dtype):
        seen = _Seen(None, grown)
    state.append(seen)
  return state


def _increment(e: Any, v: Any, env: dict[Any, _Seen]) -> Span | None:
  """The range of d if the equation is v + d, d + v or v - d; else None."""
  if e is None or e.primitive.name not in ('add', 'sub'):
    return None
  a, b = e.invars
  if a is v and b is not v:
    step = _span(_read(env, b))
    return step if step is None or e.primitive.name == 'add' else -step
  if b is v and a is not v and e.primitive.name == 'add':
    return _span(_read(env, a))
  return None


def _kernel(e: Any, found: _Found) -> None:
  """Checks that what the primitive compiles to is integer as well."""
  op = primitives.REGISTRY[e.primitive.name]
  shapes = [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in e.invars]
  closed = jax.make_jaxpr(functools.partial(op.kernel, **e.params))(*shapes)
  inside = _Found()
  _call(closed, _anything(closed.jaxpr.invars), inside)
  found.equations += inside.equations
  found.floats += [f'{e.primitive.name} kernel, {f}' for f in inside.floats]


def _row(e: Any, values: list[Any]) -> Row:
  name = e.primitive.name
  bound, limit = bounds.of(name, e.params, [v.aval for v in e.invars], values)
  out = tuple(e.outvars[0].aval.shape)
  return Row(name, e.params['site'], out, bound, limit)
