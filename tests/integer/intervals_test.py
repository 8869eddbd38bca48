"""Static ranges hold whatever the operands, and are tight where it matters."""

import itertools

import jax
import numpy as np
import pytest
from jax import lax

from s8bqat_jax.integer import intervals
from s8bqat_jax.integer.intervals import Span

R = np.random.default_rng(0)
PAIRS = [lax.add, lax.sub, lax.mul, lax.div, lax.rem, lax.max, lax.min]
PAIRS += [lax.bitwise_and, lax.bitwise_or, lax.bitwise_xor]
SHIFTS = [lax.shift_left, lax.shift_right_arithmetic, lax.shift_right_logical]
SINGLES = [lax.neg, lax.abs, lax.sign, lax.square, lax.clz, lax.bitwise_not]
SINGLES += [lambda x: lax.integer_pow(x, 3)]


def check(fn, *operands):
  """The rule of the one equation of `fn` bounds what it computes."""
  (e,) = jax.make_jaxpr(fn)(*operands).eqns
  spans = [intervals.of_array(np.asarray(x)) for x in operands]
  ins = [(a.aval, s) for a, s in zip(e.invars, spans, strict=True)]
  found = intervals.span(e.primitive.name, e.params, ins, e.outvars[0].aval)
  assert found is not None
  real = intervals.of_array(np.asarray(fn(*operands)))
  assert real <= found, (e.primitive.name, ins, real, found)
  return real, found


def grids():
  """Pairs of values of random ranges, every pair of their ends included."""
  for _ in range(25):
    (a, b), (c, d) = np.sort(R.integers(-9, 10, (2, 2)))
    x = R.integers(a, b, (8, 8), endpoint=True)
    y = R.integers(c, d, (8, 8), endpoint=True)
    x[0, :4], y[0, :4] = (a, a, b, b), (c, d, c, d)
    yield x.astype(np.int32), y.astype(np.int32)


@pytest.mark.parametrize('fn', PAIRS, ids=lambda f: f.__name__)
def test_pairs(fn):
  for x, y in grids():
    real, found = check(fn, x, y)
    if fn in (lax.add, lax.sub, lax.mul, lax.max, lax.min):
      assert real == found


@pytest.mark.parametrize('fn', SHIFTS, ids=lambda f: f.__name__)
def test_shifts(fn):
  for x, y in grids():
    check(fn, x, np.abs(y))


@pytest.mark.parametrize('fn', SINGLES)
def test_singles(fn):
  for x, _ in grids():
    check(fn, x)


def test_clamp():
  for x, _ in grids():
    for low, high in itertools.combinations(range(-10, 10, 4), 2):
      real, found = check(lax.clamp, np.int32(low), x, np.int32(high))
      assert real == found


def test_sums_and_products():
  for x, y in grids():
    check(lambda x: lax.reduce_sum(x, (0,)), x)
    check(lambda x: lax.cumsum(x, 1), x)
    check(lambda x, y: lax.dot(x, y), x, y)


def test_gather_may_fill():
  x, index = np.int32([3, 4]), np.int32([[0], [7]])
  dims = lax.GatherDimensionNumbers((), (0,), (0,))
  for mode in ('clip', 'fill'):
    check(lambda x, i, m=mode: lax.gather(x, i, dims, (1,), mode=m), x, index)


def test_what_it_does_not_know_has_no_bound():
  assert intervals.span('threefry', {}, [], None) is None
  assert Span(0, 0) == intervals.of_array(np.zeros((0,), np.int8))
