"""Rules for scan, cond and while: integers in, integers out, at fixed scales.

A carry has one spec for all steps: the range of what the body returns for it,
or, if that is another carry moved along (a delay line), what that one has.
It is stored in 8 bits if a product reads it (an LSTM's h), else in 16 (its c),
where small updates must not vanish. `feeds_product` decides, and decides the
same for the state of a streaming step. What comes back masked has a spec with
masks: `_carried` walks the body until it knows.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from s8bqat_jax.integer import _jax_internals as internals
from s8bqat_jax.integer import interpreter, keys
from s8bqat_jax.integer import spec as spec_lib
from s8bqat_jax.integer.context import Context, register
from s8bqat_jax.integer.spec import Spec
from s8bqat_jax.integer.values import Const, Exact, QValue, Value

# What a product still reads the same values through: also several made one.
_MOVES = keys.MOVEMENT | {'concatenate', 'stack', 'select_n', 'pad'}


def feeds_product(graph: internals.Graph, v: internals.Var) -> bool:
  """Whether a product reads `v`, directly or through movements."""
  reached = {v}
  for e in graph.eqns:
    hit = [i for i, a in enumerate(e.ins) if a in reached]
    if not hit:
      continue
    if e.name in keys.PRODUCTS:
      return True
    if e.name in _MOVES:
      reached.update(e.outs)
    elif e.name == 'scan':
      body = internals.scan_parts(e).body
      if any(feeds_product(body, body.ins[i]) for i in hit):
        return True
  return False


def passed_on(
  body: internals.Graph, carries: Sequence[internals.Var]
) -> list[list[int]]:
  """Returns which carries each one becomes that a loop passes it on to.

  [i] and all that follow: what the body returns for carry i may be carry j,
  moved but not computed with, and what it returns for that carry k. The last
  is computed, unless it was met before.

  Args:
    body: of the loop.
    carries: its inputs that are carried.
  """
  made = {v: e for e in body.eqns for v in e.outs}

  def source(a: internals.Atom) -> int | None:
    while a in made and made[a].name in keys.MOVEMENT:
      a = made[a].ins[0]
      if not jnp.issubdtype(a.dtype, np.floating):
        return None  # Made of truth values or counts, not passed on.
    return carries.index(a) if a in carries else None

  chains = []
  for i in range(len(carries)):
    chain: list[int] = []
    following: int | None = i
    while following is not None and following not in chain:
      chain.append(following)
      following = source(body.outs[following])
    chains.append(chain if following is None else [*chain, following])
  return chains


def _carry_spec(
  ctx: Context,
  chain: Sequence[int],
  names: Sequence[keys.Key],
  bits: int,
  firsts: Sequence[Value],
) -> Spec:
  """The spec of a carry.

  Args:
    ctx: of the lowering.
    chain: what it becomes: see `passed_on`.
    names: of what the body returns for each carry.
    bits: 8 or 16.
    firsts: what each carry starts from.
  """
  starts = [firsts[i] for i in dict.fromkeys(chain)]
  if len(chain) > len(starts):
    return ctx.start_spec(bits, starts)  # They only take turns.
  return ctx.range_spec(names[chain[-1]].name, bits, starts)


def to_array(ctx: Context, v: Value, spec: Spec | None) -> Any:
  """What crosses the border of a loop: codes (or, in the twin, reals)."""
  if spec is not None and not spec.masked and ctx.is_masked(v):
    raise ctx.astray(v.key if isinstance(v, QValue) else 'a constant')
  if isinstance(v, QValue):
    operand = ctx.operand(v, spec=spec)
    return operand.live if ctx.twin else operand.codes
  if spec is None:
    return jnp.asarray(v.array)
  assert isinstance(v, Const)
  if ctx.twin and v.name:
    return jnp.asarray(v.array)  # A parameter is taken as it is given.
  if ctx.twin:
    return spec_lib.fake_quantize(jnp.asarray(v.array), spec)
  return jnp.asarray(spec.quantize_np(v.value))


def from_array(
  ctx: Context, x: Any, key: str, spec: Spec | None, parameter: bool = False
) -> Exact | QValue:
  if spec is None:
    return Exact(x)
  codes, live = (None, x) if ctx.twin else (x, None)
  return ctx.fixed(x.shape, key, codes, spec, live, parameter)


def _spec_in(ctx: Context, v: Value, bits: int) -> Spec | None:
  """The spec in which a value enters a loop."""
  if isinstance(v, QValue):
    return ctx.natural(v, bits)
  if isinstance(v, Const) and jnp.issubdtype(v.value.dtype, jnp.floating):
    if bits == 8 and v.name and not ctx.is_masked(v):
      # A stack of weights, a slice for every step.
      scale = ctx.weight(v).scale
      if np.ndim(scale):
        raise ValueError(
          f'parameter {v.name!r} holds the weights of every step of a scan '
          f'under scales of shape {np.shape(scale)}; give it one scale'
        )
      return Spec(float(scale))
    return ctx.constant_spec(v, bits)
  return None


def _outer(
  ctx: Context, graphs: Sequence[internals.Graph], args: Sequence[Value]
) -> list[Value]:
  """What loops and branches read, materialized outside of them."""
  values: list[Value] = []
  for i, a in enumerate(args):
    if isinstance(a, QValue):
      read = any(feeds_product(g, g.ins[i]) for g in graphs)
      o = ctx.operand(a, 8 if read else 16, masks=True)
      a = ctx.fixed(a.shape, a.key, o.codes, o.spec, o.live)
    values.append(a)
  return values


def _fresh(values: Sequence[Value]) -> list[Value]:
  """The same values for another body, which must not see what one computed."""
  return [
    dataclasses.replace(v, codes={}, base=None) if isinstance(v, QValue) else v
    for v in values
  ]


def _aside(
  ctx: Context, walk: Callable[[], list[Value]]
) -> tuple[set[int], list[int]]:
  """Runs a body aside: which results are masked, and the bits of all."""
  masked: set[int] = set()
  bits: list[int] = []

  def run():
    for i, v in enumerate(walk()):
      bits.append(ctx.prefers(v) if isinstance(v, QValue) else 8)
      if ctx.is_masked(v):
        masked.add(i)

  jax.eval_shape(run)
  return masked, bits


def _specs(
  spec_of: Callable[[int, int], Spec | None],
  bits: Sequence[int],
  masked: set[int],
) -> list[Spec | None]:
  """`spec_of(index, bits)` for all; the masked ones have a code for that."""
  specs = [spec_of(i, b) for i, b in enumerate(bits)]
  return [
    spec_lib.masked_range(*s.interval, s.bits) if s and i in masked else s
    for i, s in enumerate(specs)
  ]


def _carried(
  ctx: Context,
  spec_of: Callable[[int, int], Spec | None],
  bits: Sequence[int],
  walk: Callable[[list[Spec | None]], list[Value]],
  firsts: Sequence[Value],
) -> list[Spec | None]:
  """The specs of what a loop carries, given how to walk its body at some."""
  masked = {i for i, v in enumerate(firsts) if ctx.is_masked(v)}
  while True:
    specs = _specs(spec_of, bits, masked)
    found, _ = _aside(ctx, functools.partial(walk, specs))
    if found <= masked:
      return specs
    masked |= found


def _blanks(ctx: Context, variables, specs: Sequence[Spec | None]) -> list[Any]:
  """Arrays such as cross the border of a loop, to walk its body aside."""
  return [
    jnp.zeros(v.shape, v.dtype if s is None or ctx.twin else s.dtype)
    for v, s in zip(variables, specs)
  ]


@register('scan')
def _scan(ctx: Context, e: Any, *args: Value) -> list[Value]:
  parts = internals.scan_parts(e)
  body, c, n = parts.body, parts.num_consts, parts.num_carry
  names = keys.scan_body(parts, [_key_of(ctx, a) for a in e.ins])
  _, out_names = keys.assign(body, names)
  consts = _outer(ctx, [body], args[:c])

  def bits(i: int) -> int:
    return 8 if feeds_product(body, body.ins[i]) else 16

  carries = body.ins[c : c + n]
  chains = passed_on(body, carries)

  def carry_spec(i, bits):
    if not carries[i].is_float:
      return None
    return _carry_spec(ctx, chains[i], out_names, bits, args[c : c + n])

  xs_specs = [
    _spec_in(ctx, a, bits(c + n + i)) for i, a in enumerate(args[c + n :])
  ]
  xs = [to_array(ctx, a, s) for a, s in zip(args[c + n :], xs_specs)]
  y_specs: list[Spec | None] = []
  parameters = [False] * n + [isinstance(a, Const) for a in args[c + n :]]

  def outs_of(specs, arrays):
    values = _fresh(consts)
    for array, name, spec, parameter in zip(
      arrays, names[c:], specs, parameters
    ):
      values.append(from_array(ctx, array, name.name, spec, parameter))
    return interpreter.run(ctx, body, names, values)

  def walk(carry_specs):
    specs = [*carry_specs, *xs_specs]
    return outs_of(specs, _blanks(ctx, body.ins[c:], specs))[:n]

  carry_bits = [bits(c + i) for i in range(n)]
  carry_specs = _carried(ctx, carry_spec, carry_bits, walk, args[c : c + n])

  def step(carry, x):
    outs = outs_of([*carry_specs, *xs_specs], [*carry, *x])
    y_specs[:] = [_spec_in(ctx, y, 8) for y in outs[n:]]
    new = [to_array(ctx, o, s) for o, s in zip(outs[:n], carry_specs)]
    return new, [to_array(ctx, y, s) for y, s in zip(outs[n:], y_specs)]

  init = [to_array(ctx, a, s) for a, s in zip(args[c : c + n], carry_specs)]
  state, ys = lax.scan(
    step, init, xs, parts.length, parts.reverse, parts.unroll
  )
  outs = zip([*state, *ys], e.outs, [*carry_specs, *y_specs])
  return [from_array(ctx, x, ctx.named[v].name, s) for x, v, s in outs]


def _key_of(ctx: Context, a: internals.Atom) -> keys.Key:
  return keys.Key('', True) if isinstance(a, internals.Lit) else ctx.named[a]


@register('cond')
def _cond(ctx: Context, e: Any, index: Value, *args: Value) -> list[Value]:
  branches = internals.cond_parts(e)
  names = [_key_of(ctx, a) for a in e.ins[1:]]
  if isinstance(index, QValue):
    raise ctx.unsupported(e, 'the branch is chosen by a real value')
  shared = _outer(ctx, branches, args)

  def outs_of(graph):
    return interpreter.run(ctx, graph, names, _fresh(shared))

  def spec_of(i, bits):
    v = e.outs[i]
    return ctx.range_spec(ctx.named[v].name, bits) if v.is_float else None

  def branch(graph):
    return lambda: [to_array(ctx, o, s) for o, s in zip(outs_of(graph), specs)]

  masked, bits = zip(
    *(_aside(ctx, functools.partial(outs_of, g)) for g in branches)
  )
  # What one branch adds up must not vanish because another computes nothing.
  widest = [max(of_one) for of_one in zip(*bits)]
  specs = _specs(spec_of, widest, set().union(*masked))
  outs = lax.switch(index.array, [branch(graph) for graph in branches])
  return [
    from_array(ctx, x, ctx.named[v].name, s)
    for x, v, s in zip(outs, e.outs, specs)
  ]


@register('while')
def _while(ctx: Context, e: Any, *args: Value) -> list[Value]:
  cond, skip, body, consts = internals.while_parts(e)
  first = skip + consts
  cond_names, names = keys.while_inputs(e, [_key_of(ctx, a) for a in e.ins])
  _, out_names = keys.assign(body, names)
  cond_consts = _outer(ctx, [cond], args[:skip])
  body_consts = _outer(ctx, [body], args[skip:first])

  carries = body.ins[consts:]
  chains = passed_on(body, carries)

  def spec_of(i, bits):
    if not carries[i].is_float:
      return None
    return _carry_spec(ctx, chains[i], out_names, bits, args[first:])

  def outs_of(graph, graph_names, outer, specs, state):
    values = [from_array(ctx, x, keys.CARRY, s) for x, s in zip(state, specs)]
    return interpreter.run(ctx, graph, graph_names, [*_fresh(outer), *values])

  def walk(specs):
    state = _blanks(ctx, body.ins[consts:], specs)
    return outs_of(body, names, body_consts, specs, state)

  bits = [8 if feeds_product(body, v) else 16 for v in body.ins[consts:]]
  specs = _carried(ctx, spec_of, bits, walk, args[first:])

  def test(state):
    (answer,) = outs_of(cond, cond_names, cond_consts, specs, state)
    if isinstance(answer, QValue):
      raise ctx.unsupported(e, 'it loops on a real value')
    return answer.array

  def step(state):
    outs = outs_of(body, names, body_consts, specs, state)
    return [to_array(ctx, o, s) for o, s in zip(outs, specs)]

  init = [to_array(ctx, a, s) for a, s in zip(args[first:], specs)]
  state = lax.while_loop(test, step, init)
  return [
    from_array(ctx, x, ctx.named[v].name, s)
    for x, v, s in zip(state, e.outs, specs)
  ]
