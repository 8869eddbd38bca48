"""Sums, products, tables, embeddings and softmax."""

from __future__ import annotations

import math

import numpy as np

from s8bqat_jax.export import tables
from s8bqat_jax.export.products import factor_of, require_constants
from s8bqat_jax.export.program import Op, UnsupportedExport, Value
from s8bqat_jax.export.tflite.writer import Writer, rule


@rule('q_rescale')
def _rescale(w: Writer, op: Op) -> None:
  (y,), x = op.outs, op.ins[0]
  scale = factor_of(op, 1) * y.scale

  def emit(target: int, activation: int) -> None:
    last = w.like(y) if activation else target
    w.quantize(w.relabelled(x, scale), last)
    if activation:
      w.graph.op('RELU', [last], [target], 2)

  w.saturate(op, emit)


def _binary(w: Writer, op: Op, code: str, ins: list[tuple[Value, float]]):
  """ADD, SUB or MUL; operands are widened unless all is 8 bits.

  Args:
    w: the file.
    op: the operation.
    code: of the operator.
    ins: values, and the scale at which the operation reads each.
  """
  (y,) = op.outs
  narrow = all(v.dtype == np.int8 for v in (y, *(v for v, _ in ins)))
  read = w.relabelled if narrow else w.widened
  operands = [read(v, scale) for v, scale in ins]

  def emit(target: int, activation: int) -> None:
    fused = activation if y.dtype == np.int8 and narrow else 0
    wide = target
    if y.dtype == np.int8 and not narrow:
      # 16-bit operands make a 16-bit result; 2^7 finer than the 8-bit code.
      wide = w.make(y.shape, np.int16, y.scale / 128)
    w.graph.op(
      code, operands, [wide], 2, code.title(), fusedActivationFunction=fused
    )
    if wide != target:
      last = w.like(y) if activation else target
      w.quantize(wide, last)
      if activation:
        w.graph.op('RELU', [last], [target], 2)

  w.saturate(op, emit)


def _meant(v: Value, scale: float, zero: int) -> Value:
  """A constant's meaning is what its reader takes it for."""
  if v.const is None or v.scale is not None:
    return v
  return Value(v.shape, v.dtype, scale, zero, v.const, 'constant')


@rule('q_add')
def _add(w: Writer, op: Op) -> None:
  (y,) = op.outs
  ins, negative = [], []
  for i, zero in enumerate(op.params['zeros']):
    factor = factor_of(op, 2 + i)
    scale = abs(factor) * y.scale
    ins.append((_meant(op.ins[i], scale, zero), scale))
    negative.append(factor < 0)
  if negative == [True, True]:
    raise UnsupportedExport(f'q_add at {op.site}: both operands negated')
  if negative == [True, False]:
    ins.reverse()
  _binary(w, op, 'SUB' if any(negative) else 'ADD', ins)


@rule('q_mul')
def _mul(w: Writer, op: Op) -> None:
  """Only the product of the two scales matters; the first takes it up."""
  (y,), zeros = op.outs, op.params['zeros']
  product = factor_of(op, 2) * y.scale
  if product <= 0:
    raise UnsupportedExport(f'q_mul at {op.site}: a negative factor')
  a, b = op.ins[:2]
  b = _meant(b, product / (a.scale or 1.0), zeros[1])
  a = _meant(a, product / b.scale, zeros[0])
  _binary(w, op, 'MUL', [(a, product / b.scale), (b, b.scale)])


# Codes of the format's fixed 16-bit scale of a sigmoid or tanh.
_UNIT = 2.0**-15


