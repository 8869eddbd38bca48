"""The audit must be able to say no."""

import jax
import jax.numpy as jnp
import numpy as np

from s8bqat_jax.integer import audit, dot, elementwise
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
