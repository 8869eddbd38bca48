"""Runs a float function as its graph and measures every value on the way.

Through scan, cond, while, jit and custom-derivative bodies; statistics of a
value are kept under its name (keys.py), those of equal names merged.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from s8bqat_jax.integer import _jax_internals as internals
from s8bqat_jax.integer import keys


class Meter(NamedTuple):
  """How one statistic is measured and merged."""

  measure: Callable[[str, jax.Array], Any]
  merge: Callable[[Any, Any], Any]
  empty: Callable[[], Any]


def run(fn, meter: Meter, carry: bool, params, *inputs) -> dict[str, Any]:
  """Runs a function once, to be traced.

  Args:
    fn: float function (params, *inputs) -> outputs.
    meter: what is measured.
    carry: as for `calibrate`.
    params: of the function, in floats.
    *inputs: of the function.

  Returns:
    {name: statistic}.
  """
  graph, _ = internals.trace(fn, params, *inputs)
  leaves, flat = (
    [internals.as_real(jnp.asarray(x)) for x in jax.tree.leaves(tree)]
    for tree in (params, inputs)
  )
  names = keys.of_arguments(params, inputs, carry)
  stats: dict[str, Any] = {}
  for name, value in zip(names[len(leaves) :], flat):
    if jnp.issubdtype(value.dtype, jnp.floating):
      stats[name.name] = meter.measure(name.name, value)
  _, inner = _evaluate(graph, names, [*leaves, *flat], meter)
  return _merged(stats, inner, meter)


def _add(stats: dict[str, Any], more: dict[str, Any], meter: Meter) -> None:
  """Merges statistics into those that are there."""
  for name, value in more.items():
    known = stats.get(name)
    stats[name] = value if known is None else meter.merge(known, value)


def _merged(a: dict[str, Any], b: dict[str, Any], meter: Meter) -> dict:
  """Returns the statistics of both."""
  both = dict(a)
  _add(both, b, meter)
  return both


def _evaluate(
  graph: internals.Graph, names: Sequence[keys.Key], values, meter: Meter
) -> tuple[list[Any], dict[str, Any]]:
  """Runs a graph in float; returns its outputs and the statistics."""
  named, _ = keys.assign(graph, names)
  env = dict(zip(graph.ins, values))
  stats: dict[str, Any] = {}

  def read(a):
    return a.value if isinstance(a, internals.Lit) else env[a]

  def name_of(a):
    return keys.Key('', True) if isinstance(a, internals.Lit) else named[a]

  for e in graph.eqns:
    args = [read(a) for a in e.ins]
    arg_names = [name_of(a) for a in e.ins]
    inner = _CONTROL.get(e.name)
    if inner is None:
      outs, seen = e.bind(*args), {}
    else:
      outs, seen = inner(e, arg_names, args, meter)
    env.update(zip(e.outs, outs))
    _add(stats, seen, meter)
    for var, value in zip(e.outs, outs):
      key = named[var]
      if var.is_float and not key.const:
        _add(stats, {key.name: meter.measure(key.name, value)}, meter)
  return [read(a) for a in graph.outs], stats


def _scan(e, arg_names, args, meter):
  parts = internals.scan_parts(e)
  c, n = parts.num_consts, parts.num_carry
  consts, init, xs = args[:c], args[c : c + n], args[c + n :]
  body_names = keys.scan_body(parts, arg_names)

  def body(carry, x):
    state, stats = carry
    outs, seen = _evaluate(parts.body, body_names, [*consts, *state, *x], meter)
    return (outs[:n], _merged(stats, seen, meter)), outs[n:]

  one = lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype)
  seen = jax.eval_shape(
    lambda s, x: _evaluate(parts.body, body_names, [*consts, *s, *x], meter)[1],
    init,
    [one(jnp.asarray(x)) for x in xs],
  )
  empty = {k: meter.empty() for k in seen}
  (state, stats), ys = lax.scan(
    body,
    ([jnp.asarray(i) for i in init], empty),
    xs,
    length=parts.length,
    reverse=parts.reverse,
  )
  return [*state, *ys], stats


def _cond(e, arg_names, args, meter):
  branches = internals.cond_parts(e)
  runs = [
    lambda *ops, b=b: _evaluate(b, arg_names[1:], ops, meter) for b in branches
  ]
  union = {k for r in runs for k in jax.eval_shape(r, *args[1:])[1]}

  def complete(run):
    def branch(*ops):
      outs, stats = run(*ops)
      return outs, {k: stats.get(k, meter.empty()) for k in sorted(union)}

    return branch

  return lax.switch(args[0], [complete(r) for r in runs], *args[1:])


def _while(e, arg_names, args, meter):
  cond, skip, body, consts = internals.while_parts(e)
  cond_consts, body_consts = args[:skip], args[skip : skip + consts]
  init = [jnp.asarray(a) for a in args[skip + consts :]]
  cond_names, body_names = keys.while_inputs(e, arg_names)
  run = lambda s: _evaluate(body, body_names, [*body_consts, *s], meter)
  ask = lambda s: _evaluate(cond, cond_names, [*cond_consts, *s], meter)

  def asked(state, stats):
    # Beside the body, since what the loop's own test computes is lost.
    (goes_on,), seen = ask(state)
    return state, goes_on, _merged(stats, seen, meter)

  def step(carry):
    state, _, stats = carry
    outs, seen = run(state)
    return asked(outs, _merged(stats, seen, meter))

  found = jax.eval_shape(lambda s: _merged(ask(s)[1], run(s)[1], meter), init)
  empty = {k: meter.empty() for k in found}
  state, _, stats = lax.while_loop(lambda x: x[1], step, asked(init, empty))
  return state, stats


_CONTROL = {'scan': _scan, 'cond': _cond, 'while': _while}
