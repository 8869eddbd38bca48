"""The audit must be able to say no."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from s8bqat_jax.integer import audit, calibrate, conv, dot, elementwise, lower
from s8bqat_jax.integer.requantize import Out

MATMUL = (((1,), (0,)), ((), ()))


def product(x, w, bias=0):
  return dot.q_dot(
    x, w, np.int32(bias), np.int32(2**30), dimension_numbers=MATMUL,
    zeros=(0, 0), shift=40, out=Out(), site='here',
  )  # fmt: skip


def program(fn, *shapes):
  return jax.make_jaxpr(fn)(*(jax.ShapeDtypeStruct(s, np.int8) for s in shapes))


def test_exact_bound_from_the_weights():
  w = np.asarray([[1, -100], [-1, 27]], np.int8)
  report = audit(program(lambda x: product(x, w, 5), (3, 2)))
  assert report.ok and report.rows[0].bound == 128 * 127 + 5
  assert report.rows[0].site == 'here'
  assert 'no floating-point value; no accumulator can overflow' in str(report)


def test_overflow_is_found():
  deep = 2**17
  report = audit(program(product, (1, deep), (deep, 1)))
  assert not report.ok and report.overflows and 'OVERFLOW' in str(report)
  assert audit(program(product, (1, deep - 1), (deep - 1, 1))).ok


def test_a_bias_counts():
  w = np.ones((1, 1), np.int8)
  assert not audit(program(lambda x: product(x, w, 2**31 - 100), (1, 1))).ok


def test_float_is_found_in_loops_branches_and_calls():
  def body(c, _):
    return (c.astype(jnp.float32) * 0.5).astype(jnp.int8), None

  loops = lambda x: jax.lax.scan(body, x, None, length=3)[0]
  calls = jax.jit(lambda x: jnp.sqrt(x.astype(jnp.float32)).astype(jnp.int8))
  branches = lambda x: jax.lax.cond(x[0] > 0, calls, lambda v: v, x)
  for fn in (loops, calls, branches):
    report = audit(program(fn, (4,)))
    assert report.floats and not report.ok and 'NOT integer' in str(report)


def test_weights_are_followed_into_a_scan():
  w = np.full((2, 2), 3, np.int8)

  def fn(x):
    return jax.lax.scan(lambda c, _: (product(c, w), None), x, None, length=2)

  report = audit(program(fn, (1, 2)))
  assert report.rows[0].bound == 128 * 6 and report.equations > 3


def test_tables_and_products_of_16_bits_fit():
  lut = lambda x: elementwise.q_lut(
    x.astype(jnp.int16), np.full(2**16, 127, np.int8), out=Out(), site='',
  )  # fmt: skip
  row = audit(program(lut, (4,))).rows[0]
  assert row.bound <= row.limit


def raw(fn, *avals):
  """Audits a program of JAX's own integer equations."""
  return audit(jax.make_jaxpr(fn)(*(jax.ShapeDtypeStruct(*a) for a in avals)))


def wide(x):
  return x.astype(jnp.int32)


I8, I32 = np.int8, np.int32
DEEP = 2**17
CODES, COUNTS = ((4,), I8), ((4,), I32)
# function, operands.
OVERFLOWING = {
  'dot': (
    lambda x, w: lax.dot_general(x, w, MATMUL, preferred_element_type=I32),
    ((1, 2 * DEEP), I8), ((2 * DEEP, 1), I8),
  ),
  'dot in int8': (lambda x, w: lax.dot(x, w), ((2, 2), I8), ((2, 2), I8)),
  'scalar dot': (jnp.dot, ((9,), I32), ((9,), I32)),
  'conv': (
    lambda x, w: lax.conv(x, w, (1,), 'SAME', preferred_element_type=I32),
    ((1, DEEP, 4), I8), ((3, DEEP, 4), I8),
  ),
  'mul': (lambda x: x * x, CODES),
  'add': (lambda x: x + x, CODES),
  'sub': (lambda x: x - np.int8(1), CODES),
  'neg': (lambda x: -x, CODES),
  'abs': (lambda x: jnp.abs(x), CODES),
  'power': (lambda x: wide(x) ** 5, CODES),
  'shift': (lambda x: wide(x) << 25, CODES),
  'narrow': (lambda x: x.astype(I8), COUNTS),
  'sum': (lambda x: jnp.sum(wide(x) * 2**24), ((400,), I8)),
  'running sum': (lambda x: jnp.cumsum(x), COUNTS),
  'product': (lambda x: jnp.prod(wide(x)), CODES),
  'scatter': (lambda x, i: x.at[i].add(np.int8(1)), CODES, COUNTS),
  'in a scan': (
    lambda x: lax.scan(lambda c, v: (c + v, None), x[0] * 0, x)[0],
    ((2**25, 4), I32),
  ),
  'long scan': (
    lambda x: lax.scan(
      lambda c, _: (c + wide(x), None), wide(x), None, length=2**25
    )[0],
    CODES,
  ),
  'in a loop': (
    lambda x: lax.while_loop(
      lambda c: c[0] < 1000, lambda c: c + wide(x), wide(x)
    ),
    CODES,
  ),
  'in a branch': (
    lambda x, n: lax.cond(n > 0, lambda v: v + v, lambda v: v, x),
    CODES, ((), I32),
  ),
  'in a call': (jax.jit(lambda x: jax.jit(lambda v: v + v)(x)), CODES),
}  # fmt: skip


