"""Sums, products, tables and embeddings: exact."""

from __future__ import annotations

import numpy as np

from s8bqat_jax.export.onnxfile.writer import Writer, rule
from s8bqat_jax.export.products import require_constants
from s8bqat_jax.export.program import Op


@rule('q_rescale')
def _rescale(w: Writer, op: Op) -> None:
  require_constants(op, 1)
  x, multiplier = op.ins
  (y,), p = op.outs, op.params
  wide = w.centered(x, p['zero'])
  w.requantized(wide, multiplier.const, p['shift'], p['out'], y.name)


@rule('q_add')
def _add(w: Writer, op: Op) -> None:
  require_constants(op, 2, 3)
  (y,), p = op.outs, op.params
  terms = [
    w.product(w.centered(v, zero), m.const)
    for v, m, zero in zip(op.ins[:2], op.ins[2:], p['zeros'])
  ]
  total = w.node('Add', *terms)
  w.rescaled(total, p['shift'], p['out'], y.name)


@rule('q_mul')
def _mul(w: Writer, op: Op) -> None:
  require_constants(op, 2)
  (y,), p = op.outs, op.params
  factors = [w.centered(v, z) for v, z in zip(op.ins[:2], p['zeros'])]
  product = w.node('Mul', *factors)
  w.requantized(product, op.ins[2].const, p['shift'], p['out'], y.name)


@rule('q_lut')
def _lut(w: Writer, op: Op) -> None:
  require_constants(op, 1)
  x, table = op.ins
  entries = table.const.astype(op.params['out'].dtype)
  index = w.cast(w.name(x), np.int32)
  index = w.node('Add', index, w.constant(len(entries) // 2, np.int32))
  w.node('Gather', w.constant(entries), index, to=op.outs[0].name)


@rule('q_embed')
def _embed(w: Writer, op: Op) -> None:
  require_constants(op, 1)
  index, table = op.ins
  top = table.shape[0] - 1
  bounds = [w.constant(b, np.int64) for b in (0, top)]
  place = w.node('Clip', w.cast(w.name(index), np.int64), *bounds)
  w.node('Gather', w.name(table), place, to=op.outs[0].name)
