"""audit: a proof that an integer function is what it claims to be.

It walks the program, every inner jaxpr, and the kernel behind every integer
primitive, and checks that
  - no value anywhere is floating point (or complex);
  - no int32 accumulator and no int64 intermediate can overflow, whatever
    codes arrive: weights are read from the program, every other operand is
    taken at the worst its dtype allows.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from s8bqat_jax.integer import _jax_internals as internals
from s8bqat_jax.integer import norm, primitives, softmax

INT32 = 2**31 - 1
INT64 = 2**63 - 1


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
  """

  rows: tuple[Row, ...]
  floats: tuple[str, ...]
  equations: int

  @property
  def overflows(self) -> tuple[Row, ...]:
    return tuple(r for r in self.rows if r.bound > r.limit)

  @property
  def ok(self) -> bool:
    return not self.floats and not self.overflows

  def __str__(self) -> str:
    lines = [f'{"op":14}{"bits used":>12}  {"result":18} site']
    for r in self.rows:
      used = f'{math.log2(r.bound + 1):.1f} of {math.log2(r.limit + 1):.0f}'
      flag = ' OVERFLOW' if r.bound > r.limit else ''
      lines.append(f'{r.op:14}{used:>12}  {str(r.shape):18} {r.site}{flag}')
    lines += [f'FLOAT: {f}' for f in self.floats]
    verdict = 'no floating-point value' if not self.floats else 'NOT integer'
    safe = 'no accumulator can overflow' if not self.overflows else 'OVERFLOW'
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
  """
  lowered = hasattr(integer_fn, 'in_specs')
  closed = integer_fn.jaxpr if lowered else integer_fn
  rows: list[Row] = []
  floats: list[str] = []
  known = [np.asarray(c) for c in closed.consts]
  inner = getattr(closed, 'jaxpr', closed)
  count = _walk(inner, known, [None] * len(inner.invars), rows, floats)
  return Audit(tuple(rows), tuple(floats), count)


def _is_float(aval: Any) -> bool:
  return jnp.issubdtype(aval.dtype, jnp.inexact)


def _walk(jaxpr, consts, args, rows: list[Row], floats: list[str]) -> int:
  """Visits one jaxpr; `consts` and `args` are arrays where known, else None."""
  env: dict[Any, Any] = dict(zip(jaxpr.constvars, consts))
  env.update(zip(jaxpr.invars, args))
  for v in [*jaxpr.constvars, *jaxpr.invars]:
    if _is_float(v.aval):
      floats.append(f'input: {v.aval}')
  count = 0
  for e in jaxpr.eqns:
    count += 1
    name = e.primitive.name
    for v in [*e.invars, *e.outvars]:
      if _is_float(v.aval):
        floats.append(f'{name}: {v.aval}')
    values = [a.val if hasattr(a, 'val') else env.get(a) for a in e.invars]
    if name in primitives.REGISTRY:
      rows.append(_row(e, values))
      count += _kernel(e, floats)
      continue
    for inner in internals.inner_jaxprs(e):
      body = getattr(inner, 'jaxpr', inner)
      passed = _known_inputs(e, inner, body, values)
      closed_over = [np.asarray(c) for c in getattr(inner, 'consts', ())]
      count += _walk(body, closed_over, passed, rows, floats)
  return count


def _known_inputs(e: Any, inner: Any, body: Any, values: list[Any]) -> list:
  """Which inputs of an inner jaxpr are constants; None for the others."""
  name, count = e.primitive.name, len(body.invars)
  if name in ('jit', 'pjit', 'closed_call') and len(values) == count:
    return values
  # What a loop carries changes from step to step, and so do slices.
  known: list[Any] = []
  if name == 'scan':
    known = values[: count - internals.scan_varying(e)]
  elif name == 'cond':
    known = values[1:]
  elif name == 'while':
    skip = e.params['cond_nconsts']
    in_body = inner is e.params['body_jaxpr']
    last = skip + e.params['body_nconsts']
    known = values[skip:last] if in_body else values[:skip]
  return [*known, *[None] * (count - len(known))]


def _kernel(e: Any, floats: list[str]) -> int:
  """Checks that what the primitive compiles to is integer as well."""
  op = primitives.REGISTRY[e.primitive.name]
  shapes = [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in e.invars]
  closed = jax.make_jaxpr(functools.partial(op.kernel, **e.params))(*shapes)
  found: list[str] = []
  inner = closed.jaxpr
  count = _walk(inner, closed.consts, [None] * len(inner.invars), [], found)
  floats.extend(f'{e.primitive.name} kernel, {f}' for f in found)
  return count


def _row(e: Any, values: list[Any]) -> Row:
  name = e.primitive.name
  shapes = [tuple(v.aval.shape) for v in e.invars]
  peaks = [_peak(v.aval.dtype) for v in e.invars]
  bound, limit = _BOUNDS[name](e.params, shapes, peaks, values)
  out = tuple(e.outvars[0].aval.shape)
  return Row(name, e.params['site'], out, int(bound), limit)


def _peak(dtype: Any) -> int:
  """The largest absolute value of an integer dtype."""
  return 1 if dtype == np.bool_ else -int(np.iinfo(dtype).min)


def _abs_max(value: Any, otherwise: int) -> int:
  if value is None:
    return otherwise
  return int(np.abs(np.asarray(value, np.int64)).max(initial=0))


# Per primitive: (params, shapes, worst |code| per operand, values where known)
# -> (bound, limit).


def _dot_bound(p, shapes, peaks, values):
  (lc, rc), _ = p['dimension_numbers']
  zero_l, zero_r = (abs(z) for z in p['zeros'])
  depth = math.prod(shapes[0][i] for i in lc)
  bias = _abs_max(values[2], INT32)
  if values[1] is not None:
    w = np.abs(np.asarray(values[1], np.int64)).sum(axis=tuple(rc))
    product = (peaks[0] + zero_l) * int(w.max(initial=0))
  elif values[0] is not None:
    w = np.abs(np.asarray(values[0], np.int64)).sum(axis=tuple(lc))
    product = (peaks[1] + zero_r) * int(w.max(initial=0))
  else:
    product = depth * (peaks[0] + zero_l) * (peaks[1] + zero_r)
  return product + bias, INT32


def _conv_bound(p, shapes, peaks, values):
  del p
  bias = _abs_max(values[2], INT32)
  if values[1] is None:
    depth = math.prod(shapes[1][:-1])
    return depth * peaks[0] * peaks[1] + bias, INT32
  w = np.abs(np.asarray(values[1], np.int64))
  columns = w.sum(axis=tuple(range(w.ndim - 1)))
  return peaks[0] * int(columns.max(initial=0)) + bias, INT32


def _pool_bound(p, shapes, peaks, values):
  del shapes, values
  if p['kind'] == 'max':
    return peaks[0], INT32
  return math.prod(p['window']) * (peaks[0] + abs(p['zero'])), INT32


def _sum_bound(p, shapes, peaks, values):
  del values
  depth = math.prod(shapes[0][i] for i in p['over'])
  return depth * (peaks[0] + abs(p['zero'])), INT32


def _rescale_bound(p, shapes, peaks, values):
  del shapes
  wide = (peaks[0] + abs(p['zero'])) * _abs_max(values[1], INT32)
  return wide + 2 ** max(p['shift'] - 1, 0), INT64


def _add_bound(p, shapes, peaks, values):
  del shapes
  total = sum(
    (peaks[i] + abs(p['zeros'][i])) * _abs_max(values[2 + i], INT32)
    for i in range(2)
  )
  return total + 2 ** max(p['shift'] - 1, 0), INT64


def _mul_bound(p, shapes, peaks, values):
  del shapes, values
  zeros = p['zeros']
  return math.prod(peaks[i] + abs(zeros[i]) for i in range(2)), INT32


def _lut_bound(p, shapes, peaks, values):
  del peaks, values
  # The index is as large as the table, what is found as its codes.
  largest = max(abs(p['out'].low), abs(p['out'].high))
  return max(largest, shapes[1][0] - 1), INT32


def _embed_bound(p, shapes, peaks, values):
  del p, shapes, values
  return peaks[1], INT32


def _softmax_bound(p, shapes, peaks, values):
  del p, peaks
  row = shapes[0][-1] * _abs_max(values[1], 2**softmax.EXP_BITS)
  # The reciprocal's product stays below 2^46 e / sum e <= 2^46 ...
  return max(row, 2**46 * 2), INT64


def _log_softmax_bound(p, shapes, peaks, values):
  log = (math.log2(max(shapes[0][-1], 1)) + 2) * 2**softmax.LOG_BITS
  total = 255 * _abs_max(values[3], INT32)
  total += math.ceil(log) * _abs_max(values[4], INT32)
  return total + 2 ** max(p['shift'] - 1, 0), INT64


def _norm_bound(p, shapes, peaks, values):
  width = shapes[0][-1]
  centered = 2 * width * (peaks[0] + abs(p['zero']))
  # |c| / root <= sqrt(N) for the normalized value, in Q14, times gamma.
  value = math.ceil(math.sqrt(width)) * 2 ** (norm.VALUE_BITS + 1)
  out = value * _abs_max(values[1], INT32)
  out += _abs_max(values[2], INT32) * 2 ** max(0, p['shift'] - norm.BIAS_BITS)
  out += 2 ** max(p['shift'] - 1, 0)
  scaled = centered**2 * 4**norm.ROOT_FRACTION + p['epsilon']
  return max(width * centered**2, scaled, out), INT64


_BOUNDS: dict[str, Callable[..., tuple[float, int]]] = {
  'q_dot': _dot_bound,
  'q_conv': _conv_bound,
  'q_depthwise': _conv_bound,
  'q_pool': _pool_bound,
  'q_sum': _sum_bound,
  'q_rescale': _rescale_bound,
  'q_add': _add_bound,
  'q_mul': _mul_bound,
  'q_lut': _lut_bound,
  'q_embed': _embed_bound,
  'q_softmax': _softmax_bound,
  'q_log_softmax': _log_softmax_bound,
  'q_layernorm': _norm_bound,
}
