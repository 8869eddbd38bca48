import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from s8bqat_jax import quantizers
from s8bqat_jax.quantizers import codebook, lloyd_max, summary
from tests.quantizers import exact_dp

N = 3000
LARGE = summary.SIZE + 20_000  # too large to sort


def _trained(rng):
  """First layer of a small tanh network, trained until it fits a teacher."""
  x = rng.standard_normal((256, 60))
  y = np.tanh(x @ rng.standard_normal((60, 8)) / 3)
  w, v = rng.standard_normal((60, 50)) / 8, rng.standard_normal((50, 8)) / 7
  for _ in range(150):
    h = np.tanh(x @ w)
    error = (h @ v - y) / len(x)
    w, v = (
      w - 0.5 * x.T @ ((error @ v.T) * (1 - h * h)),
      v - 0.5 * h.T @ error,
    )
  assert np.mean((np.tanh(x @ w) @ v - y) ** 2) < 0.2 * np.mean(y**2)
  return w


@functools.cache
def _sample(name):
  rng = np.random.default_rng(0)
  w = {
    'gaussian': lambda: rng.standard_normal(N),
    'laplacian': lambda: rng.laplace(size=N),
    'bimodal': lambda: rng.choice([-1, 1], N) + 0.1 * rng.standard_normal(N),
    'sparse': lambda: rng.standard_normal(N) * (rng.random(N) < 0.2),
    'heavy tails': lambda: rng.standard_t(2, N),
    'trained': lambda: _trained(rng),
  }[name]()
  return w.astype(np.float32)


@functools.cache
def _fitted(name, levels):
  return lloyd_max.fit(_sample(name), levels)


SAMPLES = (
  'gaussian',
  'laplacian',
  'bimodal',
  'sparse',
  'heavy tails',
  'trained',
)


@pytest.mark.parametrize('levels', [2, 16, 128])
@pytest.mark.parametrize('name', SAMPLES)
def test_free_centroids_match_exact_dynamic_programming(name, levels):
  w = _sample(name)
  book = lloyd_max.fit(w, levels, grid=None)
  ours = exact_dp.distortion(w, codebook.centroids(book))
  assert ours <= 1.001 * exact_dp.free(w, levels)


@pytest.mark.parametrize('levels', [2, 16])
@pytest.mark.parametrize('name', SAMPLES)
def test_grid_centroids_are_the_best_values_of_their_grid(name, levels):
  w, book = _sample(name), _fitted(name, levels)
  assert book.values.dtype == jnp.int8
  assert np.all(np.diff(np.asarray(book.values, int)) > 0)
  ours = exact_dp.distortion(w, codebook.centroids(book))
  assert ours <= 1.001 * exact_dp.on_grid(w, levels, book.scale)


def test_no_other_scale_is_much_better():
  w, book = _sample('bimodal'), _fitted('bimodal', 16)
  ours = exact_dp.distortion(w, codebook.centroids(book))
  others = float(book.scale) * np.random.default_rng(1).uniform(0.5, 1.6, 10)
  assert ours <= 1.002 * min(exact_dp.on_grid(w, 16, s) for s in others)


@pytest.mark.parametrize('name', [s for s in SAMPLES if s != 'heavy tails'])
def test_the_grid_costs_little_at_four_bits(name):
  """The scale is chosen well: 256 values at hand, 16 wanted.

  Not so for a Student t of two degrees, whose outermost centroid is a thousand
  times its innermost: no grid of 256 equal steps holds both.
  """
  w, book = _sample(name), _fitted(name, 16)
  ours = exact_dp.distortion(w, codebook.centroids(book))
  assert ours <= 1.05 * exact_dp.free(w, 16)


