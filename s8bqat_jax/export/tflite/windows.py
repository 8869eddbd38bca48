"""q_conv, q_depthwise, q_pool and q_sum.

The format's images are [N, H, W, C]; one spatial axis is a width.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from s8bqat_jax.export.products import (
  Channels,
  channels_of,
  factor_of,
  per_channel,
  require_constants,
  require_narrow,
)
from s8bqat_jax.export.program import Op, UnsupportedExport, Value
from s8bqat_jax.export.tflite import flatbuffer
from s8bqat_jax.export.tflite.writer import Writer, rule


def _source(w: Writer, op: Op) -> Value:
  """What a window reads: widened if its result has 16 bits."""
  x, (y,) = op.ins[0], op.outs
  if x.dtype != np.int8:
    raise UnsupportedExport(f'{op.name} at {op.site}: its input has 16 bits')
  if y.dtype == np.int8:
    return x
  wide = Value(x.shape, np.dtype(np.int16), x.scale, name=x.name)
  w.tensors[wide] = w.widened(x)
  return wide


def _bias(w: Writer, op: Op, c: Channels) -> int:
  """16-bit windows read 64-bit biases (and keep 16 bits of a multiplier)."""
  wide = op.outs[0].dtype == np.int16
  bias = c.bias.astype(np.int64) if wide else c.bias
  return w.constant(bias, c.scale * op.ins[0].scale)


def _image(w: Writer, x: Value, index: int) -> tuple[int, list[int]]:
  """Returns the value as an image, and its shape."""
  shape = list(x.shape)
  if len(shape) == 4:
    return index, shape
  if len(shape) != 3:
    raise UnsupportedExport(
      f'windows over {len(shape) - 2} axes: .tflite knows one or two'
    )
  shape = [shape[0], 1, *shape[1:]]
  image = w.like(x, shape)
  w.reshape(index, image, shape)
  return image, shape


def _padded(w: Writer, x: Value, op: Op, fill: int | None = None):
  """The padded image of a window's input; returns (tensor, shape)."""
  index, shape = _image(w, x, w.index(x))
  pads = [(0, 0)] * (4 - len(x.shape)) + [(0, 0), *op.params['padding'], (0, 0)]
  pads = [(0, 0), *pads[-3:-1], (0, 0)] if len(pads) == 4 else pads
  if any(n < 0 for pair in pads for n in pair):
    raise UnsupportedExport(f'{op.name} at {op.site}: negative padding')
  if not any(n for pair in pads for n in pair):
    return index, shape
  shape = [n + a + b for n, (a, b) in zip(shape, pads)]
  padded = w.like(x, shape)
  amounts = w.constant(np.asarray(pads, np.int32))
  if fill is None:
    w.graph.op('PAD', [index, amounts], [padded], 2, 'Pad')
  else:
    value = w.constant(np.full((1,), fill, x.dtype), x.scale, x.zero)
    w.graph.op('PADV2', [index, amounts, value], [padded], 2, 'PadV2')
  return padded, shape


def _pair(values: Any) -> tuple[int, int]:
  """(height, width) of one or two axes."""
  return (1, *values) if len(values) == 1 else tuple(values)


def _geometry(op: Op) -> dict[str, int]:
  (sh, sw), (dh, dw) = (_pair(op.params[k]) for k in ('strides', 'dilation'))
  return {
    'padding': flatbuffer.schema.Padding.VALID,
    'strideH': sh, 'strideW': sw,
    'dilationHFactor': dh, 'dilationWFactor': dw,
  }  # fmt: skip


def _windowed(
  w: Writer, op: Op, code: str, ins: list[int], options: str, **fields: Any
) -> None:
  """Emits an operator over images and brings its result to our shape."""
  (y,) = op.outs
  shape = list(y.shape)
  if len(shape) == 3:
    shape.insert(1, 1)

  def emit(target: int, activation: int) -> None:
    last = target if list(y.shape) == shape else w.like(y, shape)
    w.graph.op(
      code,
      ins,
      [last],
      3,
      options,
      fusedActivationFunction=activation,
      **fields,
    )
    if last != target:
      w.reshape(last, target, y.shape)

  w.saturate(op, emit)


