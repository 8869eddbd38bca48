"""Ranges against NumPy, through every kind of inner body."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from s8bqat_jax.integer import (
  audit,
  calibrate,
  lower,
  saturation,
  uncalibrated,
)
from s8bqat_jax.integer.calibrate import _histogram

PARAMS = {'w': jnp.asarray([[2.0, -1.0], [0.5, 3.0]])}
R = np.random.default_rng(0)


def dense(p, x):
  return x @ p['w']


def test_minmax_is_over_all_batches():
  xs = [R.normal(size=(8, 2)).astype(np.float32) for _ in range(3)]
  ranges = calibrate(dense, PARAMS, xs)
  ys = np.concatenate([x @ np.asarray(PARAMS['w']) for x in xs])
  np.testing.assert_allclose(
    ranges['w:dot_general'], (ys.min(), ys.max()), rtol=1e-6
  )
  assert ranges['in:0'] == (min(map(np.min, xs)), max(map(np.max, xs)))


def test_ema_weighs_the_past():
  xs = [np.full((1, 2), v, np.float32) for v in (1.0, 3.0)]
  ranges = calibrate(dense, PARAMS, xs, 'ema')
  np.testing.assert_allclose(ranges['in:0'], [0.95 + 0.15] * 2, rtol=1e-6)


def test_percentile_and_mse_cut_an_outlier():
  x = R.normal(size=(50_000, 2)).astype(np.float32)
  x[0, 0] = 50.0
  widest = calibrate(dense, PARAMS, [x])['in:0']
  central = calibrate(dense, PARAMS, [x], 'percentile')['in:0']
  low, high = np.quantile(x, [0.00005, 0.99995])
  width = (widest[1] - widest[0]) / 2048
  np.testing.assert_allclose(central, (low, high), atol=2 * width)
  best = calibrate(dense, PARAMS, [x], 'mse')['in:0']

  def error(lo, hi):
    step = (hi - lo) / 255
    grid = np.clip(np.rint((x - lo) / step), 0, 255) * step + lo
    return np.mean((grid - x) ** 2)

  assert error(*best) < 0.9 * error(*widest)


def test_a_bin_counts_beyond_what_float32_can():
  # One more at a time is lost there from 2^24 on.
  bins = jnp.zeros(2**24 + 64, jnp.int8).at[0].set(1)
  meter = _histogram({'x': (0.0, 1.0)})
  assert meter.measure('x', bins)[0] == 2**24 + 63


def test_scan_cond_while_and_custom_derivatives_are_entered():
  @jax.custom_jvp
  def double(x):
    return 2 * x

  double.defjvp(lambda p, t: (double(*p), 2 * t[0]))

  def fn(p, x, n):
    del p
    last, ys = jax.lax.scan(lambda c, x: (c + x, jnp.exp(c)), x[0], x)
    y = jax.lax.cond(n > 0, jnp.sin, lambda v: v * 3, last)
    z = jax.lax.while_loop(
      lambda s: s[0] < 3, lambda s: (s[0] + 1, s[1] * 2), (0, y)
    )[1]
    return double(z), ys

  x = np.arange(1, 4, dtype=np.float32)[:, None]
  ranges = calibrate(fn, {}, [(x, np.int32(0))])
  assert ranges['add(~,in:0)'] == (2.0, 7.0)
  assert 'add(~,in:0).sin' not in ranges  # The branch no batch took.
  assert ranges['~.exp'] == pytest.approx((np.exp(1), np.exp(4)))
  assert ranges['~.mul'] == (42.0, 168.0)  # 7 * 3, doubled three times.
  assert ranges['add(~,in:0).mul'] == (21.0, 21.0)
  assert ranges['~.mul.mul'] == (336.0, 336.0)


@jax.custom_jvp
def cube(x):
  return x * x * x


cube.defjvp(lambda p, t: (cube(*p), 3 * p[0] ** 2 * t[0]))

METHODS = ['minmax', 'ema', 'percentile', 'mse']


def _scan(p, x, n):
  step = lambda c, v: (v, jax.lax.cond(n > 0, jnp.exp, jnp.negative, v))
  return jax.lax.scan(step, x[0], x)[1]


# function of (x, n), and the name of its value that only n > 0 reaches.
BODIES = {
  'scan': (_scan, 'in:0.exp'),
  'cond': (
    lambda p, x, n: jax.lax.cond(n > 0, jnp.exp, jnp.negative, x),
    'in:0.exp',
  ),
  'jit': (
    lambda p, x, n: jax.lax.cond(n > 0, jax.jit(jnp.exp), jnp.negative, x),
    'in:0.exp',
  ),
  'custom_jvp': (
    lambda p, x, n: jax.lax.cond(n > 0, cube, jnp.negative, x),
    'mul(in:0,in:0)',
  ),
}


@pytest.mark.parametrize('body', BODIES)
@pytest.mark.parametrize('method', METHODS)
def test_batches_that_miss_a_branch_leave_its_range_alone(method, body):
  fn, name = BODIES[body]
  batches = [
    (R.normal(size=(20, 3)).astype(np.float32), np.int32(n))
    for n in (0, 1, 0, 1, 0)
  ]
  ranges = calibrate(fn, {}, batches, method)
  taken = calibrate(fn, {}, [b for b in batches if b[1]], method)
  assert name in ranges and ranges[name] == taken[name]
  assert np.all(np.isfinite([*ranges.values()]))
  # The other branch has its range as well, so the function can be lowered.
  assert audit(lower(fn, {}, ranges, *batches[0])).ok


@pytest.mark.parametrize('method', METHODS)
def test_a_branch_that_no_batch_takes_has_no_range(method):
  fn, name = BODIES['cond']
  ranges = calibrate(fn, {}, [(np.ones(3, np.float32), np.int32(0))], method)
  assert name not in ranges
  with pytest.raises(ValueError, match='NaN in'):
    calibrate(fn, {}, [(np.full(3, np.nan), np.int32(1))], method)


def test_masks_are_not_data():
  fn = lambda p, x, m: jnp.where(m, x, -1e30) * 1.0
  x = np.asarray([1.0, 2.0], np.float32)
  ranges = calibrate(fn, {}, [(x, np.asarray([True, False]))])
  assert all(-1e6 < lo <= hi < 1e6 for lo, hi in ranges.values())


class Batch(NamedTuple):
  x: np.ndarray
  y: np.ndarray


@pytest.mark.parametrize('kind', ['tuple', 'named tuple', 'dict'])
def test_a_named_tuple_is_one_input(kind):
  x, y = R.normal(size=(2, 4, 2)).astype(np.float32)
  fn = lambda p, b: b['x'] @ p['w'] + b['y']
  if kind == 'tuple':
    fn, batch = (lambda p, x, y: x @ p['w'] + y), (x, y)
  elif kind == 'dict':
    batch = {'x': x, 'y': y}
  else:
    fn, batch = (lambda p, b: b.x @ p['w'] + b.y), Batch(x, y)
  ranges = calibrate(fn, PARAMS, [batch])
  assert ranges['in:1'] == (y.min(), y.max())
  assert not saturation(fn, PARAMS, ranges, [batch])


def test_what_pads_is_not_in_the_range_of_what_is_padded():
  fn = lambda p, x: jnp.pad(jnp.tanh(x @ p['w']), 1, constant_values=50.0)
  ranges = calibrate(fn, PARAMS, [R.normal(size=(8, 2))])
  assert ranges['w:dot_general.tanh'][1] < 1
  assert ranges['w:dot_general.tanh.pad'][1] == 50


@pytest.mark.parametrize('boxed', [True, False])
def test_ranges_are_of_any_form_of_the_same_parameters(boxed):
  """From nnx's boxes or linen's collections to what a file gives back."""
  plain = {'a': dict(PARAMS), 'b': {'bias': jnp.ones(2)}}
  fn = lambda p, x: x @ p['a']['w'] + p['b']['bias']
  given, of_given = {'params': plain}, lambda p, x: fn(p['params'], x)
  if boxed:
    given = nnx.State(jax.tree.map(nnx.Param, plain))
    of_given = lambda p, x: x @ p['a']['w'][...] + p['b']['bias'][...]
  x = R.normal(size=(8, 2)).astype(np.float32)
  ranges = calibrate(of_given, given, [x])
  assert set(ranges) == {'in:0', 'a/w:dot_general', 'b/bias:add'}
  integer = lower(fn, plain, ranges, x)
  assert set(integer.weights) == {'a/w', 'b/bias'}


def test_two_parameters_of_one_name():
  params = {'params': {'w': jnp.ones((2, 2))}, 'w': jnp.ones((2, 2))}
  fn = lambda p, x: x @ p['w'] @ p['params']['w']
  for act in (
    lambda: calibrate(fn, params, [np.ones((1, 2))]),
    lambda: lower(fn, params, {}, np.ones((1, 2), np.float32)),
  ):
    with pytest.raises(ValueError, match=r"more than one leaf each: \['w'\]"):
      act()


def test_malformed():
  with pytest.raises(ValueError, match='method must be'):
    calibrate(dense, PARAMS, [], 'median')
  with pytest.raises(ValueError, match='at least one batch'):
    calibrate(dense, PARAMS, [])
  with pytest.raises(ValueError, match='NaN in .*in:0'):
    calibrate(dense, PARAMS, [np.full((1, 2), np.nan, np.float32)])


def test_saturation_counts_what_lies_beyond():
  ranges = {'in:0': (-1.0, 1.0), 'w:dot_general': (-100.0, 100.0)}
  x = np.float32([[0.5, 1.5], [-3.0, 1.001], [np.inf, -0.9]])
  found = saturation(dense, PARAMS, ranges, [x, x])
  # Infinity is a mask; 1.001 is within half a step.
  assert found == {'in:0': pytest.approx(2 / 5)}
  assert saturation(dense, PARAMS, ranges, [x], limit=0.4) == found
  with pytest.raises(ValueError, match=r'in:0 \(40.0%\); calibrate with'):
    saturation(dense, PARAMS, ranges, [x], limit=0.1)
  assert saturation(dense, PARAMS, ranges, [0.1 * x[:1]], limit=0.0) == {}


def test_saturation_never_counts_calibration_data():
  x = R.normal(size=(50, 2)).astype(np.float32)
  ranges = calibrate(dense, PARAMS, [x])
  assert saturation(dense, PARAMS, ranges, [x], limit=0.0) == {}
  assert saturation(dense, PARAMS, ranges, [9 * x], limit=None)


def test_uncalibrated_lowers_what_calibrated_ranges_do():
  x = R.normal(size=(3, 2)).astype(np.float32)
  ranges = calibrate(dense, PARAMS, [x])
  made = [lower(dense, PARAMS, r, x).jaxpr for r in (ranges, uncalibrated())]
  names = [[e.primitive.name for e in m.jaxpr.eqns] for m in made]
  assert names[0] == names[1]
  low, high = uncalibrated().get('any', (0.0, 0.0))
  assert low < 0 < high and 'any' in uncalibrated()
