"""One rule per float primitive: what it becomes in integers.

A rule reads `Value`s and returns one. Four ideas cover most of them:
  - an affine step after a dot product joins its epilogue (bias, BatchNorm);
  - a positive scalar factor changes a scale, a ReLU a saturation bound: free;
  - a chain of elementwise steps on one value, x * f(x) included, is one table;
  - a movement acts on codes (movement.py).
Products and windows are in products.py, clips in clips.py, patterns in
normalize.py, control flow in control.py.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from s8bqat_jax.integer import elementwise, requantize, tables
from s8bqat_jax.integer.context import Context, register
from s8bqat_jax.integer.spec import MASK_LIMIT, TRUTH, Spec
from s8bqat_jax.integer.values import (
  INF,
  Const,
  Exact,
  Moved,
  Operand,
  QValue,
  Table,
  Value,
  scalar_of,
  squeeze_const,
)

# Elementwise functions of one value.


def tabulate(ctx: Context, e: Any, *args: Value) -> Value | None:
  """The equation as one table, if all its data is one value's; else None."""
  views = {i: ctx.view(a) for i, a in enumerate(args) if isinstance(a, QValue)}
  scalars = {
    i: scalar_of(a) for i, a in enumerate(args) if isinstance(a, Const)
  }
  bases = [base for base, _ in views.values()]
  if (
    len(views) + len(scalars) < len(args)
    or any(b is not bases[0] for b in bases)
    or any(s is None for s in scalars.values())
  ):
    return None

  def fn(r):
    full = lambda s: jnp.full_like(r, s, dtype=np.asarray(s).dtype)
    return e.bind(
      *(
        views[i][1](r) if i in views else full(scalars[i])
        for i in range(len(args))
      )
    )[0]

  result = QValue(
    e.outs[0].shape,
    ctx.key(e),
    Table(bases[0], fn),
    live=ctx.live(e, *_based(ctx, args, views)),
  )
  if e.outs[0].is_float:
    return result
  return _decide(ctx, e, result, bases[0], fn)


def _based(ctx: Context, args, views):
  """In the twin, a value that is its own base is read as quantized."""
  if not ctx.twin:
    return args
  return [
    Exact(views[i][1](views[i][0].live))
    if i in views and not isinstance(a.source, Table)
    else a
    for i, a in enumerate(args)
  ]


# What masks are filled with; to integers they are one.
_FILLS = np.array([-np.inf, np.finfo(np.float32).min, -1e9, -MASK_LIMIT])


def _decide(ctx: Context, e, result: QValue, base, fn) -> Value:
  """A function of codes to booleans: a table of 0 and 1."""
  if e.outs[0].dtype != np.bool_:
    raise ctx.unsupported(e, 'its result is neither real nor a truth value')
  truth = tables.evaluate(fn, base.spec.values()).astype(np.int8)
  if base.spec.masked and len(set(tables.evaluate(fn, _FILLS))) > 1:
    raise ValueError(
      f'{result.key!r} tells one fill of a mask from another, -inf from -1e9, '
      f'but they are one code, at {e.where()}; ask the mask itself'
    )
  first, *others = set(truth)
  if not others:  # Such as whether a code is NaN.
    return Const(np.broadcast_to(np.bool_(first), result.shape))
  if ctx.twin:
    return Exact(result.live)
  out = requantize.Out(low=0, high=1)
  codes = elementwise.q_lut(base.codes, truth, out=out, site=result.key)
  return Exact(codes != 0)


@register(
  'abs', 'acos', 'acosh', 'asin', 'asinh', 'atan', 'atanh', 'cbrt', 'ceil',
  'cos', 'cosh', 'erf', 'erf_inv', 'erfc', 'exp', 'exp2', 'expm1', 'floor',
  'integer_pow', 'is_finite', 'log', 'log1p', 'logistic', 'neg', 'not', 'pow',
  'round', 'rsqrt', 'sign', 'sin', 'sinh', 'sqrt', 'square', 'tan', 'tanh',
  'eq', 'ne', 'lt', 'le', 'gt', 'ge', 'and', 'or', 'rem', 'atan2',
)  # fmt: skip
def _elementwise(ctx: Context, e: Any, *args: Value) -> Value:
  result = tabulate(ctx, e, *args)
  if result is None:
    raise ctx.unsupported(e, 'it mixes several values; only tables of one')
  return result


@register('copy', 'optimization_barrier', 'reduce_precision')
def _identity(ctx: Context, e: Any, *args: Value) -> list[Value]:
  del ctx, e
  return list(args)


@register('stop_gradient')
def _stop_gradient(ctx: Context, e: Any, x: QValue) -> Value:
  if not ctx.twin:
    return x
  same = lambda r: r
  return dataclasses.replace(
    x, source=Moved(x, same), gain=1.0, clip=(-INF, INF), root=x, step=same,
    acc=None, live=ctx.live(e, x), codes={}, base=None,
  )  # fmt: skip