@rule('q_conv')
def _conv(w: Writer, op: Op) -> None:
  require_constants(op, 1, 2, 3)
  kernel = op.ins[1].const
  *window, inputs, outputs = kernel.shape
  matrix = np.moveaxis(kernel, -1, 0).reshape(outputs, -1)
  c = channels_of(op, matrix, per_channel(op, outputs))
  filters = c.weights.reshape(outputs, *_pair(window), inputs)
  image, _ = _padded(w, _source(w, op), op)
  weights = w.constant(filters, c.scale)
  bias = _bias(w, op, c)
  _windowed(w, op, 'CONV_2D', [image, weights, bias], 'Conv2D', **_geometry(op))


@rule('q_depthwise')
def _depthwise(w: Writer, op: Op) -> None:
  require_constants(op, 1, 2, 3)
  x, kernel = op.ins[0], op.ins[1].const
  *window, channels = kernel.shape
  rows = kernel.reshape(-1, channels).T
  c = channels_of(op, rows, per_channel(op, channels))
  filters = c.weights.T.reshape(1, *_pair(window), channels)
  _depthwise_op(w, op, x, filters, c)


def _depthwise_op(w: Writer, op: Op, x: Value, filters, c: Channels) -> None:
  image, _ = _padded(w, _source(w, op), op)
  weights = w.constant(filters, c.scale, axis=3)
  bias = _bias(w, op, c)
  _windowed(
    w,
    op,
    'DEPTHWISE_CONV_2D',
    [image, weights, bias],
    'DepthwiseConv2D',
    depthMultiplier=1,
    **_geometry(op),
  )


@rule('q_pool')
def _pool(w: Writer, op: Op) -> None:
  """A maximum; or a sum, which is a depthwise product with ones."""
  x, p = op.ins[0], op.params
  if p['kind'] == 'sum':
    window, channels = _pair(p['window']), x.shape[-1]
    ratio = factor_of(op, 1)
    ones = np.ones((channels, math.prod(window)), np.int8)
    scale = np.asarray([ratio * op.outs[0].scale / x.scale])
    c = Channels(ones, np.zeros(channels, np.int32), scale)
    _depthwise_op(w, op, x, np.ones((1, *window, channels), np.int8), c)
    return
  require_narrow(op)
  if any(d != 1 for d in p['dilation']):
    raise UnsupportedExport(f'q_pool at {op.site}: a dilated maximum')
  image, _ = _padded(w, x, op, fill=-128)
  (sh, sw), (fh, fw) = (_pair(p[k]) for k in ('strides', 'window'))
  _windowed(
    w, op, 'MAX_POOL_2D', [image], 'Pool2D',
    padding=flatbuffer.schema.Padding.VALID,
    strideH=sh, strideW=sw, filterHeight=fh, filterWidth=fw,
  )  # fmt: skip


@rule('q_sum')
def _sum(w: Writer, op: Op) -> None:
  x = op.ins[0]
  (y,) = op.outs
  axes = w.constant(np.asarray(op.params['over'], np.int32))
  # LiteRT takes 8 bits in and 16 out, and computes something else.
  # What comes of a code is what the sum says, not what the code meant before.
  scale = factor_of(op, 1) * y.scale
  read = w.widened if y.dtype == np.int16 else w.relabelled
  source = read(x, scale)

  def emit(target: int, activation: int) -> None:
    summed = target if not activation else w.like(y)
    w.graph.op('SUM', [source, axes], [summed], 2, 'Reducer', keepDims=False)
    if activation:
      w.graph.op('RELU', [summed], [target], 2)

  w.saturate(op, emit)
