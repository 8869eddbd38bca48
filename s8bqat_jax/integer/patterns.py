"""Finds softmax, log-softmax and normalizations in a float graph.

A jaxpr has no name for them: they are a dozen inlined equations. A candidate is
the span between a value x and the one value y that everything computed
from x inside the span flows into. Which formula a candidate computes is
decided by numbers, not by its shape: the span is run on random x and compared
with the formula's own definition. So a model may write its LayerNorm as it
likes.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from s8bqat_jax.integer import _jax_internals as internals

_MAX_SPAN = 28
_ENDS = ('div', 'sub', 'mul', 'add')
_INSIDE = frozenset(
  """reduce_max reduce_sum exp log sub div mul add max broadcast_in_dim reshape
  stop_gradient convert_element_type square integer_pow rsqrt sqrt neg log1p
  select_n is_finite ne eq abs pow squeeze transpose copy""".split()
)
_TOLERANCE = 2e-3


class Pattern:
  """Stands in for a primitive: binds the span it was found in."""

  multiple_results = False

  def __init__(self, name: str, graph: internals.Graph):
    self.name = name
    self._graph = graph

  def bind(self, *args: Any, **params: Any) -> Any:
    del params  # They describe what the span computes.
    return evaluate(self._graph, args)[0]


class _Span(NamedTuple):
  x: internals.Var
  eqns: tuple[internals.Eqn, ...]
  y: internals.Var


def evaluate(graph: internals.Graph, args: Any) -> list[Any]:
  """Runs a graph without control flow in float."""
  env = dict(zip(graph.ins, args))
  read = lambda a: a.value if isinstance(a, internals.Lit) else env[a]
  for e in graph.eqns:
    env.update(zip(e.outs, e.bind(*(read(a) for a in e.ins))))
  return [read(a) for a in graph.outs]


def match(
  graph: internals.Graph, consts: Mapping[internals.Var, np.ndarray]
) -> internals.Graph:
  """Replaces the spans it recognizes by one equation each.

  Args:
    graph: straight-line equations, those on constants already folded.
    consts: the constants' values.

  Returns:
    The graph with equations named 'softmax', 'log_softmax', 'layernorm' or
    'rmsnorm', whose parameters say the axis, gamma, beta and epsilon.
  """
  if not any(e.name in ('exp', 'rsqrt', 'sqrt') for e in graph.eqns):
    return graph
  index = {v: i for i, e in enumerate(graph.eqns) for v in e.outs}
  replaced: dict[int, internals.Eqn] = {}
  covered: set[int] = set()
  # From the end, so that a normalization takes its gamma and beta along.
  for i in reversed(range(len(graph.eqns))):
    e = graph.eqns[i]
    if e.name not in _ENDS or i in covered or not e.outs[0].is_float:
      continue
    # Softmax of x is also softmax of x - max x: take the longest span.
    best = None
    for span in _spans(graph, index, consts, e.outs[0]):
      found = _recognize(span, consts)
      if found is None and best is not None:
        break
      best = (found, span) if found is not None else None
    if best is not None:
      replaced[i] = best[0]
      covered.update(index[s.outs[0]] for s in best[1].eqns)
  eqns = tuple(replaced.get(i, e) for i, e in enumerate(graph.eqns))
  return internals.drop_dead(graph._replace(eqns=eqns))


def _spans(graph, index, consts, y) -> Iterator[_Span]:
  """Yields the spans that end in y, shortest first."""
  frontier = [(-index[y], id(y), y)]
  inside: list[int] = []
  names: set[str] = set()
  while frontier and len(inside) < _MAX_SPAN:
    _, _, v = heapq.heappop(frontier)
    frontier = [f for f in frontier if f[2] is not v]
    heapq.heapify(frontier)
    if v not in index:
      return
    e = graph.eqns[index[v]]
    if e.name not in _INSIDE:
      return
    inside.append(index[v])
    names.add(e.name)
    for a in e.ins:
      if isinstance(a, internals.Var) and a not in consts:
        heapq.heappush(frontier, (-index.get(a, -1), id(a), a))
    left = {f[2] for f in frontier}
    if len(left) == 1 and 'reduce_sum' in names:
      if names & {'exp', 'rsqrt', 'sqrt'}:
        (x,) = left
        if x.shape == y.shape and x.is_float:
          yield _Span(x, tuple(graph.eqns[i] for i in sorted(set(inside))), y)


def _recognize(span: _Span, consts) -> internals.Eqn | None:
  sums = [e for e in span.eqns if e.name == 'reduce_sum']
  axes = {tuple(e.params['axes']) for e in sums}
  if len(axes) != 1 or len(next(iter(axes))) != 1:
    return None
  (axis,) = next(iter(axes))
  produced = {v for e in span.eqns for v in e.outs}
  used = []
  for e in span.eqns:
    for a in e.ins:
      if isinstance(a, internals.Var) and a not in produced and a not in used:
        used.append(a)
  used.remove(span.x)
  sub = internals.Graph((span.x, *used), span.eqns, (span.y,))
  values = [consts[v] for v in used]
  with jax.ensure_compile_time_eval():
    run = lambda x: np.asarray(
      evaluate(sub, [jnp.asarray(x, span.x.dtype), *map(jnp.asarray, values)])[
        0
      ],
      np.float64,
    )
    if any(e.name == 'exp' for e in span.eqns):
      found = _exponential(run, span.x.shape, axis, span.x.dtype)
    else:
      found = _normalization(run, span, consts, axis)
  if found is None:
    return None
  name, params = found
  return internals.Eqn(
    Pattern(name, sub),
    params,
    (span.x, *used),
    (span.y,),
    span.eqns[-1].source,
  )


def _exponential(run, shape, axis, dtype):
  """Compares logarithms, on scores near each other: every entry counts."""
  names = {'softmax', 'log_softmax'}
  tolerance = max(1e-4, 4 * float(jnp.finfo(dtype).eps))
  r = np.random.default_rng(0)
  # What is low shows a constant beside the sum; what is high, a bound.
  for offset in (0, -6, 6):
    x = r.normal(size=shape) + offset
    y = run(x)
    shifted = x - x.max(axis=axis, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(axis=axis, keepdims=True))
    with np.errstate(all='ignore'):
      logs = {'softmax': np.log(y), 'log_softmax': y}
    names = {
      name
      for name in names
      if np.allclose(logs[name], log_p, rtol=tolerance, atol=tolerance)
    }
    if not names:
      return None
  name, *_ = names  # Of nothing, both are right.
  return name, {'axis': axis}


def _normalization(run, span, consts, axis):
  """Fits gamma and beta of each channel, then checks the fit."""
  epsilon = _epsilon(span, consts)
  shape = span.x.shape
  if shape[axis] < 2:
    return None
  r = np.random.default_rng(0)
  # Offsets tell LayerNorm from RMSNorm; the small draw tests epsilon.
  draws = [r.normal(size=shape) + 0.5, r.normal(size=shape) * 2 - 1]
  draws += [(r.normal(size=shape) + 0.5) * max(epsilon, 1e-12) ** 0.5 * 3]
  draws += [r.normal(size=shape) for _ in range(2)]
  # An outlier in each row, either way, tells a clip of what comes out.
  far = np.zeros(shape)
  np.moveaxis(far, axis, -1)[..., 0] = 30
  draws += [draws[0] + far, draws[0] - far]
  ys = np.stack([np.moveaxis(run(x), axis, -1) for x in draws])
  ys = ys.reshape(-1, shape[axis])
  for name in ('layernorm', 'rmsnorm'):
    xs = np.stack([np.moveaxis(x, axis, -1) for x in draws])
    xs = xs.reshape(-1, shape[axis])
    if name == 'layernorm':
      xs = xs - xs.mean(axis=-1, keepdims=True)
    n = xs / np.sqrt((xs**2).mean(axis=-1, keepdims=True) + epsilon)
    spread = n - n.mean(axis=0)
    gamma = (spread * ys).sum(axis=0) / np.maximum(
      (spread**2).sum(axis=0), 1e-9
    )
    beta = ys.mean(axis=0) - gamma * n.mean(axis=0)
    peak = np.abs(ys).max(initial=1e-9)
    if np.abs(n * gamma + beta - ys).max(initial=0) < _TOLERANCE * peak:
      params = {
        'axis': axis,
        'gamma': gamma.astype(np.float32),
        'beta': beta.astype(np.float32),
        'epsilon': float(epsilon),
      }
      return name, params
  return None


def _epsilon(span: _Span, consts) -> float:
  """The scalar added right before the root; 0 if there is none."""
  made_by = {v: e for e in span.eqns for v in e.outs}
  find = lambda a: made_by.get(a) if isinstance(a, internals.Var) else None
  for e in span.eqns:
    if e.name not in ('rsqrt', 'sqrt', 'pow'):
      continue
    source = find(e.ins[0])
    while source is not None and source.name in (
      'reshape', 'broadcast_in_dim', 'convert_element_type'
    ):  # fmt: skip
      source = find(source.ins[0])
    if source is None or source.name != 'add':
      continue
    for a in source.ins:
      value = a.value if isinstance(a, internals.Lit) else consts.get(a)
      if value is not None and np.size(np.unique(value)) == 1:
        return float(np.asarray(value).reshape(-1)[0])
  return 0.0
