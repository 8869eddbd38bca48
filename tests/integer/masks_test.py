"""Masks, by fill and by sum, from where they are made to where they end."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from s8bqat_jax.integer import audit, calibrate, lower, twin, uncalibrated

R = np.random.default_rng(0)
X = np.float32(3 * R.normal(size=(6, 16)))
KEEP = R.random((6, 16)) > 0.3
KEEP[:, 0] = True
ADDED = np.where(KEEP, np.float32(0), np.float32(-1e9))
W = np.float32(R.integers(-127, 128, (16, 16)) / 254)  # exact in 8 bits
W[0, 0] = 0.5


def run(fn, *inputs, params=None):
  """(float, integer, twin) results and the output's spec; audited."""
  params = {} if params is None else params
  ranges = calibrate(fn, params, [inputs])
  integer = lower(fn, params, ranges, *inputs)
  report = audit(integer)
  assert report.ok, str(report)
  outs = fn(params, *inputs), integer(*inputs)
  twins = twin(fn, params, ranges)(params, *inputs)
  return *map(np.asarray, (*outs, twins)), integer.out_specs[0]


MASKED = {
  'filled': lambda x, m: jnp.where(m, x, -1e9),
  'filled with -inf': lambda x, m: jnp.where(m, x, -jnp.inf),
  'filled, scaled': lambda x, m: jnp.where(m, x, -1e9) / 2,
  'filled, one constant added': lambda x, m: jnp.where(m, x, -1e9) + 1.5,
  'filled, constants added': lambda x, m: jnp.where(m, x, -1e9) + W[0],
  'added': lambda x, m: x + jnp.where(m, 0.0, -1e9),
  'added after a product': lambda x, m: x @ W + jnp.where(m, 0.0, -1e9),
  'a constant added': lambda x, m: x + ADDED,
  'a constant added after a product': lambda x, m: x @ W + ADDED,
  'added twice': lambda x, m: x + jnp.where(m, 0.0, -1e9) + ADDED,
  'made of zeros and ones': lambda x, m: x + (1.0 - m.astype(float)) * -1e9,
  'a logarithm of zeros and ones': lambda x, m: x + jnp.log(m.astype(float)),
  'the least that fills, data added': lambda x, m: (
    x + jnp.where(m, 0.0, -1e6)
  ),
  'the lowest half': lambda x, m: jnp.where(
    m, x.astype(jnp.float16), jnp.finfo(jnp.float16).min
  ).astype(float),
  'filled in a branch': lambda x, m: jax.lax.cond(
    m[0, 0], lambda h: jnp.where(m, h, -1e9), lambda h: h, x @ W
  ),
  'not filled in a branch': lambda x, m: jax.lax.cond(
    m[0, 0], lambda h: h, lambda h: jnp.where(m, h, -1e9), x @ W
  ),
  'a branch of constants': lambda x, m: x + jax.lax.cond(
    m[0, 0], lambda: jnp.asarray(ADDED), lambda: jnp.zeros_like(ADDED)
  ),
  'filled step by step': lambda x, m: jax.lax.scan(
    lambda c, t: (c, jnp.where(t[0], t[1], -1e9)), 0, (m, x)
  )[1],
  'filled again and again': lambda x, m: jax.lax.fori_loop(
    0, 2, lambda i, c: jnp.where(m, c, -1e9), x
  ),
  'a constant, step by step': lambda x, m: jax.lax.scan(
    lambda c, t: (c, t[0] + t[1]), 0, (x, jnp.asarray(ADDED))
  )[1],
  'a constant out of a loop': lambda x, m: x + jax.lax.scan(
    lambda c, t: (c + t, jnp.asarray(ADDED[0])), x[0], x
  )[1],
  'a row of a constant': lambda x, m: x + jnp.asarray(ADDED)[m[0].sum() % 6],
  'a logarithm of ones chosen': lambda x, m: x + jnp.log(
    jnp.where(m, 1.0, 0.0)
  ),
  'a logarithm of a product': lambda x, m: x + jnp.log(
    m.astype(float) * jnp.asarray(KEEP)[:, ::-1].astype(float)
    * m[:, ::-1].astype(float)
  ),
  'a half as a constant': lambda x, m: (
    x.astype(jnp.bfloat16) + jnp.asarray(ADDED, jnp.bfloat16)
  ).astype(float),
  'carried': lambda x, m: jax.lax.scan(
    lambda c, t: (jnp.where(t, c, -1e9), None), x, m[None]
  )[0],
  'carried, two loops deep': lambda x, m: jax.lax.scan(
    lambda c, t: (
      jax.lax.fori_loop(0, 2, lambda i, d: jnp.where(t, d, -1e9), c), None
    ), x, m[None],
  )[0],
  'filled twice': lambda x, m: jnp.where(KEEP, jnp.where(m, x, -1e9), -1e9),
  'moved': lambda x, m: jnp.where(m, x, -1e9)[:, ::-1].reshape(6, 16),
  'beside others': lambda x, m: jnp.concatenate(
    [jnp.where(m, x, -1e9), x], axis=-1
  ),
  'padded': lambda x, m: jnp.pad(
    x, ((0, 0), (0, 3)), constant_values=-1e9
  ),
}  # fmt: skip


