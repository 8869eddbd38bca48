"""What moves or picks codes, and plain integers."""

from __future__ import annotations

import numpy as np

from s8bqat_jax.export.onnxfile.writer import Writer, rule
from s8bqat_jax.export.program import Op, UnsupportedExport, Value


@rule('reshape', 'squeeze', 'copy')
def _reshape(w: Writer, op: Op) -> None:
  (y,) = op.outs
  w.reshape(w.name(op.ins[0]), y.shape, to=y.name)


@rule('transpose')
def _transpose(w: Writer, op: Op) -> None:
  order = op.params['permutation']
  w.transpose(w.name(op.ins[0]), order, to=op.outs[0].name)


@rule('broadcast_in_dim')
def _broadcast(w: Writer, op: Op) -> None:
  x, (y,) = op.ins[0], op.outs
  shape = [1] * len(y.shape)
  for i, n in zip(op.params['broadcast_dimensions'], x.shape):
    shape[i] = n
  spread = w.reshape(w.name(x), shape)
  w.node('Expand', spread, w.constant(y.shape, np.int64), to=y.name)


def _cut(w: Writer, x: Value, starts, ends, steps, to: str | None) -> str:
  axes = range(len(x.shape))
  bounds = [w.constant(list(b), np.int64) for b in (starts, ends, axes, steps)]
  return w.node('Slice', w.name(x), *bounds, to=to)


@rule('slice')
def _slice(w: Writer, op: Op) -> None:
  p = op.params
  steps = p['strides'] or (1,) * len(p['start_indices'])
  starts, ends = p['start_indices'], p['limit_indices']
  _cut(w, op.ins[0], starts, ends, steps, op.outs[0].name)


@rule('split', 'unstack')
def _split(w: Writer, op: Op) -> None:
  (x,), axis, start = op.ins, op.params['axis'], 0
  for y in op.outs:
    starts, ends = [0] * len(x.shape), list(x.shape)
    starts[axis] = start
    start += y.shape[axis] if op.name == 'split' else 1
    ends[axis] = start
    steps = [1] * len(ends)
    if op.name == 'split':
      _cut(w, x, starts, ends, steps, y.name)
    else:
      w.reshape(_cut(w, x, starts, ends, steps, None), y.shape, to=y.name)


@rule('concatenate')
def _concatenate(w: Writer, op: Op) -> None:
  parts = [w.name(v) for v in op.ins]
  w.node('Concat', *parts, to=op.outs[0].name, axis=op.params['dimension'])


@rule('stack')
def _stack(w: Writer, op: Op) -> None:
  (y,), axis, parts = op.outs, op.params['axis'], []
  for v in op.ins:
    shape = list(v.shape)
    shape.insert(axis, 1)
    parts.append(w.reshape(w.name(v), shape))
  w.node('Concat', *parts, to=y.name, axis=axis)


@rule('pad')
def _pad(w: Writer, op: Op) -> None:
  x, fill = op.ins
  (y,), config = op.outs, op.params['padding_config']
  if any(inner or lo < 0 or hi < 0 for lo, hi, inner in config):
    raise UnsupportedExport('pad: only around a value')
  amounts = [c[side] for side in (0, 1) for c in config]
  wide = [w.cast(w.name(v), np.int32) for v in (x, fill)]
  pads = w.constant(amounts, np.int64)
  padded = w.node('Pad', wide[0], pads, w.reshape(wide[1], ()))
  w.cast(padded, y.dtype, to=y.name)


@rule('select_n')
def _select(w: Writer, op: Op) -> None:
  which, off, on = op.ins
  (y,) = op.outs
  if which.dtype != np.bool_:
    raise UnsupportedExport('select_n: only a choice between two values')
  wide = [w.cast(w.name(v), np.int32) for v in (on, off)]
  w.cast(w.node('Where', w.name(which), *wide), y.dtype, to=y.name)


_PLAIN = {
  'add': 'Add', 'sub': 'Sub', 'mul': 'Mul', 'max': 'Max', 'min': 'Min',
  'lt': 'Less', 'le': 'LessOrEqual', 'gt': 'Greater', 'ge': 'GreaterOrEqual',
  'eq': 'Equal',
}  # fmt: skip


@rule(*_PLAIN)
def _plain(w: Writer, op: Op) -> None:
  (y,) = op.outs
  made = w.node(_PLAIN[op.name], *_wide(w, op))
  w.cast(made, y.dtype, to=y.name)


_LOGIC = {'and': 'And', 'or': 'Or', 'xor': 'Xor', 'not': 'Not'}


@rule(*_LOGIC)
def _logic(w: Writer, op: Op) -> None:
  if any(v.dtype != np.bool_ for v in op.ins):
    raise UnsupportedExport(f'{op.name}: only of truth values, not of bits')
  w.node(_LOGIC[op.name], *map(w.name, op.ins), to=op.outs[0].name)


@rule('convert_element_type')
def _convert(w: Writer, op: Op) -> None:
  w.cast(w.name(op.ins[0]), op.outs[0].dtype, to=op.outs[0].name)


@rule('ne')
def _differ(w: Writer, op: Op) -> None:
  w.node('Not', w.node('Equal', *_wide(w, op)), to=op.outs[0].name)


def _wide(w: Writer, op: Op) -> list[str]:
  """The operands in a type that holds them all."""
  large = any(v.dtype in (np.uint32, np.int64, np.uint64) for v in op.ins)
  return [w.cast(w.name(v), np.int64 if large else np.int32) for v in op.ins]


@rule('reduce_max', 'reduce_min')
def _extreme(w: Writer, op: Op) -> None:
  (y,) = op.outs
  axes = w.constant(op.params['axes'], np.int64)
  code = 'ReduceMax' if op.name == 'reduce_max' else 'ReduceMin'
  made = w.node(code, *_wide(w, op), axes, keepdims=0)
  w.cast(made, y.dtype, to=y.name)


@rule('rev')
def _reverse(w: Writer, op: Op) -> None:
  axes = op.params['dimensions']
  # Beyond the first element: where a slice that runs backwards ends.
  end = np.iinfo(np.int64).min
  bounds = [
    w.constant(list(b), np.int64)
    for b in ([-1] * len(axes), [end] * len(axes), axes, [-1] * len(axes))
  ]
  w.node('Slice', w.name(op.ins[0]), *bounds, to=op.outs[0].name)


@rule('argmax', 'argmin')
def _place_of_extreme(w: Writer, op: Op) -> None:
  (axis,), (y,) = op.params['axes'], op.outs
  code = 'ArgMax' if op.name == 'argmax' else 'ArgMin'
  wide = w.cast(w.name(op.ins[0]), np.int32)
  w.cast(w.node(code, wide, axis=axis, keepdims=0), y.dtype, to=y.name)
