"""The one place that knows the layout of jaxprs.

Float functions are seen as a `Graph`; who reads integer programs (audit, costs,
export) walks their equations with the helpers at the end. `trace` turns a
function into straight-line equations over our own variables: jit, remat and
custom-derivative bodies are inlined, dead equations dropped, closed-over arrays
made literals. Reals are float32 whatever the function computes in: bfloat16 is
a saving of the float function, not a property of its values. The layout of
jaxprs and of `scan`'s parameters differs between jax 0.10 and 0.12; both are
handled here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax._src import source_info_util
from jax.extend import core as jex_core


@dataclasses.dataclass(frozen=True, eq=False)
class Var:
  """A value of a Graph; compared by identity."""

  shape: tuple[int, ...]
  dtype: Any

  @property
  def is_float(self) -> bool:
    return jnp.issubdtype(self.dtype, np.floating)


@dataclasses.dataclass(frozen=True, eq=False)
class Lit:
  """A constant of a Graph."""

  value: Any

  @property
  def shape(self) -> tuple[int, ...]:
    return np.shape(self.value)

  @property
  def dtype(self) -> Any:
    return jnp.result_type(self.value)


Atom = Var | Lit


def is_key(x: Any) -> bool:
  """Whether something with a dtype is a random key, or an array of them."""
  return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


class Eqn(NamedTuple):
  """One primitive application."""

  primitive: Any
  params: dict[str, Any]
  ins: tuple[Atom, ...]
  outs: tuple[Var, ...]
  source: Any

  @property
  def name(self) -> str:
    return self.primitive.name

  def bind(self, *args: Any) -> list[Any]:
    """Applies the primitive to arrays; always a list of results."""
    # What is traced here comes from the user's line, as the audit reports it.
    with source_info_util.user_context(self.source[0].traceback):
      out = self.primitive.bind(*args, **self.params)
    return list(out) if self.primitive.multiple_results else [out]

  def where(self) -> str:
    """The user's source line: the innermost one known."""
    for source in self.source:
      line = source_info_util.summarize(source)
      if ':' in line:
        return line
    return 'an unknown line'


class Graph(NamedTuple):
  """Straight-line equations."""

  ins: tuple[Var, ...]
  eqns: tuple[Eqn, ...]
  outs: tuple[Atom, ...]


class Scan(NamedTuple):
  """The parts of a scan equation."""

  body: Graph
  num_consts: int
  num_carry: int
  length: int
  reverse: bool
  unroll: Any


# Primitives that only wrap a jaxpr, and the parameter that holds it.
_WRAPPERS = ('jaxpr', 'call_jaxpr', 'fun_jaxpr')
_INLINED = (
  'jit', 'pjit', 'closed_call', 'core_call', 'remat', 'remat2', 'checkpoint',
  'custom_jvp_call', 'custom_vjp_call', 'custom_vjp_call_jaxpr',
  'custom_lin',
)  # fmt: skip


def trace(fn: Callable[..., Any], *args: Any) -> tuple[Graph, Any]:
  """Returns (graph of fn, tree of its outputs).

  Args:
    fn: a function of pytrees of arrays.
    *args: arrays or ShapeDtypeStructs; only shapes and dtypes matter.
  """
  closed, shape = jax.make_jaxpr(fn, return_shape=True)(*args)
  return to_graph(closed), jax.tree.structure(shape)


def to_graph(jaxpr: Any) -> Graph:
  """Returns the inlined, dead-code-free Graph of a jaxpr."""
  consts = list(getattr(jaxpr, 'consts', ()))
  inner = getattr(jaxpr, 'jaxpr', jaxpr)
  ins: list[Any] = [_var(v) for v in inner.invars]
  eqns: list[Eqn] = []
  outs = _inline(inner, consts, ins, eqns, ())
  return drop_dead(Graph(tuple(ins), tuple(eqns), tuple(outs)))


def as_real(x: Any) -> Any:
  """An array as the graph has it: reals are float32, all else unchanged."""
  if not jnp.issubdtype(x.dtype, np.floating) or x.dtype == np.float32:
    return x
  return x.astype(np.float32)


def _as_literal(x: Any) -> Any:
  """Likewise for a literal; an end of its type fills, and stays an end."""
  if not jnp.issubdtype(x.dtype, np.floating) or x.dtype == np.float32:
    return x
  x, most = np.asarray(x), jnp.finfo(x.dtype).max
  real = x.astype(np.float32)
  if np.all((x == 0) | (np.abs(x) == most)):
    return np.sign(real) * np.finfo(np.float32).max
  return real


def _as_real_type(value: Any) -> Any:
  """A primitive's parameter; one that names a type of reals names float32."""
  is_type = isinstance(value, (np.dtype, type))
  real = is_type and jnp.issubdtype(value, np.floating)
  return np.dtype(np.float32) if real else value


