"""What moves or picks codes, and plain integers."""

from __future__ import annotations

import numpy as np

from s8bqat_jax.export.program import Op, UnsupportedExport, Value
from s8bqat_jax.export.tflite import flatbuffer
from s8bqat_jax.export.tflite.writer import Writer, rule


@rule('reshape', 'squeeze', 'copy')
def _reshape(w: Writer, op: Op) -> None:
  (y,) = op.outs
  w.reshape(w.index(op.ins[0]), w.index(y), y.shape)


@rule('transpose')
def _transpose(w: Writer, op: Op) -> None:
  x, order = op.ins[0], op.params['permutation']
  kept = [i for i in order if x.shape[i] > 1]
  if kept == sorted(kept):  # Only axes of length 1 move.
    _reshape(w, op)
  else:
    w.transpose(w.index(x), w.index(op.outs[0]), order)


@rule('broadcast_in_dim')
def _broadcast(w: Writer, op: Op) -> None:
  x, (y,) = op.ins[0], op.outs
  shape = [1] * len(y.shape)
  for i, n in zip(op.params['broadcast_dimensions'], x.shape):
    shape[i] = n
  if shape == list(y.shape):
    _reshape(w, op)
    return
  spread = w.like(y, shape)
  w.reshape(w.index(x), spread, shape)
  times = np.asarray([b // a for a, b in zip(shape, y.shape)], np.int32)
  w.graph.op('TILE', [spread, w.constant(times)], [w.index(y)], 2)


@rule('slice')
def _slice(w: Writer, op: Op) -> None:
  p = op.params
  strides = p['strides'] or (1,) * len(p['start_indices'])
  if set(strides) == {1}:
    begin = w.constant(np.asarray(p['start_indices'], np.int32))
    size = w.constant(np.asarray(op.outs[0].shape, np.int32))
    ins = [w.index(op.ins[0]), begin, size]
    w.graph.op('SLICE', ins, [w.index(op.outs[0])], 2, 'Slice')
    return
  bounds = [
    w.constant(np.asarray(b, np.int32))
    for b in (p['start_indices'], p['limit_indices'], strides)
  ]
  ins = [w.index(op.ins[0]), *bounds]
  w.graph.op('STRIDED_SLICE', ins, [w.index(op.outs[0])], 2, 'StridedSlice')


@rule('split')
def _split(w: Writer, op: Op) -> None:
  (x,), axis, start = op.ins, op.params['axis'], 0
  for y in op.outs:
    begin = np.zeros(len(x.shape), np.int32)
    begin[axis] = start
    start += y.shape[axis]
    ins = [
      w.index(x),
      w.constant(begin),
      w.constant(np.asarray(y.shape, np.int32)),
    ]
    w.graph.op('SLICE', ins, [w.index(y)], 2, 'Slice')


@rule('unstack')
def _unstack(w: Writer, op: Op) -> None:
  (x,), axis = op.ins, op.params['axis']
  for i, y in enumerate(op.outs):
    begin, size = (
      np.zeros(len(x.shape), np.int32),
      np.asarray(x.shape, np.int32),
    )
    begin[axis], size[axis] = i, 1
    part = w.like(y, size.tolist())
    ins = [w.index(x), w.constant(begin), w.constant(size)]
    w.graph.op('SLICE', ins, [part], 2, 'Slice')
    w.reshape(part, w.index(y), y.shape)


def _concatenated(w: Writer, y: Value, parts: list[int], axis: int) -> None:
  w.graph.op(
    'CONCATENATION', parts, [w.index(y)], 2, 'Concatenation', axis=axis
  )


@rule('concatenate')
def _concatenate(w: Writer, op: Op) -> None:
  (y,) = op.outs
  parts = [w.operand(v, y) for v in op.ins]
  _concatenated(w, y, parts, op.params['dimension'])


@rule('stack')
def _stack(w: Writer, op: Op) -> None:
  (y,), axis, parts = op.outs, op.params['axis'], []
  for v in op.ins:
    shape = list(v.shape)
    shape.insert(axis, 1)
    part = w.like(y, shape)
    w.reshape(w.operand(v, y), part, shape)
    parts.append(part)
  _concatenated(w, y, parts, axis)


@rule('pad')
def _pad(w: Writer, op: Op) -> None:
  x, fill = op.ins
  (y,), config = op.outs, op.params['padding_config']
  if fill.const is None or any(i or lo < 0 or hi < 0 for lo, hi, i in config):
    raise UnsupportedExport('pad: only constants around a value')
  value = w.constant(fill.const.reshape(1), y.scale, y.zero)
  amounts = w.constant(np.asarray([c[:2] for c in config], np.int32))
  w.graph.op('PADV2', [w.index(x), amounts, value], [w.index(y)], 2, 'PadV2')


@rule('select_n')
def _select(w: Writer, op: Op) -> None:
  which, off, on = op.ins
  (y,) = op.outs
  if which.dtype != np.bool_:
    raise UnsupportedExport('select_n: only a choice between two values')
  ins = [w.index(which), w.operand(on, y), w.operand(off, y)]
  w.graph.op('SELECT_V2', ins, [w.index(y)], 1, 'SelectV2')


# Plain integers: label ids and what is computed from them.

_PLAIN = {
  'add': ('ADD', 'Add'), 'sub': ('SUB', 'Sub'), 'mul': ('MUL', 'Mul'),
  'max': ('MAXIMUM', 'MaximumMinimum'), 'min': ('MINIMUM', 'MaximumMinimum'),
}  # fmt: skip
_COMPARISONS = {
  'lt': ('LESS', 'Less'), 'le': ('LESS_EQUAL', 'LessEqual'),
  'gt': ('GREATER', 'Greater'), 'ge': ('GREATER_EQUAL', 'GreaterEqual'),
  'eq': ('EQUAL', 'Equal'), 'ne': ('NOT_EQUAL', 'NotEqual'),
}  # fmt: skip


@rule(*_PLAIN)
def _plain(w: Writer, op: Op) -> None:
  code, options = _PLAIN[op.name]
  (y,) = op.outs
  # Codes of one meaning may be compared, not added.
  like = next((v for v in op.ins if v.scale is not None), y)
  if like.scale is not None and op.name in ('add', 'sub', 'mul'):
    raise UnsupportedExport(f'{op.name} on the codes of real values')
  ins = [w.operand(v, like) for v in op.ins]
  w.graph.op(code, ins, [w.index(y)], 1, options)


@rule(*_COMPARISONS)
def _compare(w: Writer, op: Op) -> None:
  """As plain integers: of codes, the interpreter would compare rescaled ones.

  It ends the process where their scale is 1 or more, and takes neighbours for
  equal where it is below 2^-8.
  """
  code, options = _COMPARISONS[op.name]
  ins = [w.plain(v) for v in op.ins]
  w.graph.op(code, ins, [w.index(op.outs[0])], 1, options)


_LOGIC = {
  'and': ('LOGICAL_AND', 'LogicalAnd'), 'or': ('LOGICAL_OR', 'LogicalOr'),
  'not': ('LOGICAL_NOT', 'LogicalNot'), 'xor': ('NOT_EQUAL', 'NotEqual'),
}  # fmt: skip


@rule(*_LOGIC)
def _logic(w: Writer, op: Op) -> None:
  if any(v.dtype != np.bool_ for v in op.ins):
    raise UnsupportedExport(f'{op.name}: only of truth values, not of bits')
  code, options = _LOGIC[op.name]
  ins = [w.index(v) for v in op.ins]
  w.graph.op(code, ins, [w.index(op.outs[0])], 1, options)


@rule('convert_element_type')
def _convert(w: Writer, op: Op) -> None:
  (x,), (y,) = op.ins, op.outs
  w.cast(w.index(x), w.index(y), x.dtype, y.dtype)


@rule('reduce_max', 'reduce_min')
def _extreme(w: Writer, op: Op) -> None:
  x, (y,) = op.ins[0], op.outs
  axes = w.constant(np.asarray(op.params['axes'], np.int32))
  w.graph.op(
    op.name.upper(), [w.index(x), axes], [w.index(y)],
    3 if x.dtype == np.int16 else 2, 'Reducer', keepDims=False,
  )  # fmt: skip


@rule('rev')
def _reverse(w: Writer, op: Op) -> None:
  """One axis at a time, as the interpreter has it."""
  (y,), axes = op.outs, op.params['dimensions']
  source = w.index(op.ins[0])
  for i, axis in enumerate(axes):
    target = w.index(y) if i == len(axes) - 1 else w.like(y)
    which = w.constant(np.asarray([axis], np.int32))
    w.graph.op('REVERSE_V2', [source, which], [target], 3, 'ReverseV2')
    source = target


_PLACES = {'argmax': ('ARG_MAX', 'ArgMax'), 'argmin': ('ARG_MIN', 'ArgMin')}


@rule(*_PLACES)
def _place_of_extreme(w: Writer, op: Op) -> None:
  (axis,), (y,) = op.params['axes'], op.outs
  code, options = _PLACES[op.name]
  w.graph.op(
    code, [w.index(op.ins[0]), w.constant(np.asarray(axis, np.int32))],
    [w.index(y)], 2, options, outputType=flatbuffer.schema.TensorType.INT32,
  )  # fmt: skip
