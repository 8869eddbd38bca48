"""Integer exponential, softmax and log-softmax over the last axis.

The codes of one row differ from their maximum by d = max - x in 0..255 (8-bit
input), so exp(-d s) is a table of 256 entries, in Q15. Error bounds:

  exp table      2^-16 absolute: correctly rounded.
  q_softmax      for N entries in the row, the probability errs by at most
                 p N 2^-16 + 2^-16 + half an output LSB.
  q_log_softmax  2^-12 + N 2^-16 absolute, plus half an output LSB.

The two errors with N come from the tail of the table rounding to a multiple
of 2^-15; they are reached only if every entry of a row rounds the same way.

A `masked` input reserves the code -128 for "not there": weight zero.

The polynomial of I-BERT (Kim et al., arXiv 2101.01321), 1.9e-3 absolute, is for
wider inputs, of which a table would not fit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from s8bqat_jax.integer import primitives, requantize
from s8bqat_jax.integer.spec import MASK_CODE

EXP_BITS = 15
# Fractions of the reciprocal of a row's sum, and of a base-2 logarithm.
INVERSE_BITS = 46
LOG_BITS = 16
_LOG_KNOT_BITS = 8


def exp_table(scale: float) -> np.ndarray:
  """Returns round(2^15 exp(-d scale)) for d = 0..255, int32."""
  d = np.arange(256, dtype=np.float64)
  return np.rint(2.0**EXP_BITS * np.exp(-d * scale)).astype(np.int32)


def log_table() -> np.ndarray:
  """Returns round(2^16 log2(1 + i / 256)) for i = 0..256, int32."""
  i = np.arange(2**_LOG_KNOT_BITS + 1, dtype=np.float64)
  return np.rint(2.0**LOG_BITS * np.log2(1 + i / 2**_LOG_KNOT_BITS)).astype(
    np.int32
  )


def _exponentials(x, table, masked):
  wide = lax.convert_element_type(x, jnp.int32)
  peak = jnp.max(wide, axis=-1, keepdims=True)
  e = jnp.take(table, peak - wide, axis=0, mode='clip')
  if masked:
    e = jnp.where(wide == MASK_CODE, 0, e)
  return wide - peak, e


def _exponentials_np(x, table, masked):
  wide = np.asarray(x, np.int64)
  peak = wide.max(axis=-1, keepdims=True)
  e = np.asarray(table, np.int64)[peak - wide]
  if masked:
    e = np.where(wide == MASK_CODE, 0, e)
  return wide - peak, e


def _softmax(x, table, *, masked, bits, out, site):
  """p = e / sum e, with one division per row; codes are p 2^bits + zero."""
  del site
  _, e = _exponentials(x, table, masked)
  with jax.enable_x64(True):
    total = jnp.sum(e, axis=-1, keepdims=True, dtype=jnp.int64)
    # A fully masked row has sum zero and stays zero everywhere.
    inverse = jnp.int64(2**INVERSE_BITS) // jnp.maximum(total, 1)
    product = lax.convert_element_type(e, jnp.int64) * inverse
    return requantize.finish(product, INVERSE_BITS - bits, out)


def _softmax_np(x, table, *, masked, bits, out, site):
  del site
  _, e = _exponentials_np(x, table, masked)
  total = e.sum(axis=-1, keepdims=True)
  inverse = 2**INVERSE_BITS // np.maximum(total, 1)
  return requantize.finish_np(e * inverse, INVERSE_BITS - bits, out)


q_softmax: Callable[..., Any] = primitives.define(
  'q_softmax',
  _softmax,
  _softmax_np,
  primitives.batch_leading(lambda: q_softmax, 'q_softmax'),
)


def _log2(total, table):
  """Q16 base-2 logarithm of positive int64: exponent, then 256 knots."""
  exponent = 63 - lax.clz(total)
  mantissa = lax.shift_left(total, jnp.int64(30) - exponent)  # [2^30, 2^31)
  rest = 30 - _LOG_KNOT_BITS
  index = lax.shift_right_logical(mantissa, jnp.int64(rest)) - (
    1 << _LOG_KNOT_BITS
  )
  fraction = mantissa & ((1 << rest) - 1)
  low = jnp.take(table, index, axis=0, mode='clip').astype(jnp.int64)
  high = jnp.take(table, index + 1, axis=0, mode='clip').astype(jnp.int64)
  inside = requantize.round_shift((high - low) * fraction, rest)
  return exponent * 2**LOG_BITS + low + inside


def _log_softmax(
  x, table, logs, x_multiplier, log_multiplier, *, masked, shift, out, site
):
  """(x - max) s - ln(sum e), both terms rescaled before the one rounding."""
  del site
  d, e = _exponentials(x, table, masked)
  with jax.enable_x64(True):
    total = jnp.sum(e, axis=-1, keepdims=True, dtype=jnp.int64)
    log = _log2(jnp.maximum(total, 1), logs) - EXP_BITS * 2**LOG_BITS
    value = lax.convert_element_type(d, jnp.int64) * lax.convert_element_type(
      x_multiplier, jnp.int64
    ) - log * lax.convert_element_type(log_multiplier, jnp.int64)
    return requantize.finish(value, shift, out)


def _log_softmax_np(
  x, table, logs, x_multiplier, log_multiplier, *, masked, shift, out, site
):
  del site
  d, e = _exponentials_np(x, table, masked)
  logs = np.asarray(logs, np.int64)
  total = np.maximum(e.sum(axis=-1, keepdims=True), 1)
  exponent = np.frexp(total.astype(np.float64))[1] - 1
  rest = 30 - _LOG_KNOT_BITS
  mantissa = total << (30 - exponent)
  index, fraction = np.divmod(mantissa - (1 << 30), 1 << rest)
  step = (logs[index + 1] - logs[index]) * fraction
  log = exponent * 2**LOG_BITS + logs[index]
  log = log + ((step + (1 << (rest - 1))) >> rest) - EXP_BITS * 2**LOG_BITS
  value = d * np.int64(x_multiplier) - log * np.int64(log_multiplier)
  return requantize.finish_np(value, shift, out)


q_log_softmax: Callable[..., Any] = primitives.define(
  'q_log_softmax',
  _log_softmax,
  _log_softmax_np,
  primitives.batch_leading(lambda: q_log_softmax, 'q_log_softmax'),
)