def _var(v: Any) -> Any:
  real = jnp.issubdtype(v.aval.dtype, np.floating)
  return Var(tuple(v.aval.shape), np.dtype('float32') if real else v.aval.dtype)


def _inline(
  jaxpr, consts, ins: Sequence[Atom], eqns: list[Eqn], callers: tuple
) -> list[Atom]:
  """Appends the equations of `jaxpr` applied to `ins`; returns its outputs."""
  env: dict[Any, Atom] = {}

  def read(a) -> Atom:
    if isinstance(a, jex_core.Literal):
      aval: Any = a.aval
      return Lit(_as_literal(np.asarray(a.val, aval.dtype)))
    return env[a]

  env.update(zip(jaxpr.constvars, (Lit(_as_literal(c)) for c in consts)))
  env.update(zip(jaxpr.invars, ins))
  for e in jaxpr.eqns:
    args = [read(a) for a in e.invars]
    name = e.primitive.name
    source = (e.source_info, *callers)
    inner = next((e.params[k] for k in _WRAPPERS if k in e.params), None)
    if name in _INLINED and inner is not None:
      outs = _inline(
        getattr(inner, 'jaxpr', inner),
        getattr(inner, 'consts', ()),
        args,
        eqns,
        source,
      )
      env.update(zip(e.outvars, outs))
      continue
    results = tuple(_var(v) for v in e.outvars)
    converts = name == 'convert_element_type'
    if converts and aval(args[0]).dtype == results[0].dtype:
      env[e.outvars[0]] = args[0]
      continue
    env.update(zip(e.outvars, results))
    params = {k: _as_real_type(v) for k, v in e.params.items()}
    eqns.append(Eqn(e.primitive, params, tuple(args), results, source))
  return [read(a) for a in jaxpr.outvars]


def drop_dead(graph: Graph) -> Graph:
  """Drops equations whose results reach no output."""
  live = {a for a in graph.outs if isinstance(a, Var)}
  kept = []
  for e in reversed(graph.eqns):
    if any(v in live for v in e.outs):
      kept.append(e)
      live.update(a for a in e.ins if isinstance(a, Var))
  return graph._replace(eqns=tuple(reversed(kept)))


def scan_parts(eqn: Eqn) -> Scan:
  """Returns the parts of a scan equation, whatever the jax version."""
  p = eqn.params
  consts, carry = scan_split(p)
  return Scan(
    to_graph(p['jaxpr']), consts, carry, p['length'], p['reverse'], p['unroll']
  )


def scan_split(params: dict[str, Any]) -> tuple[int, int]:
  """Returns how many inputs of a scan are constants, and how many carries."""
  if 'ft_in' in params:  # jax 0.12: the split is that of a flat tree.
    consts, carry, _ = (len(list(t)) for t in params['ft_in'].unpack())
    return consts, carry
  return params['num_consts'], params['num_carry']


def cond_parts(eqn: Eqn) -> list[Graph]:
  """Returns the branches of a cond equation."""
  return [to_graph(b) for b in eqn.params['branches']]


def while_parts(eqn: Eqn) -> tuple[Graph, int, Graph, int]:
  """Returns (condition, its number of constants, body, its number)."""
  p = eqn.params
  return (
    to_graph(p['cond_jaxpr']),
    p['cond_nconsts'],
    to_graph(p['body_jaxpr']),
    p['body_nconsts'],
  )


def inner_jaxprs(eqn: Any) -> list[Any]:
  """Returns every jaxpr among the parameters of a raw jaxpr equation."""
  found = []
  for value in eqn.params.values():
    for item in value if isinstance(value, (tuple, list)) else (value,):
      inner = getattr(item, 'jaxpr', item)
      if hasattr(inner, 'eqns') and hasattr(inner, 'invars'):
        found.append(item)
  return found


def aval(a: Atom) -> Any:
  """Returns what has the shape and dtype of an atom."""
  return a if isinstance(a, Var) else a.value


def source_line(eqn: Any) -> str:
  """Returns where a raw jaxpr equation comes from."""
  return source_info_util.summarize(eqn.source_info)


def is_call(eqn: Any) -> bool:
  """Whether a raw jaxpr equation does nothing but call its inner jaxpr."""
  return eqn.primitive.name in _INLINED


def runs_here(ctx: Any) -> bool:
  """Whether a lowering is for one device of this process.

  A program that is exported runs where its reader is; one that is partitioned
  over devices holds only operations that XLA can partition.

  Args:
    ctx: of the lowering rule.
  """
  if ctx.module_context.lowering_parameters.for_export:
    return False
  axes = ctx.module_context.axis_context
  if hasattr(axes, 'num_devices'):
    return axes.num_devices == 1
  # Within shard_map: nothing is left to partition once all axes are manual.
  return set(axes.mesh.axis_names) == set(axes.manual_axes)
