"""The 8-bit NPU's matrix product, simulated to the last bit.

  acc  = sum_k x[m, k] w[k, n] + bias[n]             int32, wraps modulo 2^32
  y    = clip(floor((acc m_n + 2^(e-1)) / 2^e), -128, 127)   int8, saturates
  m_n 2^-e ~ x_scale w_scale[n] / out_scale          see integer/requantize.py

All scales are symmetric (zero point 0). Weights are int8, or n-bit codes
with an int8 table, which is how a sub-8-bit NPU reads them: an index from
memory, a value into the multiplier.

The accumulator can't overflow while K * 2^14 + max|bias| < 2^31, that is up to
K = 131,071 without a bias; `matmul_report` counts what saturated and what
overflowed on given data.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from s8bqat_jax.integer import dot, requantize

# Column blocks of this depth can't overflow int32 at any int8 values.
_SAFE_DEPTH = 2**16
_MATMUL = (((1,), (0,)), ((), ()))


class Report(NamedTuple):
  """What happened to the extremes of one product.

  Attributes:
    saturated: how many outputs were clipped to -128 or 127.
    overflowed: how many accumulators left int32 (and so wrapped).
    peak: largest absolute value of an exact accumulator.
    bound: the largest it could have been for these weights and any int8 x.
  """

  saturated: int
  overflowed: int
  peak: int
  bound: int


class _Plan(NamedTuple):
  x_q: jax.Array
  w_q: jax.Array
  bias: jax.Array
  multiplier: np.ndarray
  shift: int


@functools.partial(jax.jit, static_argnames='shift')
def _product(x_q, w_q, bias, multiplier, *, shift):
  return dot.q_dot(
    x_q,
    w_q,
    bias,
    multiplier,
    dimension_numbers=_MATMUL,
    zeros=(0, 0),
    shift=shift,
    out=requantize.Out(),
    site='',
  )


@jax.jit
def _decode(codes, table):
  return jnp.take(table, codes.astype(jnp.int32), axis=0, mode='clip')


def int8_matmul(
  x_q: Any,
  w_q: Any,
  x_scale: Any,
  w_scale: Any,
  out_scale: Any,
  bias: Any = None,
  table: Any = None,
) -> jax.Array:
  """Returns the int8 product of int8 matrices, as the NPU computes it.

  Args:
    x_q: int8 [M, K].
    w_q: int8 [K, N]; with `table`, uint8 [K, N] codes into it.
    x_scale: positive scalar; real x = x_q * x_scale.
    w_scale: positive scalar, or [N] for one scale per output channel.
    out_scale: positive scalar; real y = y_q * out_scale.
    bias: optional int32 [N] at the accumulator's scale x_scale * w_scale.
    table: optional int8 [L], L <= 256: the value of each weight code.

  Returns:
    int8 [M, N].

  Raises:
    TypeError: an operand has the wrong dtype, or a scale is traced (scales
      are constants of an integer program; pass concrete numbers).
    ValueError: shapes do not match, a scale is zero, negative or not finite,
      the scales of a column leave no multiplier, the table is empty or larger
      than codes can tell apart, or a code lies outside it.
  """
  plan = _prepare(x_q, w_q, x_scale, w_scale, out_scale, bias, table)
  return _product(
    plan.x_q, plan.w_q, plan.bias, plan.multiplier, shift=plan.shift
  )


def matmul_report(
  x_q: Any,
  w_q: Any,
  x_scale: Any,
  w_scale: Any,
  out_scale: Any,
  bias: Any = None,
  table: Any = None,
) -> Report:
  """Counts saturation and overflow of `int8_matmul` on the same arguments.

  Args:
    x_q, w_q, x_scale, w_scale, out_scale, bias, table: as for `int8_matmul`.

  Returns:
    A Report, from exact 64-bit accumulators.
  """
  plan = _prepare(x_q, w_q, x_scale, w_scale, out_scale, bias, table)
  b = np.asarray(plan.bias, np.int64)
  w = np.asarray(plan.w_q, np.int64)
  exact = np.zeros((plan.x_q.shape[0], w.shape[1]), np.int64)
  for k in range(0, w.shape[0], _SAFE_DEPTH):
    block = slice(k, k + _SAFE_DEPTH)
    exact += np.asarray(
      dot.dot_int32(plan.x_q[:, block], plan.w_q[block], _MATMUL), np.int64
    )
  exact = exact + b
  wrapped = exact.astype(np.int32)
  wide = requantize.Out(low=-(2**62), high=2**62, dtype='int64')
  free = requantize.requantize_np(wrapped, plan.multiplier, plan.shift, wide)
  columns = 128 * np.abs(w).sum(axis=0) + np.abs(b)
  return Report(
    saturated=int(np.sum((free < -128) | (free > 127))),
    overflowed=int(np.sum(exact != wrapped)),
    peak=int(np.abs(exact).max(initial=0)),
    bound=int(columns.max(initial=0)),
  )


def _prepare(x_q, w_q, x_scale, w_scale, out_scale, bias, table) -> _Plan:
  """Checks the arguments and turns real scales into a multiplier."""
  x_q = _operand('x_q', x_q, np.int8, 2)
  if table is None:
    w_q = _operand('w_q', w_q, np.int8, 2)
  else:
    w_q = _operand('w_q', w_q, np.uint8, 2)
    table = _operand('table', table, np.int8, 1)
    levels = table.shape[0]
    if not 1 <= levels <= 256:
      raise ValueError(
        f'table has {levels} entries, expected 1 to 256: a code is one byte'
      )
    if not isinstance(w_q, jax.core.Tracer) and w_q.size:
      highest = int(w_q.max())
      if highest >= levels:
        raise ValueError(
          f'w_q holds code {highest}, but table has only {levels} entries'
        )
    w_q = _decode(w_q, table)
  if x_q.shape[1] != w_q.shape[0]:
    raise ValueError(
      f'x_q {x_q.shape} and w_q {w_q.shape} do not contract: expected x_q '
      f'[M, {w_q.shape[0]}]'
    )
  n = w_q.shape[1]
  w_scale = _scale('w_scale', w_scale, (n,))
  ratio = _scale('x_scale', x_scale) * w_scale / _scale('out_scale', out_scale)
  if bias is None:
    bias = jnp.zeros((), jnp.int32)
  else:
    bias = _operand('bias', bias, np.int32, 1)
    if bias.shape != (n,):
      raise ValueError(f'bias has shape {bias.shape}, expected ({n},)')
  (fixed,) = requantize.to_multiplier(ratio)
  _require_multipliers(ratio, fixed)
  return _Plan(x_q, w_q, bias, fixed.multiplier, fixed.shift)


def _require_multipliers(
  ratio: np.ndarray, fixed: requantize.Multiplier
) -> None:
  """Refuses columns that would be zero whatever they hold."""
  lost = np.flatnonzero(fixed.multiplier == 0)
  if not lost.size:
    return
  least = ratio.reshape(-1)[lost[0]]
  where = f' of column {lost[0]}' if ratio.ndim else ''
  raise ValueError(
    f'x_scale * w_scale / out_scale{where} is {least:.3g}: its multiplier is 0 '
    f'at {requantize.MULTIPLIER_BITS} bits below the largest ratio '
    f'{ratio.max():.3g} and shift <= {requantize.MAX_SHIFT}, so that every '
    'output would be 0; check the units of the scales (a column of zero '
    'weights may take any scale)'
  )


def _operand(name: str, value: Any, dtype: Any, ndim: int) -> jax.Array:
  if getattr(value, 'dtype', None) != dtype:
    raise TypeError(
      f'{name} must be {np.dtype(dtype).name}, got '
      f'{getattr(value, "dtype", type(value).__name__)}; quantize it first'
    )
  if value.ndim != ndim:
    raise ValueError(f'{name} must have {ndim} axes, got shape {value.shape}')
  return jnp.asarray(value)


def _scale(name: str, value: Any, channels: tuple[int, ...] = ()) -> np.ndarray:
  if isinstance(value, jax.core.Tracer):
    raise TypeError(
      f'{name} is traced, but scales are constants of an integer program: '
      'pass a concrete number'
    )
  scale = np.asarray(value, np.float64)
  if scale.shape not in ((), channels):
    expected = f'() or {channels}' if channels else '()'
    raise ValueError(f'{name} has shape {scale.shape}, expected {expected}')
  if not np.all(np.isfinite(scale) & (scale > 0)):
    raise ValueError(f'{name} must be finite and above zero, got {scale}')
  return scale
