"""Spec: how integers stand for reals, and how a range becomes one."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from s8bqat_jax.integer import requantize

# Beyond this a value is an attention mask, not data. Masks fill with 1e6 and
# more, and data is added to them.
MASK_LIMIT = 5e5
MASK_CODE = -128  # what a masked spec of 8 bits stores for it
_MASK = -1e9  # what that code reads as


class Spec(NamedTuple):
  """real = (code - zero) * scale, low <= code <= high.

  Attributes:
    scale: real value of one step.
    zero: the code of 0.0.
    low: lowest code; above the dtype's where a clip (a ReLU) is folded in.
    high: highest code.
    bits: 8 or 16, the storage.
    masked: `mask_code`, which is below `low`, stands for "masked out".
  """

  scale: float
  zero: int = 0
  low: int = -128
  high: int = 127
  bits: int = 8
  masked: bool = False

  @property
  def dtype(self) -> str:
    return f'int{self.bits}'

  @property
  def out(self) -> requantize.Out:
    return requantize.Out(
      self.zero, self.low, self.high, self.dtype, self.scale
    )

  @property
  def mask_code(self) -> int:
    return -(2 ** (self.bits - 1))

  @property
  def interval(self) -> tuple[float, float]:
    """Lowest and highest real value."""
    return (
      (self.low - self.zero) * self.scale,
      (self.high - self.zero) * self.scale,
    )

  def scaled(self, gain: float) -> Spec:
    """Returns the spec of these codes' reals times a positive number."""
    return self._replace(scale=self.scale * gain) if gain != 1.0 else self

  def clipped(self, least: float, most: float) -> Spec:
    """Returns the spec that saturates at a real interval, if it is narrower."""
    low, high, spec = self.low, self.high, self
    if least > -MASK_LIMIT:
      spec = self._replace(masked=False)  # What was masked is the bound now.
    code = lambda real: int(np.floor(real / self.scale + 0.5)) + self.zero
    if np.isfinite(least):
      low = min(max(low, code(least)), high)
    if np.isfinite(most):
      high = max(min(high, code(most)), low)
    return spec._replace(low=low, high=high)

  def holds(self, other: Spec) -> bool:
    """Whether codes of another spec mean the same here, but for rounding."""
    return (
      abs(other.scale - self.scale) <= 1e-12 * other.scale
      and (other.zero, other.bits, other.masked)
      == (self.zero, self.bits, self.masked)
      and self.low <= other.low
      and self.high >= other.high
    )

  def values(self) -> np.ndarray:
    """Returns the real value of every code of the dtype, in order."""
    half = 2 ** (self.bits - 1)
    reals = (np.arange(-half, half, dtype=np.float64) - self.zero) * self.scale
    if self.masked:
      reals[0] = _MASK
    return reals

  def quantize_np(self, real: Any) -> np.ndarray:
    """Codes of real values, rounded half up, as the accelerator rounds."""
    with np.errstate(over='ignore'):  # What fills, far from any code.
      scaled = np.asarray(real, np.float64) / self.scale
    code = np.floor(np.clip(scaled, -1e9, 1e9) + 0.5) + self.zero
    code = np.clip(code, self.low, self.high)
    if self.masked:
      fills = np.asarray(real) <= -MASK_LIMIT
      code = np.where(fills, self.mask_code, code)
    return code.astype(self.dtype)

  def quantize(self, real: jax.Array) -> jax.Array:
    """`quantize_np` for the boundary: the only float-to-integer step."""
    code = jnp.floor(real / self.scale + 0.5) + self.zero
    return jnp.clip(code, self.low, self.high).astype(self.dtype)

  def dequantize(self, code: jax.Array) -> jax.Array:
    """Reals of codes: the only integer-to-float step."""
    real = (code.astype(jnp.float32) - self.zero) * self.scale
    if not self.masked:
      return real
    return jnp.where(code == self.mask_code, _MASK, real)


TRUTH = Spec(1.0, 0, 0, 1)  # of truth values


def from_range(
  low: float, high: float, bits: int = 8, name: str = 'value'
) -> Spec:
  """Returns the spec that covers a range, zero included and exact.

  8-bit values are affine (256 levels between the ends); 16-bit ones symmetric.

  Args:
    low: lowest real value.
    high: highest real value.
    bits: 8 or 16.
    name: how an error names the value.

  Returns:
    A Spec.

  Raises:
    ValueError: the range is not finite or is upside down.
  """
  if not (np.isfinite(low) and np.isfinite(high) and low <= high):
    raise ValueError(
      f'range of {name} must be finite with low <= high, got ({low}, {high})'
    )
  low, high = min(float(low), 0.0), max(float(high), 0.0)
  peak = max(high, -low)
  if peak < 1e-30:
    # All zero: any scale represents it, but one far from those of the values
    # around it would make no ratio with them.
    peak, low, high = 1.0, 0.0, 1.0
  if bits == 16:
    return Spec(peak / 32767, 0, -32767, 32767, 16)
  scale = (high - low) / 255
  zero = int(np.clip(np.rint(-128 - low / scale), -128, 127))
  return Spec(scale, zero)


def masked_range(low: float, high: float, bits: int = 8) -> Spec:
  """Returns the spec that covers a range and has a code for masks.

  Args:
    low: lowest real value that is not masked.
    high: highest real value.
    bits: 8 or 16.
  """
  if bits == 16:
    return from_range(low, high, 16)._replace(masked=True)
  low, high = min(float(low), 0.0), max(float(high), 0.0)
  if high - low < 1e-30:
    high = 1.0  # As in `from_range`.
  scale = (high - low) / 254
  zero = int(np.clip(np.rint(-127 - low / scale), -127, 127))
  return Spec(scale, zero, low=-127, masked=True)


def symmetric(peak: float) -> Spec:
  """Returns the 8-bit spec with zero point 0 that weights use."""
  return Spec(max(float(peak), 1e-30) / 127, 0, -127, 127)


def of_scales(scale: np.ndarray) -> Spec:
  """Returns the 16-bit spec of positive scales that are data themselves."""
  return from_range(0.0, scale.max(initial=0.0), 16, 'a scale')


def fake_quantize(x: jax.Array, spec: Spec) -> jax.Array:
  """Rounds reals to the spec's grid; gradients pass inside its interval.

  Args:
    x: reals.
    spec: the grid. Masked-out entries of a masked spec pass unchanged.

  Returns:
    Reals on the grid, with a straight-through gradient.
  """
  y = jax.lax.stop_gradient(_on_grid(x, spec))
  low, high = spec.interval
  half = spec.scale / 2
  inside = (x >= low - half) & (x <= high + half)
  if spec.masked:
    inside = inside | (x <= -MASK_LIMIT)
  return _identity_grad(x, y, inside)


def _on_grid(x: jax.Array, spec: Spec) -> jax.Array:
  # In float32, whatever the input: half precision counts to 256 or 2048.
  code = jnp.floor(x.astype(jnp.float32) / spec.scale + 0.5) + spec.zero
  code = jnp.clip(code, spec.low, spec.high)
  y = ((code - spec.zero) * spec.scale).astype(x.dtype)
  return jnp.where(x <= -MASK_LIMIT, x, y) if spec.masked else y


@jax.custom_jvp
def _identity_grad(x, y, inside):
  del x, inside
  return y


@_identity_grad.defjvp
def _identity_jvp(primals, tangents):
  _, y, inside = primals
  return y, jnp.where(inside, tangents[0], 0)
