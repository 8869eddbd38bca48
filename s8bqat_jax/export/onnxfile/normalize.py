"""q_softmax and q_layernorm: our kernels' own integer arithmetic, exactly."""

from __future__ import annotations

import numpy as np

from s8bqat_jax.export.onnxfile.writer import Writer, rule
from s8bqat_jax.export.products import require_constants
from s8bqat_jax.export.program import Op
from s8bqat_jax.integer import norm, softmax


def _last(w: Writer) -> str:
  return w.constant([-1], np.int64)


@rule('q_softmax')
def _softmax(w: Writer, op: Op) -> None:
  require_constants(op, 1)
  x, table = op.ins
  (y,), p = op.outs, op.params
  wide = w.cast(w.name(x), np.int32)
  peak = w.node('ReduceMax', wide, _last(w), keepdims=1)
  distance = w.node('Sub', peak, wide)
  e = w.node('Gather', w.constant(table.const, np.int64), distance)
  if p['masked']:
    masked = w.node('Equal', wide, w.constant(softmax.MASK_CODE, np.int32))
    e = w.node('Where', masked, w.constant(0, np.int64), e)
  total = w.node('ReduceSum', e, _last(w), keepdims=1)
  # A fully masked row has sum zero and stays zero everywhere.
  total = w.node('Max', total, w.constant(1, np.int64))
  one = w.constant(1 << softmax.INVERSE_BITS, np.int64)
  product = w.node('Mul', e, w.node('Div', one, total))
  w.rescaled(product, softmax.INVERSE_BITS - p['bits'], p['out'], y.name)


@rule('q_layernorm')
def _layernorm(w: Writer, op: Op) -> None:
  require_constants(op, 1, 2)
  x, gain, bias = op.ins
  (y,), p, width = op.outs, op.params, op.ins[0].shape[-1]
  whole = lambda n: w.constant(n, np.int64)
  centered = w.centered(x, p['zero'])
  c = w.node('Mul', centered, whole(width))
  if p['center']:
    c = w.node('Sub', c, w.node('ReduceSum', centered, _last(w), keepdims=1))
  bits = 8 * np.dtype(x.dtype).itemsize
  c = w.shifted(c, norm.dropped_bits(width, bits))
  squares = w.node('ReduceSum', w.node('Mul', c, c), _last(w), keepdims=1)
  # Nothing here is negative, so that truncation is the floor.
  v = w.node('Div', squares, whole(width))
  v = w.node('Mul', v, whole(4**norm.ROOT_FRACTION))
  v = w.node('Add', v, whole(p['epsilon']))
  v = w.node('Clip', v, whole(1), whole(2**62 - 1))
  # float64 finds the root but for its last bit; Newton steps from above end on
  # the integer root.
  root = w.cast(w.node('Sqrt', w.cast(v, np.float64)), np.int64)
  root = w.node('Add', root, whole(2))
  for _ in range(2):
    mean = w.node('Div', w.node('Add', root, w.node('Div', v, root)), whole(2))
    root = w.node('Min', root, mean)
  inverse = w.node('Div', whole(1 << norm.INVERSE_BITS), root)
  down = norm.INVERSE_BITS - norm.ROOT_FRACTION - norm.VALUE_BITS
  n = w.shifted(w.node('Mul', c, inverse), down)
  total = w.product(n, gain.const)
  up = 2 ** max(0, p['shift'] - norm.BIAS_BITS)
  offset = np.asarray(bias.const, np.int64) * up
  total = w.node('Add', total, w.constant(offset, np.int64))
  w.rescaled(total, p['shift'], p['out'], y.name)
