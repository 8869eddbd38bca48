"""One rule per float primitive: what it becomes in integers.

A rule reads `Value`s and returns one. Four ideas cover most of them:
  - an affine step after a dot product joins its epilogue (bias, BatchNorm);
  - a positive scalar factor changes a scale, a ReLU a saturation bound: free;
  - a chain of elementwise steps on one value, x * f(x) included, is one table;
  - a movement acts on codes.
Control flow is in control.py, products and windows in products.py.
"""

from __future__ import annotations

import functools
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from s8bqat_jax.integer import (
  conv,
  elementwise,
  interpreter,
  norm,
  requantize,
  softmax,
)
from s8bqat_jax.integer.interpreter import Context, register
from s8bqat_jax.integer.spec import Spec
from s8bqat_jax.integer.values import (
  INF,
  Const,
  Exact,
  Moved,
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


def _decide(ctx: Context, e, result: QValue, base, fn) -> Value:
  """A function of codes to booleans: a table of 0 and 1."""
  if e.outs[0].dtype != np.bool_ or base.spec.bits != 8:
    raise ctx.unsupported(e, 'its result is neither real nor a truth value')
  if ctx.twin:
    return Exact(result.live)
  truth = interpreter.table_values(fn, base.spec.values()).astype(np.int8)
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


@register('copy', 'stop_gradient', 'optimization_barrier', 'reduce_precision')
def _identity(ctx: Context, e: Any, x: Value) -> Value:
  del ctx, e
  return x


@register('convert_element_type')
def _convert(ctx: Context, e: Any, x: Value) -> Value:
  if isinstance(x, QValue):
    return x if e.outs[0].is_float else _elementwise(ctx, e, x)
  # Truth values become 0.0 and 1.0; wider integers have no known range.
  if x.array.dtype != np.bool_:
    raise ctx.unsupported(
      e, f'{x.array.dtype} to float has no range; convert before the function'
    )
  spec = Spec(1.0, 0, 0, 1)
  codes = None if ctx.twin else x.array.astype(jnp.int8)
  return ctx.fixed(x.shape, ctx.key(e), codes, spec, ctx.live(e, x))


# Affine steps.


def _epilogue(ctx: Context, e: Any, x: QValue, c: Const, **change: Any):
  """The dot product behind x with its epilogue extended by a constant."""
  acc = x.acc._replace(**change)
  live = ctx.live(e, x, c) if e.ins[0] is not e.ins[1] else None
  source = x.source._replace(emit=acc.emit)
  return QValue(e.outs[0].shape, ctx.key(e), source, acc=acc, live=live)


def _folds(e: Any, x: QValue, c: Const) -> bool:
  """Whether a constant belongs to the epilogue: it is a parameter."""
  several = scalar_of(c) is None
  return (
    x.acc is not None
    and x.shape == e.outs[0].shape
    and (several or bool(c.name))
  )


def _swap(e: Any, x: Value, y: Value) -> tuple[Any, Value, Value]:
  """Puts the constant second (commutative equations only)."""
  if isinstance(x, Const):
    return e._replace(ins=(e.ins[1], e.ins[0])), y, x
  return e, x, y


def _compact(c: Const) -> np.ndarray:
  return squeeze_const(c.value).astype(np.float64)


@register('add', 'add_any')
def _add(ctx: Context, e: Any, x: Value, y: Value) -> Value:
  e, x, y = _swap(e, x, y)
  if isinstance(x, QValue) and isinstance(y, Const) and _folds(e, x, y):
    return _epilogue(ctx, e, x, y, offset=x.acc.offset + _compact(y))
  return _tabulate_or(ctx, e, x, y, lambda: _sum(ctx, e, x, y, 1))


@register('sub')
def _sub(ctx: Context, e: Any, x: Value, y: Value) -> Value:
  if isinstance(x, QValue) and isinstance(y, Const) and _folds(e, x, y):
    return _epilogue(ctx, e, x, y, offset=x.acc.offset - _compact(y))
  return _tabulate_or(ctx, e, x, y, lambda: _sum(ctx, e, x, y, -1))


def _tabulate_or(ctx: Context, e: Any, x: Value, y: Value, otherwise) -> Value:
  """A table if x and y are one value (or one is a scalar), else two operands.

  Two lazy values can't share a base, and looking would materialize them.
  """
  scalar = any(
    isinstance(a, Const) and scalar_of(a) is not None for a in (x, y)
  )
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


def _operands(ctx: Context, e: Any, args, bits: int | None):
  """Materialized operands of a sum or product."""
  operands = []
  for a in args:
    if isinstance(a, QValue):
      operands.append(ctx.operand(a, bits))
    elif isinstance(a, Const):
      operands.append(ctx.constant(a))
    else:
      raise ctx.unsupported(e, f'an operand is {a.array.dtype}')
  return operands


def _sum(ctx: Context, e: Any, x: Value, y: Value, sign: int) -> QValue:
  """x + sign y at a common scale; lazy addends come in 16 bits."""
  a, b = _operands(ctx, e, (x, y), 16)
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

  return ctx.computed(e, (a, b), emit, bits=16)


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


def _scale(ctx: Context, e: Any, x: Value, y: Value, invert: bool):
  """Multiplication or division by a constant, where it is free."""
  if not (isinstance(x, QValue) and isinstance(y, Const)):
    return None
  factor = scalar_of(y)
  if _folds(e, x, y) and (factor is None or y.name):
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
  if not shape_kept or not np.isfinite(factor):
    return None
  return _rescaled(ctx, e, x, y, 1 / float(factor) if invert else float(factor))


@register('mul')
def _mul(ctx: Context, e: Any, x: Value, y: Value) -> Value:
  e, x, y = _swap(e, x, y)
  free = _scale(ctx, e, x, y, invert=False)
  if free is not None:
    return free
  return _tabulate_or(ctx, e, x, y, lambda: _product(ctx, e, x, y))


@register('div')
def _div(ctx: Context, e: Any, x: Value, y: Value) -> Value:
  free = _scale(ctx, e, x, y, invert=True)
  if free is not None:
    return free
  if isinstance(y, QValue):
    result = _tabulate_or(ctx, e, x, y, lambda: None)
    if result is None:
      raise ctx.unsupported(e, 'an accelerator does not divide two values')
    return result
  inverse = Const(1 / y.value, live=None if y.live is None else 1 / y.live)
  e = e._replace(primitive=lax.mul_p, params={})
  return _tabulate_or(ctx, e, x, inverse, lambda: _product(ctx, e, x, inverse))


def _product(ctx: Context, e: Any, x: Value, y: Value) -> QValue:
  """x * y; both in 16 bits if either is a sum (an LSTM's f * c)."""
  data = [v for v in (x, y) if isinstance(v, QValue)]
  bits = max(ctx.prefers(v) for v in data)
  a, b = _operands(ctx, e, (x, y), bits)
  key = ctx.key(e)

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

  return ctx.computed(e, (a, b), emit, bits=bits)


# Clips.


def _clip(ctx: Context, e: Any, x: QValue, low: float, high: float, *ins):
  """A clip is the saturation of the step before it."""
  if isinstance(x.source, Table):
    return tabulate(ctx, e, *ins)
  return QValue(
    x.shape,
    ctx.key(e),
    x.source,
    gain=x.gain,
    clip=(
      float(np.clip(x.clip[0], low, high)),
      float(np.clip(x.clip[1], low, high)),
    ),
    root=x,
    step=lambda r: jnp.clip(r, low, high),
    live=ctx.live(e, *ins),
  )


@register('max')
def _max(ctx: Context, e: Any, x: Value, y: Value) -> Value:
  swapped = _swap(e, x, y)
  bound = scalar_of(swapped[2]) if isinstance(swapped[2], Const) else None
  if bound is not None and swapped[1].shape == e.outs[0].shape:
    e, x, y = swapped
    return x if bound == -INF else _clip(ctx, e, x, float(bound), INF, x, y)
  return _joint(ctx, e, x, y)


@register('min')
def _min(ctx: Context, e: Any, x: Value, y: Value) -> Value:
  swapped = _swap(e, x, y)
  bound = scalar_of(swapped[2]) if isinstance(swapped[2], Const) else None
  if bound is not None and swapped[1].shape == e.outs[0].shape:
    e, x, y = swapped
    return x if bound == INF else _clip(ctx, e, x, -INF, float(bound), x, y)
  return _joint(ctx, e, x, y)


@register('clamp')
def _clamp(ctx: Context, e: Any, low: Value, x: Value, high: Value) -> Value:
  bounds = [scalar_of(b) if isinstance(b, Const) else None for b in (low, high)]
  if None in bounds or not isinstance(x, QValue):
    raise ctx.unsupported(e, 'its bounds are not scalars')
  return _clip(ctx, e, x, float(bounds[0]), float(bounds[1]), low, x, high)


# Movements: the same equation on codes.


@register(
  'reshape', 'transpose', 'broadcast_in_dim', 'squeeze', 'expand_dims', 'rev',
  'slice', 'reduce_max', 'reduce_min', 'real',
)  # fmt: skip
def _movement(ctx: Context, e: Any, x: QValue) -> Value:
  """Order-preserving reductions move codes too: every scale is positive."""
  return ctx.moved(e, x, x, move=lambda codes: e.bind(codes)[0])


@register('split')
def _split(ctx: Context, e: Any, x: QValue) -> list[Value]:
  """Each part is a slice, so that parts nobody asks for are never cut."""
  axis = e.params['axis']
  ends = [int(n) for n in np.cumsum(e.params['sizes'])]
  parts: list[Value] = []
  for i, (var, end) in enumerate(zip(e.outs, ends)):
    cut = functools.partial(
      lax.slice_in_dim, start_index=end - var.shape[axis], limit_index=end,
      axis=axis,
    )  # fmt: skip
    live = cut(x.live) if ctx.twin else None
    parts.append(QValue(var.shape, ctx.key(e, i), Moved(x, cut), live=live))
  return parts


@register('dynamic_slice')
def _dynamic_slice(ctx: Context, e: Any, x: Value, *starts: Value) -> Value:
  if isinstance(x, Const):
    x = _stored(ctx, e, x)
  arrays = [s.array for s in starts]
  return ctx.moved(
    e, x, x, *starts, move=lambda codes: e.bind(codes, *arrays)[0]
  )


def _stored(ctx: Context, e: Any, c: Const) -> QValue:
  """A constant as a value in memory, to be indexed."""
  w = ctx.weight(c)
  if np.ndim(w.scale):
    raise ctx.unsupported(e, 'an indexed parameter needs one scale')
  spec = Spec(float(w.scale))
  codes = None if ctx.twin else jnp.asarray(w.values)
  return ctx.fixed(c.shape, c.name, codes, spec, c.array if ctx.twin else None)


@register('argmax', 'argmin')
def _argmax(ctx: Context, e: Any, x: QValue) -> Exact:
  operand = ctx.operand(x)
  return Exact(e.bind(operand.live if ctx.twin else operand.codes)[0])


@register('reduce_sum')
def _reduce_sum(ctx: Context, e: Any, x: QValue) -> QValue:
  a = ctx.operand(x)
  key = ctx.key(e)

  def emit(spec: Spec):
    (fixed,) = requantize.to_multiplier(a.spec.scale / spec.scale)
    return conv.q_sum(
      a.codes,
      fixed.multiplier,
      over=tuple(e.params['axes']),
      zero=a.spec.zero,
      shift=fixed.shift,
      out=spec.out,
      site=key,
    )

  return ctx.computed(e, (a,), emit, bits=16)


# Movements of several values: all at the spec of the result.


@register('concatenate', 'pad', 'select_n', 'dynamic_update_slice')
def _joint(ctx: Context, e: Any, *args: Value) -> Value:
  fill = _mask_fill(ctx, e, args)
  if fill is not None:
    return fill
  if not e.outs[0].is_float:
    raise ctx.unsupported(e)
  data = [a for a in args if isinstance(a, QValue)]
  bits = max([ctx.prefers(d) for d in data], default=8)

  def emit(spec: Spec):
    codes = []
    for a in args:
      if isinstance(a, QValue):
        codes.append(ctx.operand(a, spec=spec).codes)
      elif _is_real(a):
        codes.append(spec.quantize_np(a.value))
      else:
        codes.append(a.array)
    return e.bind(*codes)[0]

  return ctx.computed(e, args, emit, bits=bits)


def _is_real(a: Value) -> bool:
  return isinstance(a, Const) and jnp.issubdtype(a.value.dtype, jnp.floating)


def _mask_fill(ctx: Context, e: Any, args) -> Value | None:
  """where(mask, x, -1e9): the code below the range stands for 'masked'."""
  if e.name != 'select_n' or len(args) != 3:
    return None
  mask, off, on = args
  fills = [
    i
    for i, a in enumerate((off, on))
    if _is_real(a)
    and a.value.size
    and squeeze_const(a.value).max() <= -interpreter.MASK_LIMIT
  ]
  if len(fills) != 1:
    return None
  x = on if fills[0] == 0 else off
  if not isinstance(x, QValue):
    return None

  def own(bits: int) -> Spec:
    del bits  # A masked value feeds a softmax: always 8 bits.
    low, high = ctx.ranges.get(key, ctx.natural(x, 8).interval)
    low, high = min(low, 0.0), max(high, 0.0)
    scale = max(high - low, 1e-30) / 254
    zero = int(np.clip(np.rint(-127 - low / scale), -127, 127))
    return Spec(scale, zero, low=-127, masked=True)

  def emit(spec: Spec):
    codes = ctx.operand(x, spec=spec._replace(masked=False)).codes
    fill = jnp.full(x.shape, softmax.MASK_CODE, jnp.int8)
    cases = (fill, codes) if fills[0] == 0 else (codes, fill)
    return e.bind(mask.array, *cases)[0]

  key = ctx.key(e)
  return ctx.computed(e, args, emit, own=own)


@register('gather')
def _gather(ctx: Context, e: Any, x: Value, index: Value) -> Value:
  if isinstance(x, QValue):
    return ctx.moved(
      e, x, x, index, move=lambda codes: _clipped_gather(e, codes, index.array)
    )
  table = _stored(ctx, e, x)
  if not _is_row_lookup(e):
    return _gather(ctx, e, table, index)
  site = ctx.key(e)

  def rows(codes):
    flat = codes.reshape(codes.shape[0], -1)
    picked = elementwise.q_embed(index.array[..., 0], flat, site=site)
    return picked.reshape(e.outs[0].shape)

  return ctx.moved(e, table, table, index, move=rows)


def _clipped_gather(e: Any, codes, index):
  """Out-of-range rows are clipped: integers have no NaN to fill with."""
  params = dict(e.params, mode=lax.GatherScatterMode.CLIP, fill_value=None)
  return e.primitive.bind(codes, index, **params)


def _is_row_lookup(e: Any) -> bool:
  d = e.params['dimension_numbers']
  table, out = e.ins[0].shape, e.outs[0].shape
  return (
    tuple(d.collapsed_slice_dims) == (0,)
    and tuple(d.start_index_map) == (0,)
    and not d.operand_batching_dims
    and tuple(e.params['slice_sizes']) == (1, *table[1:])
    and tuple(d.offset_dims)
    == tuple(range(len(out) - len(table) + 1, len(out)))
  )


# Patterns (patterns.py).


def _last_axis(e: Any, x: QValue):
  """Functions that move the pattern's axis to the end and back."""
  axis, last = e.params['axis'], len(x.shape) - 1
  if axis == last:
    return (lambda c: c), (lambda c: c)
  return (lambda c: jnp.moveaxis(c, axis, -1)), (
    lambda c: jnp.moveaxis(c, -1, axis)
  )


@register('softmax')
def _softmax(ctx: Context, e: Any, x: QValue, *rest: Value) -> QValue:
  a = ctx.operand(x, 8)
  key = ctx.key(e)
  to_last, back = _last_axis(e, x)

  def own(bits: int) -> Spec:
    # Probabilities: 2^-bits per code, whatever calibration saw.
    if bits == 16:
      return Spec(2.0**-15, 0, 0, 2**15 - 1, 16)
    return Spec(2.0**-8, -128)

  def emit(spec: Spec):
    natural = own(spec.bits)
    codes = softmax.q_softmax(
      to_last(a.codes),
      softmax.exp_table(a.spec.scale),
      masked=a.spec.masked,
      bits=8 if spec.bits == 8 else 15,
      out=natural.out,
      site=key,
    )
    return ctx.rescale(back(codes), natural, spec, key)

  return ctx.computed(e, (a, *rest), emit, own=own)


@register('log_softmax')
def _log_softmax(ctx: Context, e: Any, x: QValue, *rest: Value) -> QValue:
  a = ctx.operand(x, 8)
  key = ctx.key(e)
  to_last, back = _last_axis(e, x)

  def emit(spec: Spec):
    log_step = np.log(2) * 2.0**-softmax.LOG_BITS
    first, second = requantize.to_multiplier(
      a.spec.scale / spec.scale, log_step / spec.scale
    )
    codes = softmax.q_log_softmax(
      to_last(a.codes),
      softmax.exp_table(a.spec.scale),
      softmax.log_table(),
      first.multiplier,
      second.multiplier,
      masked=a.spec.masked,
      shift=first.shift,
      out=spec.out,
      site=key,
    )
    return back(codes)

  return ctx.computed(e, (a, *rest), emit)


@register('layernorm', 'rmsnorm')
def _normalize(ctx: Context, e: Any, x: QValue, *rest: Value) -> QValue:
  a = ctx.operand(x)
  key = ctx.key(e)
  to_last, back = _last_axis(e, x)
  gamma, beta = e.params['gamma'], e.params['beta']
  width = x.shape[e.params['axis']]
  epsilon = int(np.rint(e.params['epsilon'] * (width / a.spec.scale) ** 2))

  def emit(spec: Spec):
    ratio = gamma / 2.0**norm.VALUE_BITS / spec.scale
    fixed, _ = requantize.to_multiplier(ratio, 2.0**-norm.BIAS_BITS)
    bias = np.rint(beta / spec.scale * 2.0**norm.BIAS_BITS)
    codes = norm.q_layernorm(
      to_last(a.codes),
      fixed.multiplier,
      np.clip(bias, -(2**31), 2**31 - 1).astype(np.int32),
      center=e.name == 'layernorm',
      epsilon=min(epsilon, 2**53),
      zero=a.spec.zero,
      shift=fixed.shift,
      out=spec.out,
      site=key,
    )
    return back(codes)

  return ctx.computed(e, (a, *rest), emit)
