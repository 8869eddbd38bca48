"""q_dot, q_conv, q_depthwise, q_pool and q_sum."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from s8bqat_jax.export.onnxfile.writer import Writer, rule
from s8bqat_jax.export.products import (
  Channels,
  Matrix,
  as_matrix,
  channels_of,
  factor_of,
  per_channel,
  require_constants,
  require_narrow,
)
from s8bqat_jax.export.program import Op, UnsupportedExport, Value


@rule('q_dot')
def _dot(w: Writer, op: Op) -> None:
  require_constants(op, 2, 3)
  batch = op.params['dimension_numbers'][1][0]
  if batch or all(v.const is None for v in op.ins[:2]):
    _batched(w, op)
    return
  m = as_matrix(op)
  (y,), flat = op.outs, w.name(m.x)
  if list(m.order) != sorted(m.order):
    flat = w.transpose(flat, m.order)
  rows, depth, channels = math.prod(m.rows), m.weights.shape[1], len(m.weights)
  if [m.x.shape[i] for i in m.order] != [rows, depth]:
    flat = w.reshape(flat, (rows, depth))
  result = [rows, channels]
  direct = list(y.shape) == result
  last = y.name if direct else f'{y.name}_flat'
  if y.dtype == np.int8 and y.scale is not None:
    _gemm(w, op, m, flat, last)
  else:
    _exact(w, op, m, flat, last)
  if direct:
    return
  if m.const_first:
    last = w.transpose(last, (1, 0))
  w.reshape(last, y.shape, to=y.name)


def _gemm(w: Writer, op: Op, m: Matrix, flat: str, to: str) -> None:
  (y,), out = op.outs, op.params['out']
  c = channels_of(op._replace(ins=(m.x, *op.ins[1:])), m.weights, m.per_result)
  zero = lambda v: w.constant(np.asarray(v) + 128, np.uint8)
  clipped = (out.low, out.high) != (-128, 127)
  made = w.node(
    'QGemm', w.unsigned(flat), w.constant(m.x.scale, np.float32),
    zero(m.x.zero), w.unsigned(w.constant(c.weights.T)),
    w.constant(_one_or_all(c.scale), np.float32),
    zero(np.zeros(_one_or_all(c.scale).shape)), w.constant(c.bias),
    w.constant(y.scale, np.float32), zero(out.zero),
    domain='com.microsoft', alpha=1.0, transA=0, transB=0,
  )  # fmt: skip
  w.signed(made, f'{to}_wide' if clipped else to)
  if clipped:
    _clipped(w, f'{to}_wide', out, to)


def _one_or_all(scale: np.ndarray) -> np.ndarray:
  return scale.reshape(()) if scale.size == 1 else scale


def _clipped(w: Writer, name: str, out: Any, to: str) -> None:
  low, high = (w.constant(b, np.int8) for b in (out.low, out.high))
  w.node('Clip', name, low, high, to=to)


def _exact(w: Writer, op: Op, m: Matrix, flat: str, to: str) -> None:
  """int32 accumulators, then our own rescaling; our bias holds the zero."""
  p = op.params
  accumulator = _product(w, flat, w.constant(m.weights.T), (0, 0))
  bias = w.constant(m.per_result(op.ins[2].const), np.int32)
  accumulator = w.node('Add', accumulator, bias)
  multiplier = m.per_result(op.ins[3].const)
  w.requantized(accumulator, multiplier, p['shift'], p['out'], to)


def _product(w: Writer, left: str, right: str, zeros: Any) -> str:
  """Accumulators of int8 codes.

  ONNX Runtime's product of signed numbers has no quick kernel on x86, and that
  of unsigned by signed ones saturates without VNNI: both are made unsigned.
  """
  unsigned = [w.unsigned(name) for name in (left, right)]
  zeros = [w.constant(z + 128, np.uint8) for z in zeros]
  return w.node('MatMulInteger', *unsigned, *zeros)


def _batched(w: Writer, op: Op) -> None:
  """A product of two values, as in attention, or of one per head: exact."""
  a, b, bias, multiplier = op.ins
  (y,), p = op.outs, op.params
  (ac, bc), (ab, bb) = p['dimension_numbers']

  def prepared(v: Value, batch, contract, last: bool) -> str:
    free = [i for i in range(len(v.shape)) if i not in (*batch, *contract)]
    tail = [*free, *contract] if last else [*contract, *free]
    sizes = [math.prod(v.shape[i] for i in g) for g in (free, contract)]
    shape = [v.shape[i] for i in batch] + (sizes if last else sizes[::-1])
    return w.reshape(w.transpose(w.name(v), [*batch, *tail]), shape)

  left, right = prepared(a, ab, ac, True), prepared(b, bb, bc, False)
  accumulator = _product(w, left, right, p['zeros'])
  accumulator = w.reshape(accumulator, y.shape)
  if np.any(bias.const):
    accumulator = w.node('Add', accumulator, w.name(bias))
  w.requantized(accumulator, multiplier.const, p['shift'], p['out'], y.name)


# Windows: ONNX's images are [N, C, *S], its kernels [O, I / groups, *S].


@rule('q_conv')
def _conv(w: Writer, op: Op) -> None:
  require_constants(op, 1, 2, 3)
  kernel = op.ins[1].const
  *window, inputs, outputs = kernel.shape
  rows = np.moveaxis(kernel, -1, 0).reshape(outputs, -1)
  c = channels_of(op, rows, per_channel(op, outputs))
  filters = c.weights.reshape(outputs, *window, inputs)
  _linear_conv(w, op, c, np.moveaxis(filters, -1, 1), op.params['groups'])


@rule('q_depthwise')
def _depthwise(w: Writer, op: Op) -> None:
  require_constants(op, 1, 2, 3)
  kernel = op.ins[1].const
  *window, channels = kernel.shape
  rows = kernel.reshape(-1, channels).T
  c = channels_of(op, rows, per_channel(op, channels))
  _linear_conv(w, op, c, c.weights.reshape(channels, 1, *window), channels)


def _linear_conv(w: Writer, op: Op, c: Channels, filters, groups: int) -> None:
  require_narrow(op)
  x, (y,), p = op.ins[0], op.outs, op.params
  out, scale = p['out'], _one_or_all(c.scale)
  zero = lambda v: w.constant(v, np.int8)
  made = w.node(
    'QLinearConv', _channels_first(w, x), w.constant(x.scale, np.float32),
    zero(x.zero), w.constant(filters), w.constant(scale, np.float32),
    zero(np.zeros(scale.shape)), w.constant(y.scale, np.float32),
    zero(out.zero), w.constant(c.bias),
    group=groups, **_window(p, len(x.shape) - 2), dilations=p['dilation'],
  )  # fmt: skip
  if (out.low, out.high) != (-128, 127):
    clipped = f'{y.name}_clipped'
    _clipped(w, made, out, clipped)
    made = clipped
  _channels_last(w, made, y)


def _window(p: dict[str, Any], axes: int) -> dict[str, Any]:
  if any(n < 0 for pair in p['padding'] for n in pair):
    raise UnsupportedExport('windows with negative padding')
  pads = [pair[side] for side in (0, 1) for pair in p['padding']]
  assert len(pads) == 2 * axes
  return {'strides': p['strides'], 'pads': pads}


def _channels_first(w: Writer, x: Value) -> str:
  last = len(x.shape) - 1
  return w.transpose(w.name(x), (0, last, *range(1, last)))


def _channels_last(w: Writer, name: str, y: Value) -> None:
  last = len(y.shape) - 1
  w.transpose(name, (0, *range(2, last + 1), 1), to=y.name)


@rule('q_pool')
def _pool(w: Writer, op: Op) -> None:
  """A maximum; or a sum, which is a depthwise product with ones."""
  x, (y,), p = op.ins[0], op.outs, op.params
  if p['kind'] == 'sum':
    require_constants(op, 1)
    if (x.dtype, y.dtype) == (np.int8, np.int16):
      _exact_sums(w, op)
      return
    channels = x.shape[-1]
    ratio = factor_of(op, 1)
    ones = np.ones((channels, 1, *p['window']), np.int8)
    scale = np.asarray([ratio * y.scale / x.scale])
    c = Channels(ones, np.zeros(channels, np.int32), scale)
    _linear_conv(w, op, c, ones, channels)
    return
  require_narrow(op)
  made = w.node(
    'MaxPool', _channels_first(w, x), kernel_shape=p['window'],
    dilations=p['dilation'], **_window(p, len(x.shape) - 2),
  )  # fmt: skip
  _channels_last(w, made, y)


def _exact_sums(w: Writer, op: Op) -> None:
  """int32 sums of windows, then our own rescaling."""
  x, (y,), p = op.ins[0], op.outs, op.params
  last = len(x.shape) - 1
  unsigned = w.transpose(w.unsigned(w.name(x)), (0, last, *range(1, last)))
  ones = w.constant(np.ones((x.shape[-1], 1, *p['window']), np.uint8))
  zeros = [w.constant(z, np.uint8) for z in (p['zero'] + 128, 0)]
  sums = w.node(
    'ConvInteger', unsigned, ones, *zeros, group=x.shape[-1],
    dilations=p['dilation'], **_window(p, last - 1),
  )  # fmt: skip
  narrow = f'{y.name}_first'
  multiplier = op.ins[1].const
  w.requantized(sums, multiplier, p['shift'], p['out'], narrow)
  _channels_last(w, narrow, y)


@rule('q_sum')
def _sum(w: Writer, op: Op) -> None:
  require_constants(op, 1)
  x, multiplier = op.ins
  (y,), p = op.outs, op.params
  axes = w.constant(p['over'], np.int64)
  wide = w.centered(x, p['zero'], np.int32)
  total = w.node('ReduceSum', wide, axes, keepdims=0)
  w.requantized(total, multiplier.const, p['shift'], p['out'], y.name)