@rule('q_lut')
def _lut(w: Writer, op: Op) -> None:
  require_constants(op, 1)
  x, table = op.ins[0], op.ins[1].const
  (y,), out = op.outs, op.params['out']
  name = tables.identify(x, y, table, out) if y.scale is not None else None
  index = w.index
  if name in ('logistic', 'tanh'):
    code, fixed = (
      name.upper(),
      (1 / 256, -128) if name == 'logistic' else (1 / 128, 0),
    )
    if (x.dtype, y.dtype) == (np.int8, np.int8) and (y.scale, y.zero) == fixed:
      w.graph.op(code, [index(x)], [index(y)], 2)
      return
    same = y.dtype == np.int16 and math.isclose(y.scale, _UNIT, rel_tol=1e-9)
    unit = index(y) if same else w.make(y.shape, np.int16, _UNIT)
    w.graph.op(code, [w.widened(x)], [unit], 3)
    if not same:
      w.quantize(unit, index(y))
  elif name == 'silu':
    gate = w.make(y.shape, np.int16, _UNIT)
    wide = y.dtype == np.int16
    product = index(y) if wide else w.make(y.shape, np.int16, y.scale / 128)
    w.graph.op('LOGISTIC', [w.widened(x)], [gate], 3)
    w.graph.op('MUL', [w.widened(x), gate], [product], 2, 'Mul')
    if not wide:
      w.quantize(product, index(y))
  elif table.shape[0] != 256:
    raise UnsupportedExport(
      f'q_lut at {op.site}: a table of 16-bit codes that is neither a sigmoid, '
      'a tanh nor a swish'
    )
  elif (
    name == 'identity'
    and y.dtype == np.int8
    and (out.low, out.high) == (-128, 127)
  ):
    w.quantize(index(x), index(y))
  elif name in ('gelu', 'gelu_tanh') and y.dtype == np.int8:
    approximate = name == 'gelu_tanh'
    w.graph.op(
      'GELU', [index(x)], [index(y)], 2, 'Gelu', approximate=approximate
    )
  elif name in ('exp', 'elu') and y.dtype == np.int8:
    version = 2 if name == 'exp' else 1
    w.graph.op(name.upper(), [index(x)], [index(y)], version)
  else:
    _gathered(w, op, x, y, table)


def _gathered(w: Writer, op: Op, x: Value, y: Value, table: np.ndarray) -> None:
  """Any 8-bit table, exactly: its codes as indices into a constant."""
  place = w.make(x.shape, np.int32)
  offset = w.constant(np.full((1,), 128, np.int32))
  w.graph.op('ADD', [w.plain(x), offset], [place], 1, 'Add')
  codes = w.constant(table.astype(op.params['out'].dtype), y.scale, y.zero)
  w.graph.op('GATHER', [codes, place], [w.index(y)], 4, 'Gather', axis=0)


@rule('q_embed')
def _embed(w: Writer, op: Op) -> None:
  index, table = op.ins
  require_constants(op, 1)
  (y,) = op.outs
  rows = w.constant(table.const, y.scale, y.zero)
  # The interpreter refuses what our address unit would clip.
  top = w.constant(np.full((1,), table.shape[0] - 1, np.int32))
  bottom = w.constant(np.zeros((1,), np.int32))
  low = w.make(index.shape, np.int32)
  place = w.make(index.shape, np.int32)
  w.graph.op('MINIMUM', [w.index(index), top], [low], 1, 'MaximumMinimum')
  w.graph.op('MAXIMUM', [low, bottom], [place], 1, 'MaximumMinimum')
  w.graph.op('GATHER', [rows, place], [w.index(y)], 4, 'Gather', axis=0)


@rule('q_softmax')
def _softmax(w: Writer, op: Op) -> None:
  x, (y,) = op.ins[0], op.outs
  if op.params['masked']:
    raise UnsupportedExport(
      f'q_softmax at {op.site}: a masked softmax; cut the masked entries out'
    )
  if (x.dtype, y.dtype, y.zero) != (
    np.int8,
    np.int8,
    -128,
  ) or y.scale != 1 / 256:
    raise UnsupportedExport(
      f'q_softmax at {op.site}: only 8 bits, at the scale 1/256'
    )
  # A positive factor before the softmax costs nothing in our program: the
  # table says at which scale it reads the codes.
  beta = tables.exp_scale(op.ins[1].const) / x.scale
  w.graph.op('SOFTMAX', [w.index(x)], [w.index(y)], 2, 'Softmax', beta=beta)
