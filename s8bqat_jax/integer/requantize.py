"""Fixed-point requantization: the one place where integers change scale.

An accumulator a at scale s_a becomes a code at scale s_o by

  code = clip(floor((a * m + 2^(e-1)) / 2^e) + zero, low, high),
  s_a / s_o ~ m 2^-e,  |m| < 2^31,  1 <= e <= 62,

that is, one 64-bit product and one rounding, half up (towards +infinity).
This is the dyadic requantization of HAWQ-V3 and Q-ASR (arXiv 2103.16827) and
TOSA's APPLY_SCALE_32 with single rounding. The 64-bit product is taken under
a local `jax.enable_x64`, so programs elsewhere stay 32-bit. The multiplier has
31 significant bits: relative to the exact ratio it errs by at most 2^-31, so
the code is the correctly rounded one unless the real value lies within
|code| 2^-31 of a rounding boundary.

Channels of one tensor share the exponent and differ in the multiplier; a
channel whose ratio is 2^-k of the largest keeps 31 - k bits.

References:
  Yao et al., HAWQ-V3: Dyadic Neural Network Quantization (arXiv 2011.10680).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

MAX_SHIFT = 62
MULTIPLIER_BITS = 31


class Out(NamedTuple):
  """The integers an operation may produce.

  Attributes:
    zero: the code of 0.0.
    low: lowest code.
    high: highest code.
    dtype: of the codes.
    scale: real value of one code, for readers of a program: kernels have no
      use for it.
  """

  zero: int = 0
  low: int = -128
  high: int = 127
  dtype: str = 'int8'
  scale: float = 1.0


class Multiplier(NamedTuple):
  """ratio ~ multiplier * 2^-shift, int32 scalar or one per channel."""

  multiplier: np.ndarray
  shift: int


def to_multiplier(*ratios: Any) -> tuple[Multiplier, ...]:
  """Returns fixed-point forms of real ratios, all with one common shift.

  Args:
    *ratios: finite real scalars or arrays, of either sign. Zero is a
      multiplier of zero.

  Returns:
    One Multiplier per ratio; their shifts are equal, so that operands scaled
    by them can be summed before the one rounding.

  Raises:
    ValueError: a ratio is NaN, infinite or too large (2^30 and above).
  """
  arrays = [np.asarray(r, np.float64) for r in ratios]
  largest = max((float(np.abs(a).max()) for a in arrays if a.size), default=0.0)
  if not np.isfinite(largest) or largest >= 2.0 ** (MULTIPLIER_BITS - 1):
    raise ValueError(
      f'requantization ratio must be finite and below 2^30, got {largest}; '
      'check the scales of the operands and of the output'
    )
  exponent = int(np.frexp(largest)[1]) if largest else 0
  shift = min(MULTIPLIER_BITS - exponent, MAX_SHIFT)
  limit = 2**MULTIPLIER_BITS - 1
  fixed = [
    np.clip(np.rint(np.ldexp(a, shift)), -limit, limit).astype(np.int32)
    for a in arrays
  ]
  return tuple(Multiplier(m, shift) for m in fixed)


def round_shift(x: jax.Array, shift: int) -> jax.Array:
  """Returns floor((x + 2^(shift-1)) / 2^shift); x itself when shift is 0."""
  if shift == 0:
    return x
  one = np.asarray(1, x.dtype)
  half = np.left_shift(one, np.asarray(shift - 1, x.dtype))
  return lax.shift_right_arithmetic(
    x + half, jnp.full_like(x, np.asarray(shift, x.dtype))
  )


def finish(total: jax.Array, shift: int, out: Out) -> jax.Array:
  """Rounds, moves to the zero point, saturates and narrows (int64 inside)."""
  code = round_shift(total, shift) + out.zero
  return jnp.clip(code, out.low, out.high).astype(out.dtype)


def requantize(
  acc: jax.Array, multiplier: Any, shift: int, out: Out
) -> jax.Array:
  """Requantizes integers; see the module's docstring for the formula.

  Args:
    acc: integers, any shape.
    multiplier: int32, broadcastable against `acc`.
    shift: the common exponent e.
    out: zero point, saturation bounds and dtype.

  Returns:
    Codes of `out.dtype`.
  """
  with jax.enable_x64(True):
    wide = lax.convert_element_type(acc, jnp.int64)
    factor = lax.convert_element_type(multiplier, jnp.int64)
    return finish(wide * factor, shift, out)


def requantize_np(
  acc: np.ndarray, multiplier: Any, shift: int, out: Out
) -> np.ndarray:
  """The oracle: the same formula in NumPy int64."""
  product = np.asarray(acc, np.int64) * np.asarray(multiplier, np.int64)
  return finish_np(product, shift, out)


def finish_np(total: np.ndarray, shift: int, out: Out) -> np.ndarray:
  """The oracle of `finish`."""
  half = (1 << shift) >> 1
  code = ((np.asarray(total, np.int64) + half) >> shift) + out.zero
  return np.clip(code, out.low, out.high).astype(out.dtype)
