"""q_layernorm: LayerNorm and RMSNorm in integers, over the last axis.

With N the width and c = N x - sum x (or N x for RMSNorm), in codes, or in 2^D
of them where the squares of a row would overflow (`dropped_bits`):
  variance  v = 2^8 sum c^2 / N + epsilon           64-bit; N divides the sum
  root      r = floor(sqrt(v)), integer Newton
  value     n = c floor(2^46 / r), rounded          a Q14 number
  output    requantize(n m_gamma + bias)

so that one integer division and one square root serve a row; `epsilon` is in
units of v. Error bound: with d the deviation of the row in codes, a normalized
value n errs by at most (2^-13 + 2^-4 / (N d)) |n| + 2^-13, then half an output
LSB. The term with d is the floor of the root: it matters below d = 2^9 / N.
Wide rows, D > 0, add 0.6 (1 + |n|) 2^D / (N d).

References:
  Kim et al., I-BERT: Integer-only BERT Quantization (arXiv 2101.01321), whose
  LayerNorm takes the integer mean; ours keeps N x - sum x exact.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from s8bqat_jax.integer import primitives, requantize

VALUE_BITS = 14
# A bias is given in 2^-12 of an output LSB.
BIAS_BITS = 12
INVERSE_BITS = 46
_NEWTON_STEPS = 6
# The variance keeps 2^8 fractions, its root 2^4: for narrow rows, small ones.
ROOT_FRACTION = 4


def isqrt(x: jax.Array) -> jax.Array:
  """Returns floor(sqrt(x)) of int64 0 <= x < 2^62 (needs 64-bit enabled)."""
  # Newton from above: the first guess is a power of two >= sqrt(x).
  bits = 64 - lax.clz(jnp.maximum(x, 1))
  y = lax.shift_left(jnp.ones_like(x), (bits + 1) // 2)
  for _ in range(_NEWTON_STEPS):
    y = jnp.minimum(y, (y + x // jnp.maximum(y, 1)) // 2)
  return y


def dropped_bits(width: int, bits: int) -> int:
  """Returns D, how many bits of c a row of codes of so many bits does without.

  None up to a width of 645 in 16 bits, 26,007 in 8.

  Args:
    width: of the row.
    bits: of its codes.
  """
  dropped = 0
  # |c| < N 2^(bits + 1); their sum of squares, and v, stay below 2^62.
  while max(width, 4**ROOT_FRACTION) * (width << (bits + 1)) ** 2 > 2 ** (
    62 + 2 * dropped
  ):
    dropped += 1
  return dropped


def _layernorm(x, multiplier, bias, *, center, epsilon, zero, shift, out, site):
  del site
  width = x.shape[-1]
  with jax.enable_x64(True):
    x64 = lax.convert_element_type(x, jnp.int64) - zero
    c = x64 * width
    if center:
      c = c - jnp.sum(x64, axis=-1, keepdims=True)
    c = requantize.round_shift(c, dropped_bits(width, 8 * x.dtype.itemsize))
    variance = jnp.sum(c * c, axis=-1, keepdims=True) // width
    variance = variance * 4**ROOT_FRACTION + epsilon
    root = isqrt(jnp.clip(variance, 1, 2**62 - 1))
    inverse = jnp.int64(1 << INVERSE_BITS) // root
    n = requantize.round_shift(
      c * inverse, INVERSE_BITS - ROOT_FRACTION - VALUE_BITS
    )
    total = n * lax.convert_element_type(multiplier, jnp.int64)
    total = total + lax.convert_element_type(bias, jnp.int64) * (
      2 ** max(0, shift - BIAS_BITS)
    )
    return requantize.finish(total, shift, out)


def _layernorm_np(
  x, multiplier, bias, *, center, epsilon, zero, shift, out, site
):
  del site
  x64 = np.asarray(x, np.int64) - zero
  width = x64.shape[-1]
  c = x64 * width
  if center:
    c = c - x64.sum(axis=-1, keepdims=True)
  if dropped := dropped_bits(width, 8 * np.asarray(x).itemsize):
    c = (c + (1 << (dropped - 1))) >> dropped
  variance = (c * c).sum(axis=-1, keepdims=True) // width
  variance = np.clip(variance * 4**ROOT_FRACTION + epsilon, 1, 2**62 - 1)
  root = np.vectorize(math.isqrt, otypes=[np.int64])(variance)
  inverse = (1 << INVERSE_BITS) // root
  down = INVERSE_BITS - ROOT_FRACTION - VALUE_BITS
  n = (c * inverse + (1 << (down - 1))) >> down
  total = n * np.asarray(multiplier, np.int64)
  total = total + np.asarray(bias, np.int64) * 2 ** max(0, shift - BIAS_BITS)
  return requantize.finish_np(total, shift, out)


q_layernorm: Callable[..., Any] = primitives.define(
  'q_layernorm',
  _layernorm,
  _layernorm_np,
  primitives.batch_leading(lambda: q_layernorm, 'q_layernorm'),
)
