"""What flows through a lowering instead of arrays.

  Const   known when lowering: a parameter or what follows from parameters
  Exact   integers or booleans of the float function itself: ids, lengths
  QValue  a real tensor that exists as integers, perhaps not computed yet

A QValue is lazy: the dot product, sum or table behind it is emitted when a
consumer asks for codes, because only then is it known how many bits, and which
clip or bias, the one rounding must include.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from s8bqat_jax.integer import requantize
from s8bqat_jax.integer.spec import MASK_LIMIT, Spec

INF = float('inf')


class Weight(NamedTuple):
  """A constant as the accelerator stores it: int8 values and a scale.

  Attributes:
    values: int8; already looked up in the codebook, if there is one.
    scale: real value of one step: scalar, or broadcastable against values.
  """

  values: np.ndarray
  scale: np.ndarray


@dataclasses.dataclass(eq=False)
class Const:
  """A value known when lowering.

  Attributes:
    value: NumPy array; broadcasts are zero-stride views.
    weight: its integers, where it is (a movement of) a quantized parameter.
    live: in the twin, the traced array that carries gradients.
    name: path of the parameter, '' if there is none.
  """

  value: np.ndarray
  weight: Weight | None = None
  live: Any = None
  name: str = ''

  @property
  def shape(self) -> tuple[int, ...]:
    return self.value.shape

  @property
  def array(self) -> Any:
    return self.value if self.live is None else self.live

  @property
  def masked_out(self) -> np.ndarray:
    """Which entries are masks, broadcasts cut to length 1."""
    small = squeeze_const(self.value)
    if not jnp.issubdtype(small.dtype, jnp.floating):
      return np.zeros((), bool)
    return small <= -MASK_LIMIT


class Exact(NamedTuple):
  """Integers or booleans that the float function computes as such."""

  array: Any

  @property
  def shape(self) -> tuple[int, ...]:
    return self.array.shape


class Operand(NamedTuple):
  """A materialized QValue: what an integer primitive reads.

  Attributes:
    codes: integers; None in the twin.
    spec: what they stand for.
    live: the fake-quantized reals; None when lowering to integers.
  """

  codes: Any
  spec: Spec
  live: Any


class Fixed(NamedTuple):
  """Codes that exist: an input, a carry, a quantized constant.

  Attributes:
    codes: None in the twin.
    spec: what they stand for.
    parameter: it is one. The twin takes it as it is given, as it takes weights:
      training moves it off the grid it had when the twin was made.
  """

  codes: Any
  spec: Spec
  parameter: bool = False


class Computed(NamedTuple):
  """Codes that some primitive will compute at a scale yet to be chosen.

  Attributes:
    emit: (spec) -> codes.
    bits: 16 for sums and products, which feed other sums; 8 otherwise.
    costly: emitted once for a value; its other scales are rescales of that. (A
      clip or an epilogue makes another value.)
    own: a spec that does not depend on calibration (softmax), or None.
  """

  emit: Callable[[Spec], Any]
  bits: int = 8
  costly: bool = False
  own: Callable[[int], Spec] | None = None


class Moved(NamedTuple):
  """A movement (reshape, slice, gather, ...) of another value's codes."""

  parent: QValue
  move: Callable[[Any], Any]


class Table(NamedTuple):
  """Any function of one materialized value: a lookup table."""

  base: Operand
  fn: Callable[[Any], Any]


class Acc(NamedTuple):
  """A dot product whose affine epilogue is still open.

  real = sum(codes) * scale * gain + offset, each broadcastable to the result.

  Attributes:
    make: (bias int32, multiplier, shift, spec) -> codes.
    scale: real value of one accumulator step.
    gain: real factor since (a BatchNorm's, a scalar's).
    offset: real addend since (a bias).
    correction: int64 that cancels the input's zero point.
  """

  make: Callable[..., Any]
  scale: np.ndarray
  gain: np.ndarray
  offset: np.ndarray
  correction: np.ndarray

  def emit(self, spec: Spec) -> Any:
    step = self.scale * self.gain
    # A channel with (almost) no gain still has its offset: the floor keeps the
    # offset within 2^30 accumulator steps, and a gain that small adds nothing.
    floor = np.maximum(np.abs(self.offset) * 2.0**-30, 1e-30)
    step = np.where(np.abs(step) < floor, floor, step)
    bias = np.rint(self.offset / step) + self.correction
    limit = 2.0**31 - 1
    bias = np.clip(bias, -limit, limit).astype(np.int32)
    (fixed,) = requantize.to_multiplier(step / spec.scale)
    return self.make(bias, fixed.multiplier, fixed.shift, spec)


@dataclasses.dataclass(eq=False)
class QValue:
  """A real tensor that exists as integers, perhaps not computed yet.

  Attributes:
    shape: of the tensor.
    key: its name among the ranges.
    source: where codes come from.
    gain: real = gain * (what the source stands for); positive.
    clip: the real interval it is clipped to.
    root: the value it is a scaling or clip of, for fusing tables.
    step: that scaling or clip, on reals.
    acc: the open epilogue, if it is a dot product.
    live: in the twin, the real tensor with gradients.
  """

  shape: tuple[int, ...]
  key: str
  source: Fixed | Computed | Moved | Table
  gain: float = 1.0
  clip: tuple[float, float] = (-INF, INF)
  root: QValue | None = None
  step: Callable[[Any], Any] | None = None
  acc: Acc | None = None
  live: Any = None
  codes: dict[Spec, Any] = dataclasses.field(default_factory=dict)
  base: Operand | None = None


Value = Const | Exact | QValue


def squeeze_const(x: np.ndarray) -> np.ndarray:
  """Returns x with every broadcast (zero-stride) axis cut to length 1."""
  index = tuple(
    slice(0, 1) if s == 0 and n > 1 else slice(None)
    for s, n in zip(x.strides, x.shape)
  )
  return x[index]


def scalar_of(c: Const) -> float | None:
  """Returns the one value of a constant, or None if it has several."""
  small = squeeze_const(c.value)
  return small.reshape(-1)[0] if small.size == 1 else None
