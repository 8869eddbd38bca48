"""Rules for scan, cond and while: integers in, integers out, at fixed scales.

A carry has one spec for all steps: the range of what the body returns for it.
It is stored in 8 bits if a product reads it (an LSTM's h), else in 16 (its c),
where small updates must not vanish. `feeds_product` decides, and decides the
same for the state of a streaming step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from s8bqat_jax.integer import _jax_internals as internals
from s8bqat_jax.integer import interpreter, keys
from s8bqat_jax.integer import spec as spec_lib
from s8bqat_jax.integer.context import Context, register
from s8bqat_jax.integer.spec import Spec
from s8bqat_jax.integer.values import Const, Exact, QValue, Value

_PRODUCTS = ('dot_general', 'conv_general_dilated')
_MOVES = frozenset(
  """reshape transpose broadcast_in_dim squeeze slice split concatenate pad rev
  copy convert_element_type dynamic_slice gather select_n stack unstack
  tile""".split()
)


def feeds_product(graph: internals.Graph, v: internals.Var) -> bool:
  """Whether a product reads `v`, directly or through movements."""
  reached = {v}
  for e in graph.eqns:
    hit = [i for i, a in enumerate(e.ins) if a in reached]
    if not hit:
      continue
    if e.name in _PRODUCTS:
      return True
    if e.name in _MOVES:
      reached.update(e.outs)
    elif e.name == 'scan':
      body = internals.scan_parts(e).body
      if any(feeds_product(body, body.ins[i]) for i in hit):
        return True
  return False


def to_array(ctx: Context, v: Value, spec: Spec | None) -> Any:
  """What crosses the border of a loop: codes (or, in the twin, reals)."""
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
    if bits == 8 and v.name:
      # A stack of weights, a slice for every step.
      scale = ctx.weight(v).scale
      if np.ndim(scale):
        raise ValueError(
          f'parameter {v.name!r} holds the weights of every step of a scan '
          f'under scales of shape {np.shape(scale)}; give it one scale'
        )
      return Spec(float(scale))
    return spec_lib.from_range(v.value.min(), v.value.max(), bits, v.name)
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


@register('scan')
def _scan(ctx: Context, e: Any, *args: Value) -> list[Value]:
  parts = internals.scan_parts(e)
  body, c, n = parts.body, parts.num_consts, parts.num_carry
  names = keys.scan_body(parts, [_key_of(ctx, a) for a in e.ins])
  _, out_names = keys.assign(body, names)
  consts = _outer(ctx, [body], args[:c])

  def bits(i: int) -> int:
    return 8 if feeds_product(body, body.ins[i]) else 16

  is_float = [v.is_float for v in body.ins]
  carry_specs = [
    ctx.range_spec(out_names[i].name, bits(c + i), args[c + i])
    if is_float[c + i]
    else None
    for i in range(n)
  ]
  xs_specs = [
    _spec_in(ctx, a, bits(c + n + i)) for i, a in enumerate(args[c + n :])
  ]
  init = [to_array(ctx, a, s) for a, s in zip(args[c : c + n], carry_specs)]
  xs = [to_array(ctx, a, s) for a, s in zip(args[c + n :], xs_specs)]
  y_specs: list[Spec | None] = []
  parameters = [False] * n + [isinstance(a, Const) for a in args[c + n :]]

  def step(carry, x):
    values: list[Value] = list(consts)
    specs = [*carry_specs, *xs_specs]
    for array, name, spec, parameter in zip(
      [*carry, *x], names[c:], specs, parameters
    ):
      values.append(from_array(ctx, array, name.name, spec, parameter))
    outs = interpreter.run(ctx, body, names, values)
    y_specs[:] = [_spec_in(ctx, y, 8) for y in outs[n:]]
    new = [to_array(ctx, o, s) for o, s in zip(outs[:n], carry_specs)]
    return new, [to_array(ctx, y, s) for y, s in zip(outs[n:], y_specs)]

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
  specs = [
    ctx.range_spec(ctx.named[v].name, 8) if v.is_float else None for v in e.outs
  ]

  def branch(graph):
    def run():
      outs = interpreter.run(ctx, graph, names, shared)
      return [to_array(ctx, o, s) for o, s in zip(outs, specs)]

    return run

  outs = lax.switch(index.array, [branch(b) for b in branches])
  return [
    from_array(ctx, x, ctx.named[v].name, s)
    for x, v, s in zip(outs, e.outs, specs)
  ]


@register('while')
def _while(ctx: Context, e: Any, *args: Value) -> list[Value]:
  cond, skip, body, consts = internals.while_parts(e)
  first = skip + consts
  arg_names = [_key_of(ctx, a) for a in e.ins]
  carried = [keys.Key(keys.CARRY)] * (len(args) - first)
  names = [*arg_names[skip:first], *carried]
  _, out_names = keys.assign(body, names)
  cond_consts = _outer(ctx, [cond], args[:skip])
  body_consts = _outer(ctx, [body], args[skip:first])
  specs = [
    ctx.range_spec(name.name, 8 if feeds_product(body, v) else 16, a)
    if v.is_float
    else None
    for v, name, a in zip(body.ins[consts:], out_names, args[first:])
  ]

  def values(state):
    return [from_array(ctx, x, keys.CARRY, s) for x, s in zip(state, specs)]

  def test(state):
    (answer,) = interpreter.run(
      ctx,
      cond,
      [*arg_names[:skip], *carried],
      [*cond_consts, *values(state)],
    )
    if isinstance(answer, QValue):
      raise ctx.unsupported(e, 'it loops on a real value')
    return answer.array

  def step(state):
    outs = interpreter.run(ctx, body, names, [*body_consts, *values(state)])
    return [to_array(ctx, o, s) for o, s in zip(outs, specs)]

  init = [to_array(ctx, a, s) for a, s in zip(args[first:], specs)]
  state = lax.while_loop(test, step, init)
  return [
    from_array(ctx, x, ctx.named[v].name, s)
    for x, v, s in zip(state, e.outs, specs)
  ]
