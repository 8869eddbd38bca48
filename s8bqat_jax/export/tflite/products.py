"""q_dot: FULLY_CONNECTED with constant weights, else BATCH_MATMUL."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from s8bqat_jax.export.program import Op, UnsupportedExport, Value
from s8bqat_jax.export.tflite.writer import Writer, require_constants, rule


class Channels(NamedTuple):
  """A product's constants, channels last, as the format wants them."""

  weights: np.ndarray
  bias: np.ndarray
  scale: np.ndarray


def channels_of(op: Op, weights_NxK: np.ndarray, per_result: Any) -> Channels:
  """Weights, bias and weight scales per output channel.

  A negative multiplier (a BatchNorm's) moves into the weights' signs, since
  scales are positive; a zero one makes the channel's weights zero.

  Args:
    op: a product (x, weights, bias, multiplier).
    weights_NxK: its weights, output channels first.
    per_result: broadcastable constant -> [N], or an error.
  """
  x, (y,) = op.ins[0], op.outs
  _, _, bias, multiplier = (v.const for v in op.ins)
  bias = per_result(bias).astype(np.int64)
  ratio = np.ldexp(
    per_result(multiplier).astype(np.float64), -op.params['shift']
  )
  w = weights_NxK.astype(np.int64)
  flip = np.where(ratio < 0, -1, np.where(ratio == 0, 0, 1))
  w = w * flip[:, None]
  # Our bias holds what cancels the zero point; the interpreter does it itself.
  bias = bias * flip + x.zero * w.sum(axis=1)
  if np.abs(bias).max(initial=0) >= 2**31 or w.max(initial=0) > 127:
    raise UnsupportedExport(
      f'{op.name} at {op.site}: its bias or its weights with the sign of the '
      'multiplier leave their integers'
    )
  ratio = np.where(ratio == 0, 1.0, np.abs(ratio))
  scale = ratio * y.scale / x.scale
  if np.all(scale == scale[0]):
    scale = scale[:1]
  return Channels(w.astype(np.int8), bias.astype(np.int32), scale)


@rule('q_dot')
def _dot(w: Writer, op: Op) -> None:
  require_constants(op, 2, 3)
  lhs, rhs = op.ins[:2]
  (lc, rc), (lb, rb) = op.params['dimension_numbers']
  if lhs.const is None and rhs.const is None:
    _batch_matmul(w, op)
    return
  if lb or rb:
    raise UnsupportedExport(
      f'q_dot at {op.site}: a batched product with constant weights'
    )
  const_first = lhs.const is not None
  x, weight = (rhs, lhs) if const_first else (lhs, rhs)
  xc, wc = (rc, lc) if const_first else (lc, rc)
  x_free = [i for i in range(len(x.shape)) if i not in xc]
  w_free = [i for i in range(len(weight.shape)) if i not in wc]
  depth = math.prod(x.shape[i] for i in xc)
  rows = [x.shape[i] for i in x_free]
  matrix = weight.const.transpose(*w_free, *wc).reshape(-1, depth)
  (y,) = op.outs
  first = len(w_free) if const_first else 0
  own = [i for i in range(len(y.shape)) if not first <= i < first + len(rows)]

  def per_result(c: np.ndarray) -> np.ndarray:
    full = c.reshape((1,) * (len(y.shape) - c.ndim) + c.shape)
    if any(full.shape[first + i] > 1 for i in range(len(rows))):
      raise UnsupportedExport(
        f'q_dot at {op.site}: a bias or scale that differs between rows'
      )
    shape = [y.shape[i] if i in own else 1 for i in range(len(y.shape))]
    return np.broadcast_to(full, shape).reshape(-1)

  channels = channels_of(
    op._replace(ins=(x, weight, *op.ins[2:])), matrix, per_result
  )
  source = w.widened(x) if y.dtype == np.int16 else w.index(x)
  dtype, zero = (np.int16, 0) if y.dtype == np.int16 else (x.dtype, x.zero)
  order = [*x_free, *xc]
  if order != sorted(order):
    moved = w.make([x.shape[i] for i in order], dtype, x.scale, zero)
    w.transpose(source, moved, order)
    source = moved
  flat = [math.prod(rows), depth]
  if [x.shape[i] for i in order] != flat:
    moved = w.make(flat, dtype, x.scale, zero)
    w.reshape(source, moved, flat)
    source = moved

  def emit(target: int, activation: int) -> None:
    result = [math.prod(rows), matrix.shape[0]]
    last = target if list(y.shape) == result else w.like(y, result)
    w.graph.op(
      'FULLY_CONNECTED',
      [
        source,
        w.constant(channels.weights, channels.scale),
        w.constant(channels.bias, channels.scale * x.scale),
      ],
      [last],
      4 if y.dtype == np.int8 else 7,
      'FullyConnected',
      fusedActivationFunction=activation,
      keepNumDims=True,
    )
    if last != target and const_first and w_free and x_free:
      turned = w.like(y, result[::-1])
      w.transpose(last, turned, [1, 0])
      last = turned
    if last != target:
      w.reshape(last, target, y.shape)

  w.saturate(op, emit)


def _batch_matmul(w: Writer, op: Op) -> None:
  """A product of two values, as in attention."""
  a, b, bias, multiplier = op.ins
  (y,) = op.outs
  (ac, bc), (ab, bb) = op.params['dimension_numbers']
  if np.any(bias.const) or multiplier.const.size > 1 or y.dtype != np.int8:
    raise UnsupportedExport(
      f'q_dot at {op.site}: a product of two values with a bias, a scale per '
      'channel or a 16-bit result'
    )
  if op.params['zeros'] != (a.zero, b.zero):
    raise AssertionError(
      f'zero points {op.params["zeros"]}: {a.zero}, {b.zero}'
    )

  def prepared(
    v: Value, scale: float, batch, contract, contract_last: bool
  ) -> int:
    free = [i for i in range(len(v.shape)) if i not in (*batch, *contract)]
    tail = [*free, *contract] if contract_last else [*contract, *free]
    order = [*batch, *tail]
    index = w.relabelled(v, scale)
    if order != sorted(order):
      shape = [v.shape[i] for i in order]
      moved = w.make(shape, v.dtype, scale, v.zero)
      w.transpose(index, moved, order)
      index = moved
    sizes = [math.prod(v.shape[i] for i in g) for g in (free, contract)]
    if not contract_last:
      sizes.reverse()
    shape = [*(v.shape[i] for i in batch), *sizes]
    if [v.shape[i] for i in order] == shape:
      return index
    merged = w.make(shape, v.dtype, scale, v.zero)
    w.reshape(index, merged, shape)
    return merged

  ratio = math.ldexp(float(multiplier.const.reshape(())), -op.params['shift'])
  left_scale = ratio * y.scale / b.scale
  left = prepared(a, left_scale, ab, ac, True)
  right = prepared(b, b.scale, bb, bc, False)
  batch = [a.shape[i] for i in ab]
  m = math.prod(n for i, n in enumerate(a.shape) if i not in (*ab, *ac))
  n = math.prod(n for i, n in enumerate(b.shape) if i not in (*bb, *bc))

  def emit(target: int, activation: int) -> None:
    if activation:
      raise UnsupportedExport(f'q_dot at {op.site}: a ReLU after it')
    shape = [*batch, m, n]
    last = target if list(y.shape) == shape else w.like(y, shape)
    w.graph.op(
      'BATCH_MATMUL',
      [left, right],
      [last],
      2,
      'BatchMatMul',
      adjX=False,
      adjY=False,
    )
    if last != target:
      w.reshape(last, target, y.shape)

  w.saturate(op, emit)
