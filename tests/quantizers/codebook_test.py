import jax
import jax.numpy as jnp
import numpy as np
import pytest

from s8bqat_jax.artifacts import qtensor
from s8bqat_jax.quantizers import codebook

SIZE = 3000


def _book(levels, values_dtype, scale_dtype, seed=0):
  rng = np.random.default_rng(seed)
  values = np.sort(rng.choice(np.arange(-128, 128), levels, replace=False))
  return codebook.Codebook(
    jnp.asarray(values, values_dtype), jnp.asarray(0.013, scale_dtype)
  )


def _weights(dtype):
  rng = np.random.default_rng(1)
  # Three times the range of the codebooks: many weights lie outside.
  return jnp.asarray(rng.standard_normal(SIZE) * 2, dtype)


KINDS = [
  (levels, values, dtype)
  for levels in (2, 5, 32, 256)
  for values in (jnp.int8, jnp.float32)
  for dtype in (jnp.float32, jnp.bfloat16)
]


@pytest.mark.parametrize('levels, values, dtype', KINDS)
def test_nearest_is_the_nearest_of_all(levels, values, dtype):
  book, w = _book(levels, values, dtype), _weights(dtype)
  codes = np.asarray(codebook.nearest(w, book))
  assert codes.dtype == np.uint8
  real = np.asarray(book.values, np.float64) * float(book.scale)
  away = np.abs(np.asarray(w, np.float64)[:, None] - real)
  ours = away[np.arange(SIZE), codes]
  np.testing.assert_allclose(ours, away.min(1), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize('levels, values, dtype', KINDS)
def test_codes_survive_decoding(levels, values, dtype):
  book, w = _book(levels, values, dtype), _weights(dtype)
  q = qtensor.check(codebook.quantize(w, book))
  snapped = codebook.snap(w, book)
  np.testing.assert_array_equal(snapped, qtensor.dequantize(q))
  np.testing.assert_array_equal(codebook.nearest(snapped, book), q.codes)


@pytest.mark.parametrize('levels, values, dtype', KINDS)
def test_regions_are_the_neighbours(levels, values, dtype):
  book, w = _book(levels, values, dtype), _weights(dtype)
  regions = codebook.regions(w, book)
  left, right, x = (
    np.asarray(a, np.float64) for a in (regions.left, regions.right, w)
  )
  real = np.asarray(codebook.centroids(book), np.float64)
  inside = right > left
  assert np.all((left <= x) & (x <= right) | ~inside)
  assert np.all(inside | (x <= real[0]) | (x >= real[-1]))
  # The two are neighbours in the codebook, or the same end of it.
  step = np.searchsorted(real, right) - np.searchsorted(real, left)
  np.testing.assert_array_equal(step, inside)
  assert set(left[~inside]) <= {real[0], real[-1]}
  # A snapped weight is one of its neighbours, to the last bit.
  snapped = codebook.snap(w, book)
  assert np.all((snapped == regions.left) | (snapped == regions.right))


@pytest.mark.parametrize('levels, values, dtype', KINDS)
def test_above_counts_the_centroids_that_are_not_above(levels, values, dtype):
  book, w = _book(levels, values, dtype), _weights(dtype)
  # In float32, as the codes are found.
  scale = np.float32(book.scale)
  steps = np.float32(w) / scale if values == jnp.int8 else np.float32(w)
  real = np.float32(book.values) * (1 if values == jnp.int8 else scale)
  want = np.searchsorted(real, steps, side='right')
  np.testing.assert_array_equal(codebook.above(w, book), want)


@pytest.mark.parametrize('values', [np.int8, np.float32])
def test_ties_go_down_and_equal_centroids_share_the_first_code(values):
  book = codebook.Codebook(np.array([-2, 0, 0, 0, 4], values), np.float32(0.5))
  w = np.array([-0.5, -0.49, 0.0, 0.1, 1.0, 1.01, 9, -9], np.float32)
  assert codebook.nearest(w, book).tolist() == [0, 1, 1, 1, 1, 4, 4, 0]
  regions = codebook.regions(w[1:5], book)
  assert regions.left.tolist() == [-1, 0, 0, 0]
  assert regions.right.tolist() == [0, 2, 2, 2]


@pytest.mark.parametrize('values', [np.int8, np.float32])
def test_nan_takes_code_zero(values):
  book = codebook.Codebook(np.array([-2, 0, 4], values), np.float32(0.5))
  assert codebook.nearest(np.float32([np.nan]), book).tolist() == [0]


def test_on_grid_rounds_clips_and_sorts():
  book = codebook.on_grid(np.float32([3.0, -0.26, 99.0, 0.2]), np.float32(0.5))
  assert book.values.dtype == jnp.int8
  assert book.values.tolist() == [-1, 0, 6, 127]


@pytest.mark.parametrize('scale', [7.0, 0.037, 1 / 3])
def test_ties_are_decided_alike_inside_jit_and_outside(scale):
  scale = np.float32(scale)
  book = codebook.Codebook(jnp.arange(-128, 128, dtype=jnp.int8), scale)
  w = jnp.asarray(np.arange(-255, 256) * np.float32(0.5) * scale)
  both = jax.jit(lambda w: (codebook.nearest(w, book), w * 2))
  np.testing.assert_array_equal(codebook.nearest(w, book), both(w)[0])


def test_empty_and_scalar_weights():
  book = codebook.Codebook(np.array([-1, 1], np.int8), np.float32(1))
  assert codebook.nearest(np.zeros((0, 3), np.float32), book).shape == (0, 3)
  assert int(codebook.nearest(np.float32(0.3), book)) == 1


def test_under_vmap_each_layer_has_its_own_codebook():
  books = codebook.Codebook(
    np.array([[-2, 2], [-8, 8]], np.int8), np.float32([0.5, 0.25])
  )
  w = np.float32([[0.3, -4], [0.3, -4]])
  snapped = jax.vmap(codebook.snap)(w, books)
  np.testing.assert_array_equal(snapped, [[1, -1], [2, -2]])
