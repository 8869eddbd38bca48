"""Static ranges of the integer equations between the integer primitives.

`span(name, params, ins, outs)` answers, for one equation of a jaxpr, between
which two integers its exact result lies, given the same of its operands; the
caller (audit.py) compares that with the dtype. Python integers don't overflow.
What is not listed here has no bound.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jax import lax


class Span(NamedTuple):
  """low <= every element <= high."""

  low: int
  high: int

  def __or__(self, other: Any) -> Span:
    return Span(min(self.low, other[0]), max(self.high, other[1]))

  def __le__(self, other: Any) -> bool:
    return other[0] <= self.low and self.high <= other[1]

  def __add__(self, other: Any) -> Span:
    return Span(self.low + other[0], self.high + other[1])

  def __neg__(self) -> Span:
    return Span(-self.high, -self.low)

  def __mul__(self, other: Any) -> Span:
    ends = [a * b for a, b in itertools.product(self, other)]
    return Span(min(ends), max(ends))

  def times(self, count: int) -> Span:
    """Of the sum of `count` elements."""
    return Span(self.low * count, self.high * count)


TRUTH = Span(0, 1)


def of_dtype(dtype: Any) -> Span:
  """Returns what an integer or boolean dtype can hold."""
  if dtype == np.bool_:
    return TRUTH
  info = np.iinfo(dtype)
  return Span(int(info.min), int(info.max))


def of_array(x: np.ndarray) -> Span:
  """Returns the extremes of an array; of an empty one, (0, 0)."""
  return Span(int(x.min()), int(x.max())) if x.size else Span(0, 0)


def is_integer(dtype: Any) -> bool:
  return np.issubdtype(dtype, np.integer) or dtype == np.bool_


def span(
  name: str, params: Any, ins: Sequence[tuple[Any, Span]], out: Any
) -> Span | None:
  """Bounds the exact result of one equation.

  Args:
    name: of the primitive.
    params: its parameters.
    ins: (aval, Span) of each operand.
    out: aval of the result; all results of an equation share one answer.

  Returns:
    Between which integers its elements lie if nothing overflows; None if this
    module has no rule for the equation.
  """
  rule = _RULES.get(name)
  return None if rule is None else rule(params, ins, out)


# Rules: (params, [(aval, span) per operand], aval of the result) -> Span.


def _hull(params, ins, out):
  """Elements of the operands, moved, picked or ordered."""
  del params, out
  return Span(min(s.low for _, s in ins), max(s.high for _, s in ins))


def _first(params, ins, out):
  del params, out
  return ins[0][1]


def _cases(params, ins, out):
  return _hull(params, ins[1:], out)


def _update(params, ins, out):
  """The operand and what is written into it; the rest are indices."""
  return _hull(params, ins[:2], out)


def _scatter(params, ins, out):
  return _hull(params, (ins[0], ins[2]), out)


def _gather(params, ins, out):
  found = ins[0][1]
  if params['mode'] != lax.GatherScatterMode.FILL_OR_DROP:
    return found
  fill = params['fill_value']
  # JAX fills signed integers with the lowest, unsigned with the highest.
  limits = of_dtype(out.dtype)
  if fill is None:
    fill = limits.low if limits.low else limits.high
  return found | (int(fill), int(fill))


def _whole(params, ins, out):
  """Anything the dtype holds: bitwise operations can't overflow."""
  del params, ins
  return of_dtype(out.dtype)


def _bits(params, ins, out):
  del params, out
  return Span(0, 8 * ins[0][0].dtype.itemsize)


def _sign(params, ins, out):
  del params, ins, out
  return Span(-1, 1)


def _iota(params, ins, out):
  del ins
  return Span(0, max(out.shape[params['dimension']] - 1, 0))


def _position(params, ins, out):
  """An index into the operand."""
  del out
  return Span(0, max(ins[0][0].shape[params['axes'][0]] - 1, 0))


def _add(params, ins, out):
  del params, out
  return ins[0][1] + ins[1][1]


def _sub(params, ins, out):
  del params, out
  return ins[0][1] + -ins[1][1]


def _mul(params, ins, out):
  del params, out
  return ins[0][1] * ins[1][1]


def _neg(params, ins, out):
  del params, out
  return -ins[0][1]


def _abs(params, ins, out):
  del params, out
  x = ins[0][1]
  return Span(max(x.low, -x.high, 0), max(x.high, -x.low))


def _square(params, ins, out):
  x = _abs(params, ins, out)
  return Span(x.low**2, x.high**2)


def _power(params, ins, out):
  peak = _abs(params, ins, out).high ** max(params['y'], 0)
  return Span(-peak, peak)


def _div(params, ins, out):
  """Towards zero; the largest quotient is by the divisor nearest to zero."""
  del params
  (_, x), (_, by) = ins
  nearest = max(by.low, -by.high, 1)
  shrink = lambda v: v // nearest if v >= 0 else -(-v // nearest)
  result = Span(0, 0) | (shrink(x.low), shrink(x.high))
  if by.low < 0:
    result |= -result
  if by.low <= 0 <= by.high:
    # Division by zero sets every bit.
    ones = -1 if of_dtype(out.dtype).low else of_dtype(out.dtype).high
    result |= (ones, ones)
  return result