@pytest.mark.parametrize('name', ['heavy tails', 'sparse'])
def test_a_histogram_of_a_large_tensor_is_as_good_as_its_weights(name):
  rng = np.random.default_rng(1)
  w = {
    'heavy tails': lambda n: rng.standard_t(1.5, n),
    'sparse': lambda n: rng.standard_normal(n) * (rng.random(n) < 0.1),
  }[name](LARGE).astype(np.float32)
  points = jax.jit(summary.summarize)(w)
  assert int(points.counts_M.sum()) == len(w)
  assert np.all(np.diff(points.means_M) >= 0)
  np.testing.assert_allclose(
    np.average(points.means_M, weights=points.counts_M), w.mean(), atol=1e-5
  )
  book = lloyd_max.fit(w, 16, grid=None)
  ours = exact_dp.distortion(w, codebook.centroids(book))
  assert ours <= 1.001 * exact_dp.free(w, 16)


def test_exact_oracle_agrees_with_trying_every_partition():
  w = np.random.default_rng(2).standard_normal(9)
  x = np.sort(w)
  best = min(
    sum(np.var(run) * len(run) for run in np.split(x, cuts)) / len(x)
    for cuts in itertools.combinations(range(1, len(x)), 2)
  )
  assert exact_dp.free(w, 3) == pytest.approx(best)


def test_exact_oracle_agrees_with_trying_every_pair_of_grid_values():
  w = np.random.default_rng(3).standard_normal(9)
  for scale in (0.002, 0.02, 0.5):
    away = np.square(w[:, None] - scale * np.arange(-128, 128))
    pairs = itertools.combinations(range(256), 2)
    best = min(np.minimum(away[:, i], away[:, j]).mean() for i, j in pairs)
    assert exact_dp.on_grid(w, 2, scale) == pytest.approx(best)


@pytest.mark.parametrize('levels', [2, 16])
@pytest.mark.parametrize(
  'w',
  [[0.3], [0.5, -0.25], [1.0, 2.0, 4.0], [0.7] * 50, [0.0] * 7, [-3.0] * 2],
  ids=['one', 'two', 'three', 'constant', 'zero', 'negative'],
)
def test_tiny_and_constant_tensors(w, levels):
  w = np.asarray(w, np.float32)
  free = lloyd_max.fit(w, levels, grid=None)
  if len(set(w)) <= levels:
    np.testing.assert_array_equal(codebook.snap(w, free), w)
  grid = lloyd_max.fit(w, levels)
  assert float(grid.scale) > 0
  error = exact_dp.distortion(w, codebook.centroids(grid))
  assert error <= exact_dp.free(w, levels) + (0.01 * np.abs(w).max()) ** 2


def test_a_huge_constant_tensor_is_represented_exactly():
  w = np.full(LARGE, 0.1, np.float32)
  book = lloyd_max.fit(w, 2, grid=None)
  np.testing.assert_array_equal(codebook.snap(w, book), w)


def test_not_finite_is_an_error_outside_jit_and_a_nan_scale_inside():
  inside = jax.jit(lambda w: lloyd_max.fit(w, 2, grid=None).scale)
  w = _sample('gaussian').copy()
  for w[7] in np.nan, np.inf, -np.inf:
    with pytest.raises(ValueError, match='NaN or infinity'):
      lloyd_max.fit(w, 2)
    assert np.isnan(inside(w))


def test_arguments_are_checked():
  w = np.ones(4, np.float32)
  with pytest.raises(ValueError, match='2..256, got 257'):
    lloyd_max.fit(w, 257)
  with pytest.raises(ValueError, match="'int8' or None, got 'int4'"):
    lloyd_max.fit(w, 4, grid='int4')
  with pytest.raises(ValueError, match='floating point, got int32'):
    lloyd_max.fit(np.ones(4, np.int32), 4)
  with pytest.raises(ValueError, match=r'no weights \(shape \(0, 3\)\)'):
    lloyd_max.fit(np.ones((0, 3), np.float32), 4)


def test_stacked_layers_under_vmap_fit_as_well_as_one_by_one():
  names = 'gaussian', 'laplacian'
  stack = np.stack([_sample(name) for name in names])
  stacked = jax.vmap(lambda w: lloyd_max.fit(w, 2))(stack)
  for i, name in enumerate(names):
    books = jax.tree.map(lambda x, i=i: x[i], stacked), _fitted(name, 2)
    ours, alone = (np.asarray(codebook.centroids(b), float) for b in books)
    # Not to the last bit: several grids may be equally good.
    np.testing.assert_allclose(ours, alone, atol=float(books[1].scale))
    error, expected = (exact_dp.distortion(stack[i], c) for c in (ours, alone))
    assert error == pytest.approx(expected, rel=1e-4)


