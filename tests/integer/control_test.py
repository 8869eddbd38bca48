"""Loops and branches in integers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from s8bqat_jax.artifacts import qtensor
from s8bqat_jax.integer import _jax_internals as internals
from s8bqat_jax.integer import audit, calibrate, lower, twin
from s8bqat_jax.integer.control import feeds_product

R = np.random.default_rng(0)
P = {
  'w': R.normal(size=(4, 12)).astype(np.float32) * 0.4,
  'u': R.normal(size=(4, 12)).astype(np.float32) * 0.4,
  'b': R.normal(size=12).astype(np.float32),
}
X = R.normal(size=(20, 3, 4)).astype(np.float32)
M = {'m': R.normal(size=(4, 4)).astype(np.float32)}


def gru(p, x):
  def step(h, x):
    a, c = x @ p['w'] + p['b'], h @ p['u']
    z, r = jax.nn.sigmoid(a[:, :8] + c[:, :8]).reshape(3, 2, 4).swapaxes(0, 1)
    n = jnp.tanh(a[:, 8:] + r * c[:, 8:])
    h = (1 - z) * n + z * h
    return h, h

  return lax.scan(step, jnp.zeros((3, 4)), x)


def close(fn, params, *inputs, least=25.0):
  ranges = calibrate(fn, params, [inputs])
  integer = lower(fn, params, ranges, *inputs)
  assert audit(integer).ok
  for y, z in zip(
    *map(jax.tree.leaves, (fn(params, *inputs), integer(*inputs)))
  ):
    y, z = np.asarray(y), np.asarray(z)
    error = np.mean((y - z) ** 2) + 1e-30  # none, if they are exact
    assert 10 * np.log10(np.mean(y**2) / error) > least
  return integer


def test_gru_that_nobody_wrote_for_it():
  close(gru, P, X)


def test_reverse_and_no_inputs():
  fn = lambda p, x: lax.scan(
    lambda c, v: (0.5 * c + v, c), jnp.zeros((3, 4)), x, reverse=True
  )
  close(fn, {}, X)
  decay = lambda p, x: lax.scan(
    lambda c, _: (c * 0.9, None), x, None, length=5
  )[0]
  close(decay, {}, X[0])


def test_small_updates_of_a_long_sum_do_not_vanish():
  """A carry no product reads has 16 bits: 1,000 steps of 0.004 add up to 4."""
  fn = lambda p, x: lax.scan(lambda c, v: (c + v, None), jnp.zeros(3), x)[0]
  x = np.full((1000, 3), 0.004, np.float32)
  ranges = calibrate(fn, {}, [x])
  integer = lower(fn, {}, ranges, x)
  np.testing.assert_allclose(integer(x), 4.0, rtol=0.02)


def test_integer_counters_stay_integers():
  def fn(p, x):
    step = lambda c, v: ((c[0] + 1, jnp.tanh(c[1] + v)), c[0])
    return lax.scan(step, (0, jnp.zeros((3, 4))), x)

  ranges = calibrate(fn, {}, [X])
  (count, _), counts = lower(fn, {}, ranges, X)(X)
  assert int(count) == 20
  np.testing.assert_array_equal(counts, np.arange(20))


IMPULSE = np.float32([10, 0, 0, 0, 0, 0, 0, 0])


def iir(p, x):
  """y[t] = x[t] + y[t - 2] / 2: the state of t - 2 is only passed on."""

  def step(c, t):
    y = t + 0.5 * c[1]
    return (y, c[0]), y

  return lax.scan(step, (0.0, 0.0), x)[1]


def delayed_by_while(p, x):
  def body(s):
    i, now, before, older = s
    return i + 1, jnp.asarray(x)[i], now * 1.0, before[None][0]

  return lax.while_loop(lambda s: s[0] < 3, body, (0, 0.0, 0.0, 0.0))[1:]


def taking_turns(p, x):
  return lax.scan(lambda c, t: (c[::-1], c[0] * t), [1.0, 3.0], x)[1]


def filled_up(p, x):
  """A delay line whose last place is filled with a constant."""
  return lax.scan(
    lambda c, t: (jnp.pad(c[1:], (0, 1), constant_values=5.0), c * t),
    jnp.zeros(4),
    x,
  )[1]


def pushed(p, x):
  """A delay line that the input is padded into."""
  return lax.scan(
    lambda c, t: (lax.pad(c[1:], t, [(0, 1, 0)]), c.sum()), jnp.zeros(4), x
  )[1]


def made_of_truth(p, x):
  """A state that is a flag of the step before."""

  def step(c, t):
    flag, g = c
    return (t > 0, flag.astype(jnp.float32)), g * t

  return lax.scan(step, (True, jnp.float32(0)), x)[1]


@pytest.mark.parametrize(
  'fn', [iir, delayed_by_while, taking_turns, filled_up, pushed, made_of_truth]
)
def test_a_state_that_is_passed_on_keeps_all_that_it_held(fn):
  close(fn, {}, np.float32([10, -6, 4, 0, 0, 0, 0, 0]), least=35.0)


def test_a_delay_line_that_streams():
  step = lambda p, c, t: ((t * p['gain'], c[0], c[1]), c[0] + c[2])
  params, start = {'gain': np.float32(0.5)}, (np.float32(0),) * 3
  calls, c = [], start
  for t in IMPULSE:
    calls.append((c, t))
    c, _ = step(params, c, t)
  ranges = calibrate(step, params, calls, carry=True)
  integer = lower(step, params, ranges, start, IMPULSE[0], carry=True)
  found, c = [], start
  for t in IMPULSE:
    c, y = integer(c, t)
    found.append(float(y))
  np.testing.assert_allclose(found, [0, 5, 0, 5, 0, 0, 0, 0], atol=0.03)


def test_an_inner_loop_starts_from_all_that_the_outer_one_holds():
  def fn(p, x):
    def outer(h, t):
      h = lax.fori_loop(0, 2, lambda _, c: c * 0.5, h)
      return h + t, h

    return lax.scan(outer, jnp.zeros(()), x)[1]

  close(fn, {}, np.full(6, 7.5, np.float32), least=35.0)


def test_small_updates_of_a_sum_behind_a_gate_do_not_vanish():
  def fn(p, x, opened):
    step = lambda c, t: (lax.cond(t[1], lambda: c + t[0], lambda: c), None)
    return lax.scan(step, jnp.zeros(()), (x, opened))[0]

  close(fn, {}, np.full(1000, 0.004, np.float32), np.ones(1000, bool))


@pytest.mark.parametrize('flag', [0, 1])
def test_cond(flag):
  fn = lambda p, x, n: lax.cond(n > 0, jnp.tanh, lambda v: 0.25 * v, x)
  ranges = calibrate(fn, {}, [(X, np.int32(0)), (X, np.int32(1))])
  integer = lower(fn, {}, ranges, X, np.int32(0))
  assert audit(integer).ok
  y = np.asarray(fn({}, X, np.int32(flag)))
  assert np.abs(y - integer(X, np.int32(flag))).max() < 0.05


def test_while():
  def fn(p, x, n):
    return lax.while_loop(
      lambda s: s[0] < n, lambda s: (s[0] + 1, jnp.tanh(s[1] @ p['m'])), (0, x)
    )[1]

  close(fn, M, X[0], np.int32(3), least=20.0)


def test_while_its_condition_computes_with_reals():
  def fn(p, x):
    return lax.while_loop(
      lambda s: jnp.sum(s * 0.5) < p['most'], lambda s: jnp.tanh(s) + 0.25, x
    )

  params = {'most': np.float32(3.0)}
  close(fn, params, np.abs(X[0]) * 0.1, least=20.0)


def test_what_a_product_reads():
  graph, _ = internals.trace(gru, P, X)
  scan = next(e for e in graph.eqns if e.name == 'scan')
  parts = internals.scan_parts(scan)
  assert parts.num_carry == 1 and parts.length == 20 and not parts.reverse
  carry = parts.body.ins[parts.num_consts]
  assert feeds_product(parts.body, carry)
  tanh, _ = internals.trace(lambda x: jnp.tanh(x), X)
  assert not feeds_product(tanh, tanh.ins[0])
  held, _ = internals.trace(lambda p, x: lax.stop_gradient(x) @ p['m'], M, X)
  assert feeds_product(held, held.ins[-1])


def test_a_clip_that_crosses_a_border():
  """A carry of 16 bits, and what a branch returns, have specs of their own."""
  u = np.float32([0.3, -0.4, 0.5, 0.2])

  def recurrent(p, x):
    def step(h, x):
      h = jax.nn.relu(x + u * h)
      return h, h

    return lax.scan(step, jnp.zeros((3, 4)), x)[1]

  close(recurrent, {}, X, least=35.0)
  branch = lambda p, i, x: lax.cond(
    i > 0, lambda x: jax.nn.relu(x), lambda x: x - 1, x
  )
  ranges = calibrate(branch, {}, [(np.int32(i), X) for i in (0, 1)])
  integer = lower(branch, {}, ranges, np.int32(0), X)
  for i in (0, 1):
    z = integer(np.int32(i), X)
    assert np.abs(branch({}, np.int32(i), X) - z).max() < 0.04


def test_a_scan_over_stacked_weights_keeps_their_codes():
  codes = R.integers(0, 4, (5, 4, 4)).astype(np.uint8)
  grid = np.int8([-60, -7, 9, 55])
  w = qtensor.QTensor(codes, np.float32(0.01), grid, 4)
  params = {'w': w, 'b': R.normal(size=(5, 4)).astype(np.float32)}

  def layers(p, x):
    body = lambda x, p: (jnp.tanh(x @ p['w'] + p['b']), None)
    return lax.scan(body, x, p)[0]

  x = X[0]
  ranges = calibrate(layers, params, [x])
  integer = lower(layers, params, ranges, x)
  assert audit(integer).ok
  stored = [c for c in integer.jaxpr.consts if np.shape(c) == (5, 4, 4)]
  np.testing.assert_array_equal(stored[0], grid[codes])
  decoded = qtensor.decode(params)
  y, z = layers(decoded, x), integer(x)
  t = twin(layers, params, ranges)(decoded, x)
  assert np.abs(y - z).max() < 0.03
  assert np.abs(t - z).max() <= 1.01 * integer.out_specs[0].scale
  scales = np.full((5, 1, 1), 0.01, np.float32)
  rows = qtensor.QTensor(codes, scales, grid, 4)
  with pytest.raises(ValueError, match="'w' holds the weights of every step"):
    lower(layers, {**params, 'w': rows}, ranges, x)


def test_a_step_is_calibrated_as_it_is_lowered():
  def step(p, h, x):
    h = jnp.tanh(x @ p['w'][:, :4] + h @ p['u'][:, :4])
    return h, 2 * h

  start = np.zeros((3, 4), np.float32)
  ranges = calibrate(step, P, [(start, x) for x in X], carry=True)
  integer = lower(step, P, ranges, start, X[0], carry=True)
  y, z = step(P, start, X[1])[1], integer(start, X[1])[1]
  assert np.abs(y - z).max() < 0.05
