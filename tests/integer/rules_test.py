"""Rules one by one: tables, epilogues, clips, movements, errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from s8bqat_jax.integer import (
  MissingRange,
  UnsupportedPrimitive,
  audit,
  calibrate,
  lower,
  register,
)
from s8bqat_jax.integer.context import RULES

KEY = jax.random.key(0)
X = np.asarray(jax.random.normal(KEY, (6, 8)))
W = {'w': np.asarray(jax.random.normal(jax.random.key(1), (8, 4)) * 0.3),
     'b': np.linspace(-1, 1, 4, dtype=np.float32)}  # fmt: skip


def both(fn, *inputs, params=None):
  """(float result, integer result, one output LSB, ops)."""
  params = {} if params is None else params
  ranges = calibrate(fn, params, [inputs])
  integer = lower(fn, params, ranges, *inputs)
  report = audit(integer)
  assert report.ok, str(report)
  spec = integer.out_specs[0]
  step = spec.scale if spec else 0
  y, z = fn(params, *inputs), integer(*inputs)
  return np.asarray(y), np.asarray(z), step, [r.op for r in report.rows]


# A function of one 8-bit value errs by half an LSB of each end at most: the
# input's rounding times the slope (at most 1 here), and the output's.
@pytest.mark.parametrize(
  'fn',
  [
    jnp.tanh, jax.nn.sigmoid, jax.nn.gelu, jax.nn.swish, jnp.abs, jnp.square,
    lambda x: x * jnp.tanh(2 * x), lambda x: 1 - jax.nn.sigmoid(x),
    lambda x: x**3 / 40, jax.nn.hard_swish, lambda x: -x,
  ],
)  # fmt: skip
def test_elementwise_chains_are_one_table(fn):
  x = X.clip(-3, 3)
  y, z, step, ops = both(lambda p, x: fn(x), x)
  assert ops == ['q_lut']
  slope = 6 if fn is jnp.square else 2
  assert np.abs(y - z).max() <= step / 2 + slope * 6 / 255 / 2 + 1e-5


def test_relu_costs_nothing_and_keeps_all_levels():
  fn = lambda p, x: jax.nn.relu(x @ p['w'] + p['b'])
  y, z, step, ops = both(fn, X, params=W)
  assert ops == ['q_dot']
  assert z.min() == 0 and step == pytest.approx(y.max() / 255, rel=1e-5)


@pytest.mark.parametrize(
  'fn',
  [
    lambda p, x: jnp.maximum(x.mean(-1), 1.0),
    lambda p, x: jnp.clip(x / 4, 2.0, 3.0),
    lambda p, x: jnp.minimum(x.T, -4.0),
    lambda p, x: jnp.maximum(x[:, :2], 5.0) + x[:, :2],
    lambda p, x: jnp.maximum(2.0 * x[::-1], 9.0) * x,
  ],
)
def test_a_clip_beyond_all_that_is_clipped(fn):
  x = np.random.default_rng(0).normal(size=(4, 8)).astype(np.float32)
  integer = lower(fn, {}, calibrate(fn, {}, [(x,)]), x)
  y = fn({}, x)
  np.testing.assert_allclose(integer(x), y, atol=0.02 * np.abs(y).max())


def test_scalar_factor_costs_nothing():
  _, _, _, ops = both(lambda p, x: (x @ p['w']) / 7 * 3, X, params=W)
  assert ops == ['q_dot']


def test_negative_and_zero_channel_gains():
  """A BatchNorm may flip or erase a channel; its offset survives."""
  gain = np.float32([1, -2, 0, 0.5])
  fn = lambda p, x: (x @ p['w']) * p['g'] + p['b']
  y, z, step, ops = both(fn, X, params={**W, 'g': gain})
  assert ops == ['q_dot']
  assert np.abs(y - z).max() < 4 * step
  np.testing.assert_allclose(z[:, 2], W['b'][2], atol=step)


@pytest.mark.parametrize('a_bits', [-1, 1])
def test_sum_and_product_of_two_values(a_bits):
  a, b = X * 0.5, X[::-1] * 3
  y, z, step, ops = both(lambda p, a, b: a + a_bits * b, a, b)
  assert 'q_add' in ops
  assert np.abs(y - z).max() <= step / 2 + 12 / 255 + 3 / 255
  y, z, step, ops = both(lambda p, a, b: a * b, a, b)
  assert ops == ['q_mul']
  assert np.abs(y - z).max() <= step / 2 + 12 / 255 * 1.5 + 3 / 255 * 9


MOVES = {
  'reshape': lambda x: x.reshape(3, 16),
  'transpose': lambda x: x.T,
  'slice': lambda x: x[1:4, ::2],
  'flip': lambda x: x[::-1],
  'tile': lambda x: jnp.tile(x, (2, 3)),
  'unstack': lambda x: jnp.unstack(x, axis=1)[2],
  'dynamic_slice': lambda x: lax.dynamic_slice(x, (1, 2), (2, 3)),
  'take': lambda x: x[jnp.asarray([3, 0, 0])],
  'max': lambda x: x.max(axis=1),
  'split': lambda x: jnp.split(x, 2, axis=1)[1],
  'broadcast': lambda x: jnp.broadcast_to(x[:, None], (6, 2, 8)),
}


@pytest.mark.parametrize('name', MOVES)
def test_movements_are_exact(name):
  fn = lambda p, x: MOVES[name](x)
  ranges = calibrate(fn, {}, [X])
  integer = lower(fn, {}, ranges, X)
  codes = integer.quantize(X)[0]
  (moved,) = integer.integers(codes)
  np.testing.assert_array_equal(moved, MOVES[name](codes))


@pytest.mark.parametrize(
  'fn',
  [
    lambda x: jnp.concatenate([x, jnp.tanh(x)], axis=-1),
    lambda x: jnp.stack([x, jnp.tanh(x)], axis=1),
    lambda x: jnp.pad(x, ((1, 1), (0, 2))),
    lambda x: jnp.where(x > 0.3, x, 0.0),
    lambda x: jnp.where(jnp.arange(8) > 3, x, jnp.tanh(x)),
    lambda x: jnp.maximum(x, x[::-1]),
    lambda x: lax.dynamic_update_slice(x, jnp.tanh(x[:2]), (1, 0)),
    lambda x: x.mean(axis=0),
    lambda x: x - jnp.arange(8.0),
    # A clip belongs to its value, whatever spec the others ask for.
    lambda x: jnp.concatenate([jax.nn.relu(x), x], axis=-1),
    lambda x: jnp.stack([jnp.clip(x, -0.5, 0.5), x]),
    lambda x: jnp.pad(jax.nn.relu(x), ((0, 0), (1, 1))) - 1.0,
    lambda x: jnp.where(x > 0.3, jnp.minimum(x, 0.5), x),
    lambda x: lax.dynamic_update_slice(x, jax.nn.relu6(x[:2]), (1, 0)),
  ],
)
def test_values_that_meet(fn):
  y, z, step, _ = both(lambda p, x: fn(x), X)
  assert np.abs(y - z).max() <= 1.01 * step + 6 / 255


def test_a_table_from_outside_and_a_number_among_the_parameters():
  table = X[::-1].copy()
  fn = lambda p, i: jnp.asarray(table)[i] * p['gain']
  y, z, step, _ = both(fn, np.int32([4, 1, 1]), params={'gain': 0.5})
  assert np.abs(y - z).max() <= 0.51 * step + 0.5 * np.abs(X).max() / 254


def test_a_decision_on_a_sum():
  fn = lambda p, x: lax.cond(x.sum() > 0, lambda x: x, lambda x: -x / 2, x)
  ranges = calibrate(fn, {}, [X, -X])
  integer = lower(fn, {}, ranges, X)
  assert audit(integer).ok
  for x in (X, -X):
    assert np.abs(fn({}, x) - integer(x)).max() < 0.03


def test_integers_of_the_function_stay_exact():
  def fn(p, ids, lengths):
    rows = p['table'][ids % 5]
    mask = jnp.arange(4)[None] < lengths[:, None]
    return rows * mask[..., None], lengths // 2, jnp.argmax(rows, -1)

  table = {'table': np.eye(5, 4, dtype=np.float32) - 0.5}
  ids = np.arange(8, dtype=np.int32).reshape(2, 4)
  lengths = np.asarray([3, 4], np.int32)
  ranges = calibrate(fn, table, [(ids, lengths)])
  integer = lower(fn, table, ranges, ids, lengths)
  assert audit(integer).ok
  y, half, best = integer(ids, lengths)
  real, _, expected = fn(table, ids, lengths)
  np.testing.assert_array_equal(half, lengths // 2)
  np.testing.assert_array_equal(best, expected)
  assert np.abs(y - real).max() < 0.02 and np.all(y[0, 3] == 0)


@pytest.mark.parametrize(
  'fn', [lambda a, b: jnp.einsum('bij,bkj->bik', a, b), lambda a, b: a @ b.mT]
)
def test_products_of_two_values(fn):
  a, b = X.reshape(2, 3, 8), X[::-1].reshape(2, 3, 8) + 1
  y, z, step, ops = both(lambda p, a, b: fn(a, b), a, b)
  assert ops[-1] == 'q_dot'
  assert np.abs(y - z).max() < step + 8 * 0.03


def test_unsupported_primitive_names_itself_its_line_and_the_way_out():
  fn = lambda p, x: jnp.sort(x)
  ranges = calibrate(fn, {}, [X])
  with pytest.raises(UnsupportedPrimitive) as error:
    lower(fn, {}, ranges, X)
  text = str(error.value)
  assert "'sort'" in text and 'rules_test.py' in text and 'register' in text


def test_a_registered_rule_is_used():
  @register('sort')
  def sort(ctx, e, x):
    return ctx.moved(e, x, x, move=lambda codes: e.bind(codes)[0])

  try:
    y, z, step, ops = both(lambda p, x: jnp.sort(x), X)
  finally:
    del RULES['sort']
  assert ops == [] and np.abs(y - z).max() <= step


def test_missing_and_broken_ranges():
  fn = lambda p, x: jnp.tanh(x)
  ranges = calibrate(fn, {}, [X])
  with pytest.raises(MissingRange, match='no range for .in:0.tanh'):
    lower(fn, {}, {'in:0': (-1.0, 1.0)}, X)
  with pytest.raises(ValueError, match='range of in:0 must be finite'):
    lower(fn, {}, {**ranges, 'in:0': (0.0, float('nan'))}, X)
  with pytest.raises(ValueError, match='low <= high'):
    lower(fn, {}, {**ranges, 'in:0': (1.0, -1.0)}, X)


def test_ranges_too_narrow_saturate():
  fn = lambda p, x: x * 2.0
  integer = lower(fn, {}, {'in:0': (-1.0, 1.0), 'in:0.mul': (-2.0, 2.0)}, X)
  assert np.abs(np.asarray(integer(X * 100))).max() <= 2.02


def test_all_zero_values_have_a_scale():
  fn = lambda p, x: x @ p['w']
  y, z, _, _ = both(fn, np.zeros((2, 8), np.float32), params=W)
  assert np.all(z == 0)


@pytest.mark.parametrize('rows', [0, 1])
def test_empty_and_single_rows(rows):
  fn = lambda p, x: jnp.tanh(x @ p['w'] + p['b'])
  ranges = calibrate(fn, W, [X])
  y = lower(fn, W, ranges, X[:rows])(X[:rows])
  assert y.shape == (rows, 4) and np.all(np.isfinite(y))
