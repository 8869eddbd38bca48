"""Rules for what moves, picks or orders values: the same equation on codes.

Every scale is positive, so codes are ordered as the reals they stand for:
maxima move codes too. Where several values meet (concatenate, select) all are
first brought to the spec of the result.
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
  requantize,
)
from s8bqat_jax.integer import spec as spec_lib
from s8bqat_jax.integer.context import Context, register
from s8bqat_jax.integer.spec import TRUTH, Spec
from s8bqat_jax.integer.values import (
  Const,
  Exact,
  Fixed,
  Moved,
  QValue,
  Value,
  scalar_of,
)


@register(
  'reshape', 'transpose', 'broadcast_in_dim', 'squeeze', 'rev',
  'slice', 'reduce_max', 'reduce_min', 'tile',
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


@register('unstack')
def _unstack(ctx: Context, e: Any, x: QValue) -> list[Value]:
  """A primitive of its own since jax 0.10; slices before."""
  parts: list[Value] = []
  for i, var in enumerate(e.outs):
    pick = functools.partial(
      lax.index_in_dim, index=i, axis=e.params['axis'], keepdims=False
    )
    live = pick(x.live) if ctx.twin else None
    parts.append(QValue(var.shape, ctx.key(e, i), Moved(x, pick), live=live))
  return parts


@register('dynamic_slice')
def _dynamic_slice(ctx: Context, e: Any, x: Any, *starts: Any) -> Value:
  if isinstance(x, Const):
    x = _stored(ctx, e, x)
  arrays = [s.array for s in starts]
  return ctx.moved(
    e, x, x, *starts, move=lambda codes: e.bind(codes, *arrays)[0]
  )


def _stored(ctx: Context, e: Any, c: Const) -> QValue:
  """A constant as a value in memory, to be indexed."""
  if ctx.is_masked(c):
    spec = ctx.constant_spec(c, 8)
    codes = None if ctx.twin else jnp.asarray(spec.quantize_np(c.value))
    return ctx.fixed(c.shape, c.name, codes, spec, c.array)
  w = ctx.weight(c)
  if np.ndim(w.scale):
    raise ctx.unsupported(e, 'a parameter indexed so needs one scale')
  spec = Spec(float(w.scale))
  codes = None if ctx.twin else jnp.asarray(w.values)
  live = c.array if ctx.twin else None
  return ctx.fixed(c.shape, c.name, codes, spec, live, parameter=True)


@register('argmax', 'argmin')
def _argmax(ctx: Context, e: Any, x: QValue) -> Exact:
  operand = ctx.operand(x, masks=True)
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


@register('concatenate', 'stack', 'pad', 'dynamic_update_slice')
def joint(ctx: Context, e: Any, *args: Any) -> Value:
  """Applies an equation to the codes of all its operands at one spec.

  Where masks are among them, as in where(mask, x, -1e9), the result is masked.
  """
  if not e.outs[0].is_float:
    raise ctx.unsupported(e)
  data = [a for a in args if isinstance(a, QValue)]
  bits = max([ctx.prefers(d) for d in data], default=8)
  own = None
  if any(ctx.is_masked(a) for a in args):
    bits, own = 8, ctx.masked_spec(e)  # It feeds a softmax.
  elif all(not _is_real(a) or ctx.is_truth(a) for a in args):
    own = lambda bits: TRUTH

  def emit(spec: Spec):
    codes = []
    for a in args:
      if isinstance(a, QValue):
        of = spec._replace(masked=spec.masked and ctx.is_masked(a))
        codes.append(ctx.operand(a, spec=of).codes)
      elif _is_real(a):
        codes.append(spec.quantize_np(a.value))
      else:
        codes.append(a.array)
    return e.bind(*codes)[0]

  return ctx.computed(e, args, emit, bits=bits, own=own)


@register('select_n')
def _select(ctx: Context, e: Any, which: Any, *cases: Any) -> Value:
  """A choice that is known is none."""
  index = scalar_of(which) if isinstance(which, Const) else None
  if index is not None and cases[int(index)].shape == e.outs[0].shape:
    return cases[int(index)]
  return joint(ctx, e, which, *cases)


def _is_real(a: Value) -> bool:
  if isinstance(a, Const):
    return jnp.issubdtype(a.value.dtype, jnp.floating)
  return isinstance(a, QValue)


@register('gather')
def _gather(ctx: Context, e: Any, x: Any, index: Any) -> Value:
  if isinstance(x, QValue):
    return ctx.moved(
      e, x, x, index, move=lambda codes: _clipped_gather(e, codes, index.array)
    )
  rows = _is_row_lookup(e)
  if rows and not ctx.is_masked(x) and np.ndim(ctx.weight(x).scale):
    return _scaled_rows(ctx, e, x, index)
  table = _stored(ctx, e, x)
  if not rows:
    return _gather(ctx, e, table, index)
  assert isinstance(table.source, Fixed)
  site, out = ctx.key(e), table.source.spec.out

  def picked(codes):
    return _rows(codes, index, site, out).reshape(e.outs[0].shape)

  return ctx.moved(e, table, table, index, move=picked)


def _rows(codes: Any, index: Any, site: str, out: requantize.Out) -> Any:
  """The rows of a table, each flat."""
  flat = codes.reshape(codes.shape[0], -1)
  return elementwise.q_embed(index.array[..., 0], flat, out=out, site=site)


def _scaled_rows(ctx: Context, e: Any, c: Const, index: Any) -> QValue:
  """Rows of a table in which each has a scale: a product of two look-ups."""
  values, scale = ctx.weight(c)
  if scale.shape != (len(values), *[1] * (values.ndim - 1)):
    raise ctx.unsupported(
      e, f'an indexed parameter has one scale, or one a row, not {scale.shape}'
    )
  steps = spec_lib.of_scales(scale)
  wide = Spec(1.0, 0, -128, 127, 16)
  site = ctx.key(e)

  def emit(spec: Spec):
    codes = _rows(jnp.asarray(values), index, site, Spec(1.0).out)
    (fixed,) = requantize.to_multiplier(steps.scale / spec.scale)
    product = elementwise.q_mul(
      ctx.rescale(codes, Spec(1.0), wide, site),
      _rows(jnp.asarray(steps.quantize_np(scale)), index, site, steps.out),
      fixed.multiplier,
      zeros=(0, 0),
      shift=fixed.shift,
      out=spec.out,
      site=site,
    )
    return product.reshape(e.outs[0].shape)

  return ctx.computed(e, (c, index), emit)


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
