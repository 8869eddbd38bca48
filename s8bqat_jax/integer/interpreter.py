"""The interpreter behind `lower` and `twin`.

It walks a float graph with the values of values.py: folds what is constant,
finds patterns, and applies one rule to each equation that is left.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from s8bqat_jax.integer import _jax_internals as internals
from s8bqat_jax.integer import keys, patterns
from s8bqat_jax.integer.context import RULES, Context, UnsupportedPrimitive
from s8bqat_jax.integer.values import (
  Const,
  Exact,
  QValue,
  Value,
  Weight,
  scalar_of,
  squeeze_const,
)

NO_RANDOM = (
  'a random key: integers draw no random numbers; make what is drawn an input, '
  'or leave it out (deterministic=True)'
)


def run(
  ctx: Context,
  graph: internals.Graph,
  names: Sequence[keys.Key],
  values: Sequence[Value],
) -> list[Value]:
  """Walks a graph.

  Args:
    ctx: of the lowering; its `named` is this graph's while it runs.
    graph: straight-line float equations.
    names: keys of the inputs.
    values: the inputs.

  Returns:
    The outputs.
  """
  named, _ = keys.assign(graph, names)
  env: dict[internals.Var, Value] = dict(zip(graph.ins, values))

  def read(a: internals.Atom) -> Value:
    if isinstance(a, internals.Var):
      return env[a]
    return Const(np.asarray(a.value))

  rest = []
  for e in graph.eqns:
    if any(internals.is_key(a) for a in (*e.ins, *e.outs)):
      raise UnsupportedPrimitive(f'{NO_RANDOM}, at {e.where()}')
    known = [read(a) for a in e.ins if isinstance(a, internals.Lit) or a in env]
    consts = [a for a in known if isinstance(a, Const)]
    if len(consts) == len(e.ins) and e.name not in _CONTROL:
      env.update(zip(e.outs, _fold(e, consts)))
    else:
      rest.append(e)
  arrays = {v: c.value for v, c in env.items() if isinstance(c, Const)}
  graph = patterns.match(graph._replace(eqns=tuple(rest)), arrays)
  outer, ctx.named = ctx.named, named
  try:
    for e in graph.eqns:
      args = [read(a) for a in e.ins]
      outs = _apply(ctx, e, args)
      env.update(zip(e.outs, outs))
  finally:
    ctx.named = outer
  return [read(a) for a in graph.outs]


def _apply(ctx: Context, e: internals.Eqn, args: list[Value]) -> list[Value]:
  quantized = any(isinstance(a, QValue) for a in args)
  floats = any(v.is_float for v in e.outs)
  if not (quantized or floats or e.name in _CONTROL):
    arrays = [a.array for a in args if not isinstance(a, QValue)]
    return [Exact(o) for o in e.bind(*arrays)]
  rule = RULES.get(e.name)
  if rule is None:
    raise ctx.unsupported(e)
  outs = rule(ctx, e, *args)
  return outs if isinstance(outs, list) else [outs]


_CONTROL = ('scan', 'while', 'cond')

# Movements act on a quantized constant's integers, so it stays quantized: all
# but those that act on reals.
_WEIGHT_MOVES = keys.MOVEMENT - {'reduce_precision', 'optimization_barrier'}


def _fold(e: internals.Eqn, args: list[Const]) -> list[Const]:
  """Evaluates an equation on constants."""
  name = next((a.name for a in args if a.name), '')
  lives: list[Any] = [None] * len(e.outs)
  if any(a.live is not None for a in args):
    lives = e.bind(*(a.array for a in args))
  values = _evaluate(e, [a.value for a in args])
  weights: list[Weight | None] = [None] * len(e.outs)
  w = args[0].weight if args else None
  if w is not None and e.name in _WEIGHT_MOVES:
    cast = e.name == 'convert_element_type'
    where = [a.value for a in args[1:]]  # of gathers and slices
    moved = [w.values] if cast else _evaluate(e, [w.values, *where])
    scales = [w.scale] * len(e.outs)
    if np.ndim(w.scale) and not cast:
      full = np.broadcast_to(w.scale, w.values.shape)
      scales = [_uniform(s) for s in _evaluate(e, [full, *where])]
    weights = [Weight(m, s) for m, s in zip(moved, scales)]
  elif e.name in ('mul', 'div') and len(args) == 2:
    other = args[1]
    if w is None and e.name == 'mul':
      w, other = args[1].weight, args[0]
    factor = scalar_of(other)
    if w is not None and factor is not None and factor > 0:
      power = 1.0 if e.name == 'mul' else -1.0
      weights = [Weight(w.values, w.scale * float(factor) ** power)]
  return [Const(v, w, l, name) for v, w, l in zip(values, weights, lives)]


def _uniform(scale: np.ndarray) -> np.ndarray:
  """Cuts axes along which nothing changes to length 1; all of them to ()."""
  for axis in range(scale.ndim):
    first = np.take(scale, [0], axis)
    if np.all(scale == first):
      scale = first
  return scale.reshape(()) if scale.size == 1 else scale


def _evaluate(e: internals.Eqn, args: list[np.ndarray]) -> list[np.ndarray]:
  if e.name == 'broadcast_in_dim':
    shape = e.params['shape']
    ones = [1] * len(shape)
    for axis, size in zip(e.params['broadcast_dimensions'], args[0].shape):
      ones[axis] = size
    return [np.broadcast_to(args[0].reshape(ones), shape)]
  shape = e.outs[0].shape
  elementwise_like = len(e.outs) == 1 and all(
    a.shape in (shape, ()) for a in args
  )
  small = [squeeze_const(a) for a in args]
  shrinks = [a.shape != s.shape for a, s in zip(args, small)]
  with jax.ensure_compile_time_eval():
    if elementwise_like and any(shrinks) and e.name in ELEMENTWISE:
      common = np.broadcast_shapes(*(s.shape for s in small))
      small = [np.broadcast_to(s, common if s.ndim else ()) for s in small]
      value = np.asarray(e.bind(*map(jnp.asarray, small))[0])
      return [np.broadcast_to(value, shape)]
    return [np.asarray(o) for o in e.bind(*map(jnp.asarray, args))]


# Primitives that act on each element alone.
ELEMENTWISE = frozenset(
  """abs acos acosh add add_any asin asinh atan atan2 atanh cbrt ceil clamp
  convert_element_type cos cosh div eq erf erf_inv erfc exp exp2 expm1 floor ge
  gt integer_pow is_finite le log log1p logistic lt max min mul ne neg not and
  or pow reduce_precision rem round rsqrt select_n sign sin sinh sqrt square
  sub tan tanh""".split()
)
