"""Rules for dot products, convolutions and pooling."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from s8bqat_jax.integer import conv, dot, requantize
from s8bqat_jax.integer.context import Context, register
from s8bqat_jax.integer.spec import Spec
from s8bqat_jax.integer.values import (
  Acc,
  Computed,
  Const,
  Operand,
  QValue,
  Value,
)


def _open(ctx: Context, e: Any, ins, acc: Acc) -> QValue:
  """A product whose epilogue is still open."""
  return QValue(
    e.outs[0].shape,
    ctx.key(e),
    Computed(acc.emit, costly=True),
    acc=acc,
    live=ctx.live(e, *ins),
  )


@register('dot_general')
def _dot(ctx: Context, e: Any, lhs: Value, rhs: Value) -> QValue:
  dims = tuple(
    tuple(tuple(int(i) for i in side) for side in pair)
    for pair in e.params['dimension_numbers']
  )
  (lc, rc), (lb, rb) = dims
  site = ctx.key(e)
  a, b = (ctx.operand(v, 8) if isinstance(v, QValue) else v for v in (lhs, rhs))
  l_free = [i for i in range(len(lhs.shape)) if i not in (*lc, *lb)]
  r_free = [i for i in range(len(rhs.shape)) if i not in (*rc, *rb)]
  if isinstance(a, Operand) and isinstance(b, Operand):
    zeros = (a.spec.zero, b.spec.zero)
    scale = np.asarray(a.spec.scale * b.spec.scale)
    correction = np.zeros((), np.int64)
    codes = (a.codes, b.codes)
  else:
    data, const = (b, a) if isinstance(a, Const) else (a, b)
    if not (isinstance(data, Operand) and isinstance(const, Const)):
      raise ctx.unsupported(e, 'an operand is an integer of the function')
    contract, batch, free = (lc, lb, l_free) if const is a else (rc, rb, r_free)
    w = ctx.weight(const)
    zeros = (0, 0)
    # Everything per channel lines up with the result: batch, lhs, rhs axes.
    place = _placer(len(lb), len(l_free), len(r_free), const is a)
    channel_scale = np.broadcast_to(
      np.asarray(w.scale, np.float64), w.values.shape
    )
    if any(channel_scale.strides[i] for i in contract):
      raise ctx.unsupported(e, 'weight scales differ along a contracted axis')
    first = channel_scale[
      tuple(slice(None if step else 1) for step in channel_scale.strides)
    ]
    scale = data.spec.scale * place(_drop(first, contract, batch, free))
    sums = w.values.sum(axis=tuple(contract), keepdims=True, dtype=np.int64)
    correction = -data.spec.zero * place(_drop(sums, contract, batch, free))
    if not data.spec.zero:
      correction = np.zeros((), np.int64)
    weight = w.values
    if const is b and dims == ((lc, (0,)), ((), ())) and weight.ndim == 2:
      # Output-major [N, K] is read faster: consecutive bytes of one sum.
      weight = np.ascontiguousarray(weight.T)
      dims = ((lc, (1,)), ((), ()))
    codes = (weight, data.codes) if const is a else (data.codes, weight)

  def make(bias, multiplier, shift, spec: Spec):
    return dot.q_dot(
      *codes,
      bias,
      multiplier,
      dimension_numbers=dims,
      zeros=zeros,
      shift=shift,
      out=spec.out,
      site=site,
    )

  one, none = np.ones(()), np.zeros(())
  return _open(ctx, e, (a, b), Acc(make, scale, one, none, correction))


def _drop(x: np.ndarray, contract, batch, free) -> np.ndarray:
  """Weight axes in the result's order (batch, free), contracted ones gone."""
  order = [*batch, *free, *contract]
  kept = x.transpose(order)
  return kept.reshape(kept.shape[: len(batch) + len(free)])


def _placer(batch: int, l_free: int, r_free: int, weight_is_lhs: bool):
  """Returns a function that lines weight axes up with the result's."""

  def place(x):
    b, own = x.shape[:batch], x.shape[batch:]
    other = (1,) * (r_free if weight_is_lhs else l_free)
    shape = b + (own + other if weight_is_lhs else other + own)
    return x.reshape(shape) if any(n > 1 for n in shape) else x.reshape(())

  return place