def _rem(params, ins, out):
  """Of the dividend's sign, and below the divisor unless that is zero."""
  del params, out
  (_, x), (_, by) = ins
  low, high = min(x.low, 0), max(x.high, 0)
  if by.low <= 0 <= by.high:
    return Span(low, high)
  below = max(abs(by.low), abs(by.high)) - 1
  return Span(max(low, -below), min(high, below))


def _max(params, ins, out):
  del params, out
  (_, a), (_, b) = ins
  return Span(max(a.low, b.low), max(a.high, b.high))


def _min(params, ins, out):
  del params, out
  (_, a), (_, b) = ins
  return Span(min(a.low, b.low), min(a.high, b.high))


def _clamp(params, ins, out):
  del params, out
  (_, low), (_, x), (_, high) = ins
  clip = lambda v: Span(
    min(max(v, low.low), high.low), min(max(v, low.high), high.high)
  )
  return clip(x.low) | clip(x.high)


def _logic(params, ins, out):
  """Truth values stay so; bits of integers may be any."""
  return TRUTH if out.dtype == np.bool_ else _whole(params, ins, out)


def _and(params, ins, out):
  """No larger than an operand that is not negative."""
  tops = [s.high for _, s in ins if s.low >= 0]
  return Span(0, min(tops)) if tops else _whole(params, ins, out)


def _shift_left(params, ins, out):
  by = ins[1][1]
  if by.low < 0 or by.high > 64:
    return None
  return _mul(params, (ins[0], (None, Span(2**by.low, 2**by.high))), out)


def _shift_right(params, ins, out):
  del params, out
  (_, x), (_, by) = ins
  if by.low < 0 or by.high > 64:
    return x | (-1, 0)
  ends = [v >> n for v, n in itertools.product(x, by)]
  return Span(min(ends), max(ends))


def _shift_right_logical(params, ins, out):
  if ins[0][1].low < 0:
    return _whole(params, ins, out)
  return _shift_right(params, ins, out)


def _convert(params, ins, out):
  """A truth value is never out of range: it asks whether x is zero."""
  del params
  return TRUTH if out.dtype == np.bool_ else ins[0][1]


def _sum(params, ins, out):
  del out
  aval, x = ins[0]
  return x.times(math.prod(aval.shape[i] for i in params['axes']))


def _running_sum(params, ins, out):
  del out
  aval, x = ins[0]
  return x | x.times(aval.shape[params['axis']])


def _window_sum(params, ins, out):
  del out
  x = ins[0][1]
  # Padding makes windows shorter.
  return Span(0, 0) | x.times(math.prod(params['window_dimensions']))


def _scatter_add(params, ins, out):
  """Every update may fall on one element."""
  del params, out
  return ins[0][1] + (Span(0, 0) | ins[2][1].times(math.prod(ins[2][0].shape)))


def _dot(params, ins, out):
  del out
  (lc, _), _ = params['dimension_numbers']
  depth = math.prod(ins[0][0].shape[i] for i in lc)
  return (ins[0][1] * ins[1][1]).times(depth)


def _conv(params, ins, out):
  del out
  kernel, weights = ins[1]
  channels = kernel.shape[params['dimension_numbers'].rhs_spec[0]]
  depth = math.prod(kernel.shape) // max(channels, 1)
  return Span(0, 0) | (ins[0][1] * weights).times(depth)


_RULES: dict[str, Callable[..., Span | None]] = {
  **dict.fromkeys(
    """reshape transpose broadcast_in_dim squeeze rev slice split
    unstack stack concatenate pad tile copy optimization_barrier stop_gradient
    reduce_max reduce_min cummax cummin sort""".split(),
    _hull,
  ),
  'dynamic_slice': _first,
  'select_n': _cases,
  'dynamic_update_slice': _update,
  'scatter': _scatter,
  'gather': _gather,
  **dict.fromkeys(
    """eq ne lt le gt ge reduce_and reduce_or reduce_xor or xor
    not""".split(),
    _logic,
  ),
  **dict.fromkeys('clz population_count'.split(), _bits),
  'and': _and,
  'sign': _sign,
  'iota': _iota,
  **dict.fromkeys('argmax argmin'.split(), _position),
  **dict.fromkeys('add add_any'.split(), _add),
  'sub': _sub,
  'mul': _mul,
  'neg': _neg,
  'abs': _abs,
  'square': _square,
  'integer_pow': _power,
  'div': _div,
  'rem': _rem,
  'max': _max,
  'min': _min,
  'clamp': _clamp,
  'shift_left': _shift_left,
  'shift_right_arithmetic': _shift_right,
  'shift_right_logical': _shift_right_logical,
  'convert_element_type': _convert,
  'reduce_sum': _sum,
  'cumsum': _running_sum,
  'reduce_window_sum': _window_sum,
  'scatter-add': _scatter_add,
  'dot_general': _dot,
  'conv_general_dilated': _conv,
}