@pytest.mark.parametrize('name', MASKED)
def test_what_is_masked_has_no_probability(name):
  fn = lambda p, x, m: jax.nn.softmax(MASKED[name](x, m))
  p, z, t, spec = run(fn, X, KEEP)
  assert np.all(z[p == 0] == 0) and (p == 0).any() != name.startswith('not')
  assert np.abs(p - z).max() < 12 * spec.scale  # 8-bit scores of up to 10
  assert np.abs(t - z).max() <= 3.01 * spec.scale


@pytest.mark.parametrize('f', [jax.nn.sigmoid, jnp.tanh, jnp.exp, jax.nn.silu])
def test_a_function_of_one_value_sees_the_mask(f):
  fn = lambda p, x, m: f(jnp.where(m, jnp.minimum(x, 1.0), -1e9))
  y, z, t, spec = run(fn, X, KEEP)
  assert np.abs(y - z)[~KEEP].max() <= 0.51 * spec.scale
  assert np.abs(y - z).max() < 0.06 and np.abs(t - z).max() < 1e-6


def test_masks_that_come_out_and_maxima_of_them():
  y, z, _, _ = run(lambda p, x, m: jnp.where(m, x, -1e9), X, KEEP)
  np.testing.assert_array_equal(z < -1e6, ~KEEP)
  assert np.abs(y - z)[KEEP].max() < 0.1
  y, z, _, _ = run(lambda p, x, m: jnp.where(m, x, -1e9).max(-1), X, KEEP)
  assert np.abs(y - z).max() < 0.1
  least = lambda p, x, m: jnp.where(m, x, 1e9).min(-1)
  y, z, _, _ = run(least, X, KEEP)
  assert np.abs(y - z).max() < 0.1


def test_a_row_without_anything_is_zero_in_the_twin_as_well():
  keep = KEEP.copy()
  keep[2] = False
  fn = lambda p, x, m: jax.nn.softmax(jnp.where(m, x, -1e9))
  _, z, t, spec = run(fn, X, keep)
  assert np.all(z[2] == 0) and np.all(t[2] == 0)
  assert np.abs(t - z).max() <= 1.01 * spec.scale


@pytest.mark.parametrize(
  'fn',
  [
    lambda p, x, m: jnp.where(m, x, -1e9) * x[::-1],
    lambda p, x, m: x - jnp.where(m, x, -1e9),
    lambda p, x, m: jax.nn.softmax(x, where=m),
  ],
)
def test_where_integers_have_no_masks(fn):
  with pytest.raises(ValueError, match='read as masks, and goes where'):
    lower(fn, {}, uncalibrated(), X, KEEP)


def refuses(fn, message):
  """Lowering and the twin both say so."""
  ranges = calibrate(fn, {}, [(X, KEEP)])
  with pytest.raises(ValueError, match=message):
    lower(fn, {}, ranges, X, KEEP)
  with pytest.raises(ValueError, match=message):
    twin(fn, {}, ranges)({}, X, KEEP)


@pytest.mark.parametrize('then', [lambda s: s, lambda s: s[:, ::-1], jnp.abs])
def test_a_mask_turned_into_something_else(then):
  fn = lambda p, x, m: jax.nn.softmax(then(-jnp.where(m, x, -1e9)))
  refuses(fn, r'into 1e\+09, .* mask after it')


@pytest.mark.parametrize(
  'tell', [jnp.isneginf, jnp.isfinite, lambda s: s <= -1e30, lambda s: s < -6e5]
)
def test_fills_are_not_told_apart(tell):
  def fn(p, x, m):
    s = jnp.where(m, x, -jnp.inf)
    return jnp.where(tell(s), 0.0, s)

  refuses(fn, 'tells one fill of a mask from another')
  refuses(lambda p, x, m: jax.nn.logsumexp(fn(p, x, m), axis=-1), 'one fill')


def test_what_masks_can_be_asked():
  fn = lambda p, x, m: jnp.where(jnp.where(m, x, -1e9) < -50, 0.5, x)
  y, z, t, spec = run(fn, X, KEEP)
  assert np.abs(y - z).max() <= 1.01 * spec.scale and np.abs(t - z).max() < 1e-6