@register('convert_element_type')
def _convert(ctx: Context, e: Any, x: Value) -> Value:
  if isinstance(x, QValue):
    return x if e.outs[0].is_float else _elementwise(ctx, e, x)
  # Truth values become 0.0 and 1.0; wider integers have no known range.
  if x.array.dtype != np.bool_:
    raise ctx.unsupported(
      e, f'{x.array.dtype} to float has no range; convert before the function'
    )
  codes = None if ctx.twin else x.array.astype(jnp.int8)
  return ctx.fixed(x.shape, ctx.key(e), codes, TRUTH, ctx.live(e, x))


# Affine steps.


def _epilogue(ctx: Context, e: Any, x: Any, c: Const, **change: Any):
  """The dot product behind x with its epilogue extended by a constant."""
  for value in change.values():
    if not np.all(np.isfinite(value)):
      raise ValueError(
        f'constant {c.name or "of the function"} is NaN or infinite, at '
        f'{e.where()}; integers have neither: mask with jnp.where'
      )
  acc = x.acc._replace(**change)
  live = ctx.live(e, x, c)
  source = x.source._replace(emit=acc.emit)
  return QValue(e.outs[0].shape, ctx.key(e), source, acc=acc, live=live)


def _folds(e: Any, x: Any, c: Any) -> bool:
  """Whether a constant belongs to a product's epilogue: it is a parameter."""
  if not (isinstance(x, QValue) and isinstance(c, Const) and x.acc):
    return False
  return x.shape == e.outs[0].shape and (scalar_of(c) is None or bool(c.name))


def swap(e: Any, x: Any, y: Any) -> tuple[Any, Any, Any]:
  """Puts the constant second (commutative equations only)."""
  if isinstance(x, Const):
    return e._replace(ins=(e.ins[1], e.ins[0])), y, x
  return e, x, y


def _compact(c: Const) -> np.ndarray:
  return squeeze_const(c.value).astype(np.float64)


@register('add', 'add_any')
def _add(ctx: Context, e: Any, x: Any, y: Any) -> Value:
  e, x, y = swap(e, x, y)
  if ctx.is_masked(x) or ctx.is_masked(y):
    return _masked_sum(ctx, e, x, y, 1)
  if _folds(e, x, y):
    return _epilogue(ctx, e, x, y, offset=x.acc.offset + _compact(y))
  return _tabulate_or(ctx, e, x, y, lambda: _sum(ctx, e, x, y, 1))


@register('sub')
def _sub(ctx: Context, e: Any, x: Any, y: Any) -> Value:
  if ctx.is_masked(x) and not ctx.is_masked(y):
    return _masked_sum(ctx, e, x, y, -1)
  if _folds(e, x, y):
    return _epilogue(ctx, e, x, y, offset=x.acc.offset - _compact(y))
  return _tabulate_or(ctx, e, x, y, lambda: _sum(ctx, e, x, y, -1))


def _tabulate_or(ctx: Context, e: Any, x: Value, y: Value, otherwise) -> Value:
  """A table if x and y are one value (or one is a scalar), else two operands.

  Two lazy values can't share a base, and looking would materialize them.
  """
  constants = [a for a in (x, y) if isinstance(a, Const)]
  scalar = any(scalar_of(c) is not None for c in constants)
  same = (
    isinstance(x, QValue)
    and isinstance(y, QValue)
    and _anchor(x) is not None
    and _anchor(x) is _anchor(y)
  )
  result = tabulate(ctx, e, x, y) if scalar or same else None
  return otherwise() if result is None else result


def _anchor(v: QValue) -> Any:
  """What identifies the base of a value, without materializing it."""
  if isinstance(v.source, Table):
    return v.source.base
  if v.root is not None:
    return _anchor(v.root)
  return v.base if v.base is not None else v


def _operands(ctx: Context, e: Any, args, bits: int | None, masks=False):
  """Materialized operands of a sum or product."""
  operands = []
  for a in args:
    if isinstance(a, QValue):
      operands.append(ctx.operand(a, bits, masks=masks))
    elif isinstance(a, Const):
      operands.append(ctx.constant(a))
    else:
      raise ctx.unsupported(e, f'an operand is {a.array.dtype}')
  return operands


def _sum(ctx: Context, e: Any, x: Value, y: Value, sign: int) -> QValue:
  """x + sign y at a common scale; lazy addends come in 16 bits."""
  a, b = _operands(ctx, e, (x, y), 16)
  return ctx.computed(e, (a, b), _sum_of(ctx, e, a, b, sign), bits=16)


