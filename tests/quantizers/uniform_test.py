"""Uniform grids against brute force and formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from jax.sharding import AxisType

from s8bqat_jax import quantizers
from s8bqat_jax.artifacts import qtensor
from s8bqat_jax.quantizers import types
from s8bqat_jax.quantizers.uniform import (
  entropy_scale,
  max_scale,
  mse_scale,
  percentile_scale,
  quantize,
)

LEVELS = [2, 3, 4, 16, 256]
GAUSS = np.random.default_rng(0).normal(size=(64, 16)).astype(np.float32)
CTX = types.Ctx(jnp.int32(0), jax.random.key(0), jnp.float32(0.1))


def _grid(levels):
  if levels == 2:
    return np.array([-1, 1])
  low, high = qtensor.uniform_range(levels)
  return np.arange(low, high + 1)


@settings(max_examples=30)
@given(
  hnp.arrays(np.float32, (3, 5), elements=st.floats(-100, 100, width=32)),
  st.sampled_from(LEVELS),
)
def test_quantize_takes_the_nearest_grid_point(w, levels):
  scale = np.float32(0.5)  # exact, so that ties are ties
  q = qtensor.check(quantize(jnp.asarray(w), scale, levels))
  exact = w.astype(np.float64)
  nearest = np.min(np.abs(exact[..., None] - _grid(levels) * 0.5), axis=-1)
  found = np.asarray(qtensor.dequantize(q), np.float64)
  np.testing.assert_array_equal(np.abs(exact - found), nearest)
  assert q.levels == levels


def _error(w, scale, levels):
  q = quantize(jnp.asarray(w), jnp.asarray(scale), levels)
  off = np.asarray(qtensor.dequantize(q), np.float64) - w
  return np.mean(off**2)


@pytest.mark.parametrize('levels', LEVELS)
@pytest.mark.parametrize('kind', ['gauss', 'laplace', 'sparse', 'bimodal'])
def test_mse_scale_is_as_good_as_an_exhaustive_search(kind, levels):
  rng = np.random.default_rng(1)
  w = {
    'gauss': GAUSS.ravel(),
    'laplace': rng.laplace(size=1024),
    'sparse': rng.normal(size=1024) * (rng.random(1024) < 0.1),
    'bimodal': rng.choice([-1, 1], 1024) + 0.1 * rng.normal(size=1024),
  }[kind].astype(np.float32)
  steps = np.geomspace(1e-3, 1.2, 2000) * np.max(np.abs(w))
  errors = []
  for step in steps:
    if levels == 2:
      points = np.where(w >= 0, step, -step)
    else:
      points = step * np.clip(
        np.round(w / step), *qtensor.uniform_range(levels)
      )
    errors.append(np.mean((points - w.astype(np.float64)) ** 2))
  found = _error(w, mse_scale(jnp.asarray(w), levels), levels)
  assert found <= 1.02 * min(errors)


def test_mse_scales_of_a_gaussian_are_the_known_optima():
  w = jnp.asarray(np.random.default_rng(2).normal(size=200_000), jnp.float32)
  np.testing.assert_allclose(mse_scale(w, 2), 0.798, rtol=0.01)
  np.testing.assert_allclose(mse_scale(w, 3), 1.224, rtol=0.01)


@pytest.mark.parametrize('levels', LEVELS)
@pytest.mark.parametrize(
  'fit',
  [max_scale, mse_scale, percentile_scale(99.0), entropy_scale(1.5)],
  ids=['max', 'mse', 'percentile', 'entropy'],
)
@pytest.mark.parametrize(
  'w',
  [
    np.zeros((2, 3), np.float32),
    np.full((2, 3), -0.7, np.float32),
    np.full((1, 1), 1e-30, np.float32),
  ],
  ids=['zeros', 'equal', 'tiny'],
)
def test_degenerate_weights_get_a_valid_scale(w, fit, levels, request):
  if levels == 2 and 'entropy' in request.node.name:
    pytest.skip('entropy_scale is for grids that have a zero')
  scale = fit(jnp.asarray(w), levels, None)
  q = qtensor.check(quantize(jnp.asarray(w), scale, levels))
  found = np.asarray(qtensor.dequantize(q))
  if levels == 2:  # There is no zero, and no third value.
    assert np.all(np.isfinite(found))
  else:
    np.testing.assert_allclose(found, w, rtol=0.01)


@pytest.mark.parametrize('levels', LEVELS)
@pytest.mark.parametrize('power', [-70, 60, 124])
@pytest.mark.parametrize('axis', [None, -1])
def test_mse_scale_is_of_any_range(levels, power, axis):
  w = jnp.asarray(GAUSS, jnp.float32)
  wanted = jnp.ldexp(mse_scale(w, levels, axis), power)
  np.testing.assert_array_equal(
    mse_scale(jnp.ldexp(w, power), levels, axis), wanted
  )


def test_mostly_zero_weights_do_not_become_zeros():
  w = jnp.zeros((100, 100)).at[3].set(1.0)
  q = quantize(w, percentile_scale(98.0)(w, 256, None), 256)
  np.testing.assert_allclose(qtensor.dequantize(q), w, atol=0.01)


def test_the_largest_magnitude_gets_the_highest_code():
  for levels in LEVELS[1:]:
    q = quantize(GAUSS, max_scale(jnp.asarray(GAUSS), levels), levels)
    assert np.max(np.abs(q.codes)) == qtensor.uniform_range(levels)[1]


def test_percentile_scale_against_numpy():
  wanted = np.percentile(np.abs(GAUSS), 90.0) / 127
  found = percentile_scale(90.0)(jnp.asarray(GAUSS), 256, None)
  np.testing.assert_allclose(found, wanted, rtol=1e-5)
  for bad in (0.0, 100.5):
    with pytest.raises(ValueError, match='percentile'):
      percentile_scale(bad)


@pytest.mark.parametrize('fit', [max_scale, mse_scale, percentile_scale(95.0)])
def test_a_step_per_channel_is_the_step_of_that_channel(fit):
  w = jnp.asarray(GAUSS[:, :3] * [0.1, 1.0, 7.0], jnp.float32)
  scale = fit(w, 8, -1)
  assert scale.shape == (1, 3)
  for channel in range(3):
    own = fit(w[:, channel : channel + 1], 8, None)
    np.testing.assert_allclose(scale[0, channel], own, rtol=1e-5)


@pytest.mark.parametrize('bits', [1.0, 2.5, 4.0])
def test_entropy_scale_reaches_the_entropy(bits):
  w = jnp.asarray(np.random.default_rng(3).laplace(size=20_000), jnp.float32)
  q = quantize(w, entropy_scale(bits)(w, 256, None), 256)
  share = np.unique(np.asarray(q.codes), return_counts=True)[1] / w.size
  assert abs(-np.sum(share * np.log2(share)) - bits) < 0.02


def test_entropy_scale_says_what_it_can_not_do():
  with pytest.raises(ValueError, match='above 0'):
    entropy_scale(0.0)
  with pytest.raises(ValueError, match='channel_axis'):
    entropy_scale(2.0)(jnp.asarray(GAUSS), 256, -1)
  with pytest.raises(ValueError, match='at least 3 levels, got 2'):
    entropy_scale(0.5)(jnp.asarray(GAUSS), 2)


def test_the_view_is_what_ships_and_its_gradient_goes_straight_through():
  params = {'w': jnp.asarray(GAUSS)}
  member = quantizers.uniform(2)
  state = member.init(params)

  def total(params):
    return jnp.sum(member.views(params, state, CTX)['main']['w'] * GAUSS)

  np.testing.assert_array_equal(jax.grad(total)(params)['w'], GAUSS)
  seen = member.views(params, state, CTX)['main']['w']
  shipped = qtensor.dequantize(member.encode(params, state)['w'])
  np.testing.assert_array_equal(seen, shipped)


@pytest.mark.parametrize(
  'every, refits', [(0, []), (1, [0, 1, 2, 3]), (2, [1, 3])]
)
def test_the_step_follows_the_weights_as_often_as_asked(every, refits):
  member = quantizers.uniform(8, refit_every=every)
  params = {'w': jnp.asarray(GAUSS)}
  state = member.init(params)
  for i in range(4):
    before = state.carried['w']
    params = {'w': params['w'] * 1.5}
    ctx = CTX._replace(step=jnp.int32(i))
    _, state, _ = member.after_update(params, state, ctx)
    assert (state.carried['w'] != before) == (i in refits)
    if i in refits:
      assert state.carried['w'] == max_scale(params['w'], 256)


def test_entropy_is_that_of_the_codes_when_one_code_has_many_weights():
  # More zeros than float32 can count one by one.
  w = np.zeros(18_000_000, np.float32)
  w[:1_000_000] = np.random.default_rng(0).normal(size=1_000_000)
  w = jnp.asarray(w)
  codes = np.asarray(quantize(w, entropy_scale(0.3)(w, 256), 256).codes)
  share = np.bincount(codes.view(np.uint8)) / codes.size
  share = share[share > 0]
  assert abs(-np.sum(share * np.log2(share)) - 0.3) < 0.005


@pytest.mark.parametrize('axis_type', [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize(
  'fit', [max_scale, mse_scale, percentile_scale(90.0), entropy_scale(2.0)]
)
def test_a_step_is_that_of_the_whole_weight_however_it_is_split(fit, axis_type):
  mesh = jax.make_mesh((8,), ('x',), axis_types=(axis_type,))
  split = jax.NamedSharding(mesh, jax.P('x', None))
  method = quantizers.uniform(4, scale=fit)
  whole, parts = {'w': jnp.asarray(GAUSS)}, {'w': jax.device_put(GAUSS, split)}
  ours, theirs = (method.encode(p, method.init(p))['w'] for p in (whole, parts))
  np.testing.assert_allclose(ours.scale, theirs.scale, rtol=1e-6)
  np.testing.assert_array_equal(ours.codes, theirs.codes)


def test_a_negative_period_is_refused():
  with pytest.raises(ValueError, match='refit_every must be 0 or more, got -1'):
    quantizers.uniform(8, refit_every=-1)


def test_an_axis_that_a_weight_does_not_have():
  params = {'conv': jnp.ones((3, 2, 4)), 'dense': jnp.ones((2, 4))}
  with pytest.raises(ValueError, match=r'channel_axis=2.*\(2, 4\) has no such'):
    quantizers.uniform(4, channel_axis=2).init(params)


@pytest.mark.parametrize(
  'fit',
  [max_scale, mse_scale, percentile_scale(99)],
)
def test_what_no_step_can_be_fitted_to(fit):
  w = jnp.ones((2, 3))
  for levels in (1, 257):
    with pytest.raises(ValueError, match=f'in 2..256, got {levels}'):
      fit(w, levels)
  with pytest.raises(ValueError, match=r'to no weights \(shape \(0, 3\)\)'):
    fit(jnp.ones((0, 3)), 4)
  with pytest.raises(ValueError, match='floating point, got int32'):
    fit(jnp.ones(3, jnp.int32), 4)
