"""Tangent and arctangent over the range that a region needs, vectorized.

XLA calls a scalar library routine for every element of `tan` and `arctan`; on
a CPU that was most of what the pull towards centroids cost.
Polynomials are as exact in float32 and run at the speed of a few products.

References:
  S. Moshier, Cephes Mathematical Library: the coefficients of tanf and atanf.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

_TAN = (
  9.38540185543e-3,
  3.11992232697e-3,
  2.44301354525e-2,
  5.34112807005e-2,
  1.33387994085e-1,
  3.33331568548e-1,
)
_ARCTAN = (
  8.05374449538e-2,
  -1.38776856032e-1,
  1.99777106478e-1,
  -3.33329491539e-1,
)
_TAN_PI_8 = 0.4142135623730950


def tan(x: jax.Array) -> jax.Array:
  """Returns the tangent of |x| <= pi / 4; any x in other dtypes than float32.

  Args:
    x: angles; in float32 the result is within 2.5e-7 of the tangent, relative.

  Returns:
    The dtype and shape of `x`.
  """
  return _odd(x, _TAN) if x.dtype == jnp.float32 else jnp.tan(x)


def arctan(x: jax.Array) -> jax.Array:
  """Returns the arctangent of |x| <= 1; any x in other dtypes than float32.

  Args:
    x: in float32 the result is within 2.5e-7 of the arctangent, relative.

  Returns:
    The dtype and shape of `x`.
  """
  if x.dtype != jnp.float32:
    return jnp.arctan(x)
  # Above tan(pi / 8): arctan(x) = pi / 4 + arctan((x - 1) / (x + 1)).
  size = jnp.abs(x)
  large = size > _TAN_PI_8
  angle = _odd(jnp.where(large, (size - 1) / (size + 1), size), _ARCTAN)
  return jnp.sign(x) * jnp.where(large, angle + jnp.float32(jnp.pi / 4), angle)


def _odd(x, coefficients):
  """x + x^3 p(x^2), the highest coefficient first (Horner)."""
  square = x * x
  value = functools.reduce(
    lambda sum_, c: sum_ * square + jnp.float32(c),
    coefficients[1:],
    jnp.full_like(x, coefficients[0]),
  )
  return value * square * x + x