def _sum_of(ctx: Context, e: Any, a: Operand, b: Operand, sign: int):
  """What computes a + sign b at a spec."""
  key = ctx.key(e)

  def emit(spec: Spec):
    first, second = requantize.to_multiplier(
      a.spec.scale / spec.scale, sign * b.spec.scale / spec.scale
    )
    return elementwise.q_add(
      a.codes,
      b.codes,
      first.multiplier,
      second.multiplier,
      zeros=(a.spec.zero, b.spec.zero),
      shift=first.shift,
      out=spec.out,
      site=key,
    )

  return emit


def _masked_sum(ctx: Context, e: Any, x: Value, y: Value, sign: int) -> QValue:
  """x + sign y where either is masked out in places, as by an additive mask."""
  terms: list[Operand] = []
  holes: list[Any] = []
  for v in (x, y):
    if isinstance(v, Const):
      holes.append(v.masked_out)
      small = np.where(holes[-1], 0.0, squeeze_const(v.value))
      operand = ctx.constant(Const(small, name=v.name))
      terms.append(operand._replace(live=v.array))
    else:
      (operand,) = _operands(ctx, e, (v,), 16, masks=True)
      holes.append(
        operand.spec.masked and operand.codes == operand.spec.mask_code
      )
      terms.append(operand)
  total = _sum_of(ctx, e, terms[0], terms[1], sign)

  def emit(spec: Spec):
    codes = total(spec._replace(masked=False))
    return ctx.mask(codes, jnp.logical_or(*holes), spec)

  return ctx.computed(e, terms, emit, own=ctx.masked_spec(e))


def _rescaled(ctx: Context, e: Any, x: QValue, y: Const, gain: float) -> QValue:
  """x times a positive scalar: the same codes at another scale."""
  return QValue(
    x.shape,
    ctx.key(e),
    Moved(x, lambda codes: codes),
    gain=gain,
    root=x,
    step=lambda r: r * gain,
    live=ctx.live(e, x, y),
  )


def _scale(ctx: Context, e: Any, x: Any, y: Any, invert: bool):
  """Multiplication or division by a constant, where it is free."""
  if not (isinstance(x, QValue) and isinstance(y, Const)):
    return None
  factor = scalar_of(y)
  if x.acc is not None and _folds(e, x, y):
    with np.errstate(divide='ignore'):
      gain = 1 / _compact(y) if invert else _compact(y)
    if not np.all(np.isfinite(gain)):
      raise ctx.unsupported(e, 'division by zero')
    return _epilogue(
      ctx, e, x, y, gain=x.acc.gain * gain, offset=x.acc.offset * gain
    )
  shape_kept = x.shape == e.outs[0].shape
  if factor is None or factor <= 0 or isinstance(x.source, Table):
    return None
  if y.name:  # a parameter: the twin's may be another by now
    return None
  if not shape_kept or not np.isfinite(factor):
    return None
  return _rescaled(ctx, e, x, y, 1 / float(factor) if invert else float(factor))


@register('mul')
def _mul(ctx: Context, e: Any, x: Any, y: Any) -> Value:
  e, x, y = swap(e, x, y)
  free = _scale(ctx, e, x, y, invert=False)
  if free is not None:
    return free
  return _tabulate_or(ctx, e, x, y, lambda: _product(ctx, e, x, y))


@register('div')
def _div(ctx: Context, e: Any, x: Any, y: Any) -> Value:
  free = _scale(ctx, e, x, y, invert=True)
  if free is not None:
    return free
  if isinstance(y, QValue):
    result = _tabulate_or(ctx, e, x, y, lambda: None)
    if result is None:
      raise ctx.unsupported(e, 'an accelerator does not divide two values')
    return result
  inverse = Const(1 / y.value, live=None if y.live is None else 1 / y.live)
  # With the parameters that this version of jax gives a product.
  product = jax.make_jaxpr(lax.mul)(1.0, 1.0).eqns[0]
  e = e._replace(primitive=product.primitive, params=product.params)
  return _tabulate_or(ctx, e, x, inverse, lambda: _product(ctx, e, x, inverse))


def _product(ctx: Context, e: Any, x: Value, y: Value) -> QValue:
  """x * y; both in 16 bits if either is a sum (an LSTM's f * c)."""
  data = [v for v in (x, y) if isinstance(v, QValue)]
  bits = max(ctx.prefers(v) for v in data)
  a, b = _operands(ctx, e, (x, y), bits)
  key = ctx.key(e)
  truths = ctx.is_truth(x) and ctx.is_truth(y)
  own = (lambda bits: TRUTH) if truths else None

  def emit(spec: Spec):
    ratio = a.spec.scale * b.spec.scale / spec.scale
    (fixed,) = requantize.to_multiplier(ratio)
    return elementwise.q_mul(
      a.codes,
      b.codes,
      fixed.multiplier,
      zeros=(a.spec.zero, b.spec.zero),
      shift=fixed.shift,
      out=spec.out,
      site=key,
    )

  return ctx.computed(e, (a, b), emit, bits=bits, own=own)