def test_a_guard_of_what_integers_do_not_have_costs_nothing():
  guarded = lambda p, x: jnp.nan_to_num(x) @ p
  params, bare = W, lambda p, x: x @ p
  lowered = [lower(f, params, uncalibrated(), X) for f in (guarded, bare)]
  a, b = ([e.primitive.name for e in f.jaxpr.eqns] for f in lowered)
  assert a == b


def test_a_mask_has_no_place_in_a_state():
  fn = lambda p, c, x, m: (jnp.where(m, x, -1e9), c)
  ranges = calibrate(fn, {}, [(X, X, KEEP)], carry=True)
  with pytest.raises(ValueError, match='goes where integers have none'):
    lower(fn, {}, ranges, X, X, KEEP, carry=True)


@pytest.mark.parametrize('start', [-np.inf, -1e9])
@pytest.mark.parametrize('of', [jnp.maximum, jnp.minimum])
def test_what_runs_from_nothing(start, of):
  start = start if of is jnp.maximum else -start

  def fn(p, x):
    step = lambda c, t: (of(c, t), None)
    return jax.lax.scan(step, jnp.full(16, start), x)[0]

  y, z, t, spec = run(fn, X)
  assert np.abs(y - z).max() <= 1.01 * spec.scale
  assert np.abs(t - z).max() <= 1e-6


def test_small_updates_of_what_is_masked_in_places():
  x = np.float32(R.random((200, 16)) * 0.002)
  kept = np.arange(16) % 4 != 0

  def fn(p, x):
    step = lambda c, t: (jnp.where(kept, c + t, -1e9), None)
    return jax.lax.scan(step, jnp.zeros(16), x)[0]

  y, z, t, _ = run(fn, x)
  assert np.all(z[~kept] == -1e9)
  assert np.abs(y - z)[kept].max() < 0.01 * y[kept].max()
  assert np.abs(t - z)[kept].max() < 0.01 * y[kept].max()


def test_where_all_is_masked():
  def fn(p, x, m):
    step = lambda c, t: (jnp.where(t[1] & False, t[0], -1e9), c)
    return jax.lax.scan(step, jnp.full(16, -1e9), (x, m))[1]

  y, z, _, _ = run(fn, X, KEEP)
  np.testing.assert_array_equal(y, z)


def test_a_mask_as_reals_is_refused_before_it_is_read_as_data():
  fn = lambda p, x, m: jax.nn.softmax(x + m)
  with pytest.raises(ValueError, match=r'inputs\[1\] reaches 1e\+09.*boolean'):
    calibrate(fn, {}, [(X, ADDED)])


def test_data_of_the_size_of_masks():
  y, z, _, spec = run(lambda p, x: (x * 2e6) @ p, X, params=W)
  assert np.abs(y - z).max() < 0.02 * np.abs(y).max()
  one_side = lambda p, x: (jnp.square(x) * 1e6) @ p  # nothing below zero
  y, z, _, _ = run(one_side, X, params=W)
  assert np.abs(y - z).max() < 0.02 * np.abs(y).max()
  cube = lambda p, x: jnp.tanh((x * 60) ** 3 / 1e6)  # within one table
  y, z, _, spec = run(cube, X)
  assert np.abs(y - z).max() < 0.1


@pytest.mark.parametrize(
  'clip', [jax.nn.relu, lambda x: jnp.clip(x, -1, 5), jax.nn.relu6]
)
def test_a_clip_makes_a_number_of_a_mask(clip):
  fn = lambda p, x, m: clip(jnp.where(m, x @ p, -1e9))
  y, z, _, spec = run(fn, X, KEEP, params=W)
  assert not spec.masked and np.abs(y - z).max() < 0.15
  after = lambda p, x, m: clip(jnp.where(m, x @ p, -1e9)) @ p
  y, z, _, _ = run(after, X, KEEP, params=W)
  assert np.abs(y - z).max() < 0.3


def test_a_loop_reads_what_is_masked_outside_of_it():
  def fn(p, x, m):
    scores = jnp.where(m[0], x[0] @ p, -1e9)
    step = lambda c, t: (c, jax.nn.softmax(scores) + t)
    return jax.lax.scan(step, 0.0, x)[1]

  y, z, _, spec = run(fn, X, KEEP, params=W)
  assert np.abs(y - z).max() < 2 * spec.scale


def test_a_masked_value_less_another():
  fn = lambda p, x, m: jax.nn.softmax(jnp.where(m, x, -1e9) - x[::-1])
  p, z, _, _ = run(fn, X, KEEP)
  assert np.all(z[p == 0] == 0) and np.abs(p - z).max() < 0.06