@pytest.mark.parametrize('name', OVERFLOWING)
def test_raw_equations_that_may_overflow(name):
  fn, *avals = OVERFLOWING[name]
  report = raw(fn, *avals)
  assert not report.ok and report.unproven and not report.overflows
  assert 'overflow NOT excluded' in str(report)


PROVEN = {
  'dot': (
    lambda x, w: lax.dot_general(x, w, MATMUL, preferred_element_type=I32),
    ((1, DEEP - 1), I8), ((DEEP - 1, 1), I8),
  ),
  'constant': (
    lambda x: wide(x) @ np.full((4, 4), 2**20, I32), ((3, 4), I8)
  ),
  'conv': (
    lambda x, w: lax.conv(x, w, (1,), 'SAME', preferred_element_type=I32),
    ((1, 5, 4), I8), ((3, 5, 4), I8),
  ),
  'sums': (lambda x: jnp.cumsum(wide(x) * wide(x) - wide(x)).sum(), CODES),
  'mean': (lambda x: (wide(x).sum() + 2) // 4 % 3, CODES),
  'minus one': (lambda x: jnp.maximum(x, -127) - np.int8(1), CODES),
  'clip': (lambda x: jnp.clip(wide(x) * 3, -100, 100).astype(I8), CODES),
  'shift': (lambda x: (wide(x) << 20) >> 3, CODES),
  'truth': (lambda x: ((x > 0) & ~(x == 3)).astype(I8) + np.int8(1), CODES),
  'counts': (lambda x: jnp.sum(x > 0) + jnp.arange(4), CODES),
  'order': (lambda x: jnp.argmax(x) + jnp.sort(wide(x)) + 1, CODES),
  'scalars': (lambda n: n * n + 1, ((), I32)),
  'index': (
    lambda x, n: lax.dynamic_slice(x, (n + 1,), (2,)), CODES, ((), I32)
  ),
  'counter': (
    lambda x: lax.fori_loop(
      0, 9, lambda i, c: lax.dynamic_update_slice(c, x[:1], (i,)), x
    ),
    CODES,
  ),
  'scan': (
    lambda x: lax.scan(
      lambda c, v: ((c[0] + 1, c[1] + wide(v), v // 2), c[0] * 2),
      (jnp.zeros(4, I32), jnp.zeros(4, I32), x[0]),
      x,
    ),
    ((1000, 4), I8),
  ),
  'scatter': (lambda x: wide(x).at[x & np.int8(3)].add(1), CODES),
}  # fmt: skip


@pytest.mark.parametrize('name', PROVEN)
def test_raw_equations_that_can_not_overflow(name):
  fn, *avals = PROVEN[name]
  report = raw(fn, *avals)
  assert report.ok, str(report)
  assert not report.assumptions


def test_integers_of_the_function_itself():
  """Lengths and ids may be counted and compared, not multiplied at will."""
  fn = lambda p, n: ((n + 3) // 4, jnp.arange(9) < n[:, None], n.sum())
  n = np.int32([5, 3])
  report = audit(lower(fn, {}, {}, n))
  assert report.ok, str(report)
  assert 'assumed: integer input 0 int32[2] lies in [-16777216, 16777216]' in (
    str(report)
  )
  report = audit(lower(lambda p, n: n * 2**20 * 4096, {}, {}, n))
  assert not report.ok and 'mul int32[2] may reach 2^44.0, at ' in str(report)
  assert all('audit_test.py' in u for u in report.unproven)


def test_lowered_functions_assume_nothing_of_codes():
  params = {'w': np.ones((2, 2), np.float32)}
  x = np.ones((3, 2), np.float32)
  fn = lambda p, x: jnp.tanh(x @ p['w'])[:2]
  report = audit(lower(fn, params, calibrate(fn, params, [x]), x))
  assert report.ok and not report.assumptions


@pytest.mark.parametrize('wrong', [product, None, 'model', np.zeros(2)])
def test_what_audit_takes(wrong):
  match = f'closed jaxpr, got {type(wrong).__name__}; lower the function first'
  with pytest.raises(TypeError, match=match):
    audit(wrong)


def test_where_a_maximum_and_a_masked_table_lie():
  """A maximum lies where its input does; a table may hold a mask's code."""
  place = {'window': (2,), 'strides': (1,), 'padding': ((0, 0),)}
  place |= {'dilation': (1,), 'zero': 0, 'shift': 1, 'out': Out(), 'site': ''}

  def wide(x):
    return conv.q_pool(x, np.int32(1), kind='max', **place).astype(jnp.int16)

  def fn(x):
    return wide(x) + jnp.int16(2**15 - 1 - 1000)

  def overflows(dtype):
    x = jax.ShapeDtypeStruct((1, 4, 1), dtype)
    return not audit(jax.make_jaxpr(fn)(x)).ok

  assert overflows(np.int16) and not overflows(np.int8)
  table = np.full(256, -127, np.int8)
  table[0] = -128

  def looked_up(x, limit):
    codes = elementwise.q_lut(x, table, out=Out(0, -127, 127), site='')
    return codes.astype(jnp.int16) - jnp.int16(limit)

  for limit, fits in ((2**15 - 128, True), (2**15 - 127, False)):
    report = audit(program(lambda x, n=limit: looked_up(x, n), (3,)))
    assert report.ok == fits, limit