def test_bfloat16_keeps_its_dtype_and_its_accuracy():
  w = jnp.asarray(_sample('gaussian'), jnp.bfloat16)
  book = lloyd_max.fit(w, 16)
  assert book.scale.dtype == jnp.bfloat16
  ours = exact_dp.distortion(w, codebook.centroids(book))
  assert ours <= 1.03 * exact_dp.free(w, 16)


def test_distortion_is_the_mean_squared_error():
  w, book = _sample('gaussian'), _fitted('gaussian', 16)
  expected = exact_dp.distortion(w, codebook.centroids(book))
  assert float(lloyd_max.distortion(w, book)) == pytest.approx(expected)


def test_with_64_bit_numbers_enabled_the_centroids_are_the_same():
  expected = _fitted('gaussian', 16)
  with jax.enable_x64(True):
    found = lloyd_max.fit(_sample('gaussian').astype(np.float64), 16)
  np.testing.assert_array_equal(found.values, expected.values)
  assert found.scale.dtype == np.float64


@pytest.mark.parametrize('levels', [2, 16])
@pytest.mark.parametrize('values', [[0.3], [-0.05, 0.05], [-0.05, 0, 0.05]])
def test_weights_on_a_grid_stay_as_they_are(values, levels):
  w = np.resize(np.array(values, np.float32), 99)
  book = lloyd_max.fit(w, levels)
  worst = 1e-6 if levels >= len(values) else 1.0
  assert np.max(np.abs(codebook.snap(w, book) - w)) <= worst * np.max(w)


@pytest.mark.parametrize(
  'size, scale, grid',
  [
    (N, 2e38, None),
    (N, 1e-33, 'int8'),
    (LARGE, 2e38, 'int8'),
    (LARGE, 1e-33, None),
  ],
)
def test_the_scale_of_the_weights_does_not_matter(size, scale, grid):
  w = np.random.default_rng(0).normal(size=size).clip(-1.6, 1.6)
  base = codebook.centroids(lloyd_max.fit(w.astype(np.float32), 16, grid=grid))
  w = (w * scale).astype(np.float32)
  found = codebook.centroids(lloyd_max.fit(w, 16, grid=grid))
  np.testing.assert_allclose(np.asarray(found, float) / scale, base, rtol=2e-3)


def test_float16_centroids_never_overflow():
  w = np.array([65504, -65504, 1, 2, 3], np.float16)
  snapped = np.asarray(codebook.snap(w, lloyd_max.fit(w, 2)), float)
  assert np.all(np.isfinite(snapped))
  # One centroid is an extreme's and stays representable, the other the rest's.
  error = np.square(snapped - w.astype(float)).mean()
  assert error <= 1.01 * exact_dp.free(w.astype(float), 2)


@pytest.mark.parametrize(
  'method',
  [
    quantizers.centroids(3),
    quantizers.s8bqat(3, total_steps=10, learning_rate=0.1),
    quantizers.gq(3, total_steps=10),
    quantizers.admm(3, rho=0.1),
  ],
  ids=['centroids', 's8bqat', 'gq', 'admm'],
)
def test_centroids_of_a_weight_that_explicit_axes_split(method):
  mesh = jax.make_mesh((8,), ('x',), axis_types=(AxisType.Explicit,))
  w = np.random.default_rng(0).normal(size=(16, 32)).astype(np.float32)
  parts = jax.device_put(w, jax.NamedSharding(mesh, jax.P('x', None)))
  ours, theirs = (
    method.encode(p, method.init(p))['w'] for p in ({'w': w}, {'w': parts})
  )
  np.testing.assert_array_equal(ours.codebook, theirs.codebook)
  np.testing.assert_array_equal(ours.codes, theirs.codes)
