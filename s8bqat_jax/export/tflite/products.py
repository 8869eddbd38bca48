"""q_dot: FULLY_CONNECTED with constant weights, else BATCH_MATMUL."""

from __future__ import annotations

import math

import numpy as np

from s8bqat_jax.export.products import (
  as_matrix,
  channels_of,
  factor_of,
  require_constants,
)
from s8bqat_jax.export.program import Op, UnsupportedExport, Value
from s8bqat_jax.export.tflite.writer import Writer, rule


@rule('q_dot')
def _dot(w: Writer, op: Op) -> None:
  require_constants(op, 2, 3)
  if all(v.const is None for v in op.ins[:2]):
    _batch_matmul(w, op)
    return
  m = as_matrix(op)
  (y,), x = op.outs, m.x
  channels = channels_of(
    op._replace(ins=(x, *op.ins[1:])), m.weights, m.per_result
  )
  source = w.widened(x) if y.dtype == np.int16 else w.index(x)
  dtype, zero = (np.int16, 0) if y.dtype == np.int16 else (x.dtype, x.zero)
  order = list(m.order)
  if order != sorted(order):
    moved = w.make([x.shape[i] for i in order], dtype, x.scale, zero)
    w.transpose(source, moved, order)
    source = moved
  flat = [math.prod(m.rows), m.weights.shape[1]]
  if [x.shape[i] for i in order] != flat:
    moved = w.make(flat, dtype, x.scale, zero)
    w.reshape(source, moved, flat)
    source = moved

  def emit(target: int, activation: int) -> None:
    result = [math.prod(m.rows), len(m.weights)]
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
    if last != target and m.const_first:
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

  left_scale = factor_of(op, 3) * y.scale / b.scale
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
