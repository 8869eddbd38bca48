"""The largest accumulator of each integer primitive, for `audit`.

Whatever codes arrive: constants of the program are read, every other operand
is taken at the worst its dtype allows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from s8bqat_jax.integer import intervals, norm, softmax

INT32 = 2**31 - 1
INT64 = 2**63 - 1


def of(
  name: str, params: Any, avals: Sequence[Any], values: Sequence[Any]
) -> tuple[int, int]:
  """Bounds the accumulator of one integer primitive.

  Args:
    name: of the primitive.
    params: its parameters.
    avals: of its operands.
    values: of its operands, where they are constants; else None.

  Returns:
    The largest absolute value the accumulator can take, and the largest it may
    take: of int32, or of int64 where it is 64-bit.
  """
  shapes = [tuple(a.shape) for a in avals]
  peaks = [_peak(a.dtype) for a in avals]
  bound, limit = _BOUNDS[name](params, shapes, peaks, values)
  return int(bound), limit


def _peak(dtype: Any) -> int:
  """The largest absolute value of an integer dtype."""
  low, high = intervals.of_dtype(dtype)
  return max(-low, high)


def _abs_max(value: Any, otherwise: int) -> int:
  if value is None:
    return otherwise
  return int(np.abs(np.asarray(value, np.int64)).max(initial=0))


# Per primitive: (params, shapes, worst |code| per operand, values where known)
# -> (bound, limit).


def _dot_bound(p, shapes, peaks, values):
  (lc, rc), _ = p['dimension_numbers']
  zero_l, zero_r = (abs(z) for z in p['zeros'])
  depth = math.prod(shapes[0][i] for i in lc)
  bias = _abs_max(values[2], INT32)
  if values[1] is not None:
    w = np.abs(np.asarray(values[1], np.int64)).sum(axis=tuple(rc))
    product = (peaks[0] + zero_l) * int(w.max(initial=0))
  elif values[0] is not None:
    w = np.abs(np.asarray(values[0], np.int64)).sum(axis=tuple(lc))
    product = (peaks[1] + zero_r) * int(w.max(initial=0))
  else:
    product = depth * (peaks[0] + zero_l) * (peaks[1] + zero_r)
  return product + bias, INT32


def _conv_bound(p, shapes, peaks, values):
  del p
  bias = _abs_max(values[2], INT32)
  if values[1] is None:
    depth = math.prod(shapes[1][:-1])
    return depth * peaks[0] * peaks[1] + bias, INT32
  w = np.abs(np.asarray(values[1], np.int64))
  columns = w.sum(axis=tuple(range(w.ndim - 1)))
  return peaks[0] * int(columns.max(initial=0)) + bias, INT32


def _pool_bound(p, shapes, peaks, values):
  del shapes, values
  if p['kind'] == 'max':
    return peaks[0], INT32
  return math.prod(p['window']) * (peaks[0] + abs(p['zero'])), INT32


def _sum_bound(p, shapes, peaks, values):
  del values
  depth = math.prod(shapes[0][i] for i in p['over'])
  return depth * (peaks[0] + abs(p['zero'])), INT32


def _rescale_bound(p, shapes, peaks, values):
  del shapes
  wide = (peaks[0] + abs(p['zero'])) * _abs_max(values[1], INT32)
  return wide + 2 ** max(p['shift'] - 1, 0), INT64


def _add_bound(p, shapes, peaks, values):
  del shapes
  total = sum(
    (peaks[i] + abs(p['zeros'][i])) * _abs_max(values[2 + i], INT32)
    for i in range(2)
  )
  return total + 2 ** max(p['shift'] - 1, 0), INT64


def _mul_bound(p, shapes, peaks, values):
  del shapes, values
  zeros = p['zeros']
  return math.prod(peaks[i] + abs(zeros[i]) for i in range(2)), INT32


def _lut_bound(p, shapes, peaks, values):
  del peaks, values
  # The index is as large as the table, what is found as its codes.
  largest = max(abs(p['out'].low), abs(p['out'].high))
  return max(largest, shapes[1][0] - 1), INT32


def _embed_bound(p, shapes, peaks, values):
  del p, shapes, values
  return peaks[1], INT32


def _softmax_bound(p, shapes, peaks, values):
  del p, peaks
  row = shapes[0][-1] * _abs_max(values[1], 2**softmax.EXP_BITS)
  # The reciprocal's product stays below 2^46 e / sum e <= 2^46 ...
  return max(row, 2**46 * 2), INT64


def _log_softmax_bound(p, shapes, peaks, values):
  log = (math.log2(max(shapes[0][-1], 1)) + 2) * 2**softmax.LOG_BITS
  total = 255 * _abs_max(values[3], INT32)
  total += math.ceil(log) * _abs_max(values[4], INT32)
  return total + 2 ** max(p['shift'] - 1, 0), INT64


def _norm_bound(p, shapes, peaks, values):
  width = shapes[0][-1]
  centered = 2 * width * (peaks[0] + abs(p['zero']))
  # |c| / root <= sqrt(N) for the normalized value, in Q14, times gamma.
  value = math.ceil(math.sqrt(width)) * 2 ** (norm.VALUE_BITS + 1)
  out = value * _abs_max(values[1], INT32)
  out += _abs_max(values[2], INT32) * 2 ** max(0, p['shift'] - norm.BIAS_BITS)
  out += 2 ** max(p['shift'] - 1, 0)
  bits = 8 if peaks[0] <= 128 else 16
  kept = centered / 2 ** norm.dropped_bits(width, bits) + 1
  scaled = kept**2 * 4**norm.ROOT_FRACTION + p['epsilon']
  return max(width * kept**2, scaled, centered, out), INT64


_BOUNDS: dict[str, Callable[..., tuple[float, int]]] = {
  'q_dot': _dot_bound,
  'q_conv': _conv_bound,
  'q_depthwise': _conv_bound,
  'q_pool': _pool_bound,
  'q_sum': _sum_bound,
  'q_rescale': _rescale_bound,
  'q_add': _add_bound,
  'q_mul': _mul_bound,
  'q_lut': _lut_bound,
  'q_embed': _embed_bound,
  'q_softmax': _softmax_bound,
  'q_log_softmax': _log_softmax_bound,
  'q_layernorm': _norm_bound,
}
