"""Elementwise integer primitives: rescale, add, mul, table lookup, embed.

Error bounds (in units of the output's last place, LSB, before saturation):
  q_rescale, q_add, q_mul   0.5 + |code| 2^-30: one rounding, half up.
  q_lut, 8-bit input        0: the table holds the correctly rounded value.
  q_lut, 16-bit input       0.5 + 2^-8 + h^2 max|f''| / 8 for a knot distance
                            h: 513 knots, linear in between.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from s8bqat_jax.integer import primitives, requantize

# A 16-bit table has a knot every 2^7 codes; knots carry 2^8 fractions of LSB.
KNOT_BITS = 7
KNOTS = 2 ** (16 - KNOT_BITS) + 1
FRACTION_BITS = 8


def _wide(x):
  return lax.convert_element_type(x, jnp.int64)


# q_rescale: code -> code at another scale.


def _rescale(x, multiplier, *, zero, shift, out, site):
  del site
  shifted = lax.convert_element_type(x, jnp.int32) - np.int32(zero)
  return requantize.requantize(shifted, multiplier, shift, out)


def _rescale_np(x, multiplier, *, zero, shift, out, site):
  del site
  shifted = np.asarray(x, np.int64) - zero
  return requantize.requantize_np(shifted, multiplier, shift, out)


q_rescale: Callable[..., Any] = primitives.define(
  'q_rescale',
  _rescale,
  _rescale_np,
  primitives.batch_leading(lambda: q_rescale, 'q_rescale'),
)


# q_add: x m_x + y m_y, both already at 2^-shift of the output's scale.


def _add(x, y, x_multiplier, y_multiplier, *, zeros, shift, out, site):
  del site
  with jax.enable_x64(True):
    total = (_wide(x) - zeros[0]) * _wide(x_multiplier)
    total = total + (_wide(y) - zeros[1]) * _wide(y_multiplier)
    return requantize.finish(total, shift, out)


def _add_np(x, y, x_multiplier, y_multiplier, *, zeros, shift, out, site):
  del site
  total = (np.asarray(x, np.int64) - zeros[0]) * np.int64(x_multiplier)
  total = total + (np.asarray(y, np.int64) - zeros[1]) * np.int64(y_multiplier)
  return requantize.finish_np(total, shift, out)


q_add: Callable[..., Any] = primitives.define(
  'q_add', _add, _add_np, primitives.batch_leading(lambda: q_add, 'q_add', 2)
)


# q_mul: the product of two codes, requantized.


def _mul(x, y, multiplier, *, zeros, shift, out, site):
  del site
  x32 = lax.convert_element_type(x, jnp.int32) - np.int32(zeros[0])
  y32 = lax.convert_element_type(y, jnp.int32) - np.int32(zeros[1])
  return requantize.requantize(x32 * y32, multiplier, shift, out)


def _mul_np(x, y, multiplier, *, zeros, shift, out, site):
  del site
  x64 = np.asarray(x, np.int64) - zeros[0]
  y64 = np.asarray(y, np.int64) - zeros[1]
  return requantize.requantize_np(x64 * y64, multiplier, shift, out)


q_mul: Callable[..., Any] = primitives.define(
  'q_mul', _mul, _mul_np, primitives.batch_leading(lambda: q_mul, 'q_mul', 2)
)


# q_lut: any function of one value.


def _lut(x, table, *, out, site):
  del site
  if table.shape[0] == 256:
    index = lax.convert_element_type(x, jnp.int32) + 128
    return jnp.take(table, index, axis=0, mode='clip').astype(out.dtype)
  code = lax.convert_element_type(x, jnp.int32) + 2**15
  index = lax.shift_right_logical(code, jnp.full_like(code, KNOT_BITS))
  fraction = code & (2**KNOT_BITS - 1)
  low = jnp.take(table, index, axis=0, mode='clip')
  high = jnp.take(table, index + 1, axis=0, mode='clip')
  total = low * 2**KNOT_BITS + (high - low) * fraction
  rounded = requantize.round_shift(total, KNOT_BITS + FRACTION_BITS)
  return jnp.clip(rounded, out.low, out.high).astype(out.dtype)


def _lut_np(x, table, *, out, site):
  del site
  table = np.asarray(table)
  code = np.asarray(x, np.int64)
  if table.shape[0] == 256:
    return table[code + 128].astype(out.dtype)
  index, fraction = np.divmod(code + 2**15, 2**KNOT_BITS)
  low, high = table[index].astype(np.int64), table[index + 1].astype(np.int64)
  total = low * 2**KNOT_BITS + (high - low) * fraction
  shift = KNOT_BITS + FRACTION_BITS
  rounded = (total + (1 << (shift - 1))) >> shift
  return np.clip(rounded, out.low, out.high).astype(out.dtype)


q_lut: Callable[..., Any] = primitives.define(
  'q_lut', _lut, _lut_np, primitives.batch_leading(lambda: q_lut, 'q_lut')
)


# q_embed: rows of a table of codes. Indices outside it are clipped, as an
# accelerator's address unit does (float models fill such rows with NaN).


def _embed(index, table, *, site):
  del site
  return jnp.take(table, index, axis=0, mode='clip')


def _embed_np(index, table, *, site):
  del site
  table = np.asarray(table)
  return table[np.clip(np.asarray(index), 0, table.shape[0] - 1)]


q_embed: Callable[..., Any] = primitives.define(
  'q_embed',
  _embed,
  _embed_np,
  primitives.batch_leading(lambda: q_embed, 'q_embed'),
)
