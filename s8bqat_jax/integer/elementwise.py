"""Elementwise integer primitives: rescale, add, mul, table lookup, embed.

Error bounds (in units of the output's last place, LSB, before saturation):
  q_rescale, q_add, q_mul   0.5 + |code| 2^-30: one rounding, half up.
  q_lut                     0: the table holds the rounded value of each of
                            the 256 or 65,536 codes; another size is an error.
                            (Knots with lines between them take two look-ups,
                            and err by many LSB where a 16-bit input's range is
                            wide.)
  q_embed                   0: rows are copied.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from s8bqat_jax.integer import primitives, requantize


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


# q_lut: any function of one value; an entry for every code of its dtype.


def _lut(x, table, *, out, site):
  del site
  codes = 2 ** (8 * x.dtype.itemsize)
  if table.shape != (codes,):
    raise ValueError(
      f'q_lut of {x.dtype} needs a table of shape ({codes},), an entry for '
      f'every code, got {table.shape}'
    )
  index = lax.convert_element_type(x, jnp.int32) + codes // 2
  return jnp.take(table, index, axis=0, mode='clip').astype(out.dtype)


def _lut_np(x, table, *, out, site):
  del site
  table = np.asarray(table)
  return table[np.asarray(x, np.int64) + len(table) // 2].astype(out.dtype)


q_lut: Callable[..., Any] = primitives.define(
  'q_lut', _lut, _lut_np, primitives.batch_leading(lambda: q_lut, 'q_lut')
)


# q_embed: rows of a table of codes, which mean what `out` says. Indices outside
# it are clipped, as an accelerator's address unit does (float models fill such
# rows with NaN).


def _embed(index, table, *, out, site):
  del out, site
  return jnp.take(table, index, axis=0, mode='clip')


def _embed_np(index, table, *, out, site):
  del out, site
  table = np.asarray(table)
  return table[np.clip(np.asarray(index), 0, table.shape[0] - 1)]


q_embed: Callable[..., Any] = primitives.define(
  'q_embed',
  _embed,
  _embed_np,
  primitives.batch_leading(lambda: q_embed, 'q_embed'),
)