@register('conv_general_dilated')
def _conv(ctx: Context, e: Any, lhs: Value, rhs: Value) -> QValue:
  p = e.params
  d = p['dimension_numbers']
  if not (isinstance(lhs, QValue) and isinstance(rhs, Const)):
    raise ctx.unsupported(e, 'the kernel must be a parameter')
  if any(n != 1 for n in p['lhs_dilation']) or p['batch_group_count'] != 1:
    raise ctx.unsupported(e, 'transposed convolutions are not supported')
  a = ctx.operand(lhs, 8)
  w = ctx.weight(rhs)
  # Ours: input [N, *S, C], kernel [*K, I, O], result [N, *S, O].
  to_input = (d.lhs_spec[0], *d.lhs_spec[2:], d.lhs_spec[1])
  to_kernel = (*d.rhs_spec[2:], d.rhs_spec[1], d.rhs_spec[0])
  ours = (d.out_spec[0], *d.out_spec[2:], d.out_spec[1])
  from_output = tuple(int(i) for i in np.argsort(ours))
  kernel = w.values.transpose(to_kernel)
  scale = np.broadcast_to(np.asarray(w.scale, np.float64), w.values.shape)
  scale = scale.transpose(to_kernel)
  *window, inputs, outputs = kernel.shape
  per_channel = scale.reshape(-1, outputs)
  if np.any(per_channel != per_channel[0]):
    raise ctx.unsupported(e, 'weight scales differ within an output channel')
  groups = p['feature_group_count']
  depthwise = inputs == 1 and groups == outputs > 1
  site = ctx.key(e)
  geometry = {
    'strides': tuple(p['window_strides']),
    'padding': tuple((int(x), int(y)) for x, y in p['padding']),
    'dilation': tuple(p['rhs_dilation']),
    'zero': a.spec.zero,
    'site': site,
  }
  channel_axis = d.out_spec[1]

  def channels(x):
    """A per-channel vector, lined up with the float result's axes."""
    if np.all(x == x[0]):
      return x[0].reshape(())
    shape = [1] * len(e.outs[0].shape)
    shape[channel_axis] = outputs
    return x.reshape(shape)

  sums = kernel.reshape(-1, outputs).sum(axis=0, dtype=np.int64)

  def make(bias, multiplier, shift, spec: Spec):
    lined = [_channels_last(x, ours, outputs) for x in (bias, multiplier)]
    x = a.codes.transpose(to_input)
    if depthwise:
      y = conv.q_depthwise(
        x,
        kernel.reshape(*window, outputs),
        *lined,
        shift=shift,
        out=spec.out,
        **geometry,
      )
    else:
      y = conv.q_conv(
        x,
        kernel,
        *lined,
        groups=groups,
        shift=shift,
        out=spec.out,
        **geometry,
      )
    return y.transpose(from_output)

  return _open(
    ctx,
    e,
    (a, rhs),
    Acc(
      make,
      a.spec.scale * channels(per_channel[0]),
      np.ones(()),
      np.zeros(()),
      channels(-a.spec.zero * sums),
    ),
  )


def _channels_last(x, ours, outputs: int):
  """Epilogue constants of the float layout, in ours."""
  x = np.asarray(x)
  if x.ndim == 0:
    return x
  full = x.reshape((1,) * (len(ours) - x.ndim) + x.shape)
  moved = full.transpose(ours)
  if all(n == 1 for n in moved.shape[:-1]):
    return moved.reshape(-1)
  return moved


@register('reduce_window_max', 'reduce_window_sum')
def _pool(ctx: Context, e: Any, x: QValue) -> QValue:
  p = e.params
  if any(n != 1 for n in p['base_dilation']):
    raise ctx.unsupported(e, 'base dilation')
  window, strides, padding, dilation = (
    tuple(p[k])
    for k in (
      'window_dimensions',
      'window_strides',
      'padding',
      'window_dilation',
    )
  )
  if window[0] != 1 or window[-1] != 1:
    raise ctx.unsupported(e, 'only windows over the inner axes, [N, *S, C]')
  site = ctx.key(e)
  kind = 'max' if e.name == 'reduce_window_max' else 'sum'
  geometry = {
    'kind': kind,
    'window': window[1:-1],
    'strides': strides[1:-1],
    'padding': tuple((int(lo), int(hi)) for lo, hi in padding[1:-1]),
    'dilation': dilation[1:-1],
    'site': site,
  }
  if kind == 'max':
    return ctx.moved(
      e,
      x,
      x,
      move=lambda codes: conv.q_pool(
        codes, np.int32(1), zero=0, shift=1, out=requantize.Out(), **geometry
      ),
    )
  a = ctx.operand(x)

  def emit(spec: Spec):
    (fixed,) = requantize.to_multiplier(a.spec.scale / spec.scale)
    return conv.q_pool(
      a.codes,
      fixed.multiplier,
      zero=a.spec.zero,
      shift=fixed.shift,
      out=spec.out,
      **geometry,
    )

  return ctx.computed(e, (a,), emit, bits=16 if math.prod(window) > 1 else 8)
