import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings

from s8bqat_jax.artifacts import qtensor
from tests.artifacts import qtensors


def _uniform(**changes):
  q = qtensor.QTensor(
    codes=np.array([[-2, -1], [0, 1]], np.int8),
    scale=np.float32(0.5),
    codebook=None,
    levels=4,
  )
  return dataclasses.replace(q, **changes)


def _centroids(**changes):
  q = qtensor.QTensor(
    codes=np.array([0, 1, 2, 1], np.uint8),
    scale=np.float32(0.25),
    codebook=np.array([-100, 3, 127], np.int8),
    levels=3,
  )
  return dataclasses.replace(q, **changes)


@settings(max_examples=60)
@given(qtensors.qtensors())
def test_values_are_the_equations_of_the_docstring(q):
  assert qtensor.check(q) is q
  assert q.bits == int(np.ceil(np.log2(q.levels)))
  assert (q.size, q.ndim, q.shape) == (
    q.codes.size,
    q.codes.ndim,
    q.codes.shape,
  )
  grid = q.codes if q.codebook is None else q.codebook[q.codes]
  np.testing.assert_array_equal(qtensor.grid_values(q), grid)
  # A product in the scale's own dtype, rounded once.
  np.testing.assert_array_equal(
    qtensor.dequantize(q), grid.astype(q.scale.dtype) * q.scale
  )
  assert qtensor.dequantize(q).dtype == q.dtype


@pytest.mark.parametrize('levels', [2, 3, 4, 15, 16, 255, 256])
def test_uniform_range_holds_levels_codes_in_int8(levels):
  low, high = qtensor.uniform_range(levels)
  assert high - low + 1 == levels
  assert -128 <= low <= 0 <= high <= 127


def test_three_uniform_levels_are_ternary():
  assert qtensor.uniform_range(3) == (-1, 1)


def test_a_qtensor_rides_through_jit_and_tree_functions():
  tree = {'w': jax.tree.map(jnp.asarray, _centroids()), 'b': jnp.ones(2)}
  out = jax.jit(lambda t: t)(tree)
  qtensors.assert_same(out['w'], tree['w'])
  inside = jax.jit(qtensor.decode)(tree)
  np.testing.assert_array_equal(inside['w'], [-25.0, 0.75, 31.75, 0.75])
  np.testing.assert_array_equal(inside['b'], [1.0, 1.0])
  leaves = jax.tree.leaves(tree, is_leaf=qtensor.is_qtensor)
  assert sum(map(qtensor.is_qtensor, leaves)) == 1


@pytest.mark.parametrize(
  'bad, message',
  [
    (_uniform(levels=1), r'levels must be in 2\.\.256, got 1'),
    (_uniform(levels=257), r'levels must be in 2\.\.256, got 257'),
    (_uniform(levels=3), r'codes must lie in \[-1, 1\], found \[-2, 1\]'),
    (_uniform(scale=np.int8(1)), 'floating point, got int8'),
    (_uniform(scale=np.float32(0)), 'above zero'),
    (_uniform(scale=np.float32(np.nan)), 'finite'),
    (_uniform(scale=np.ones((3, 1), np.float32)), r'\(3, 1\).*\(2, 2\)'),
    (_uniform(scale=np.ones((1, 1, 2), np.float32)), 'does not broadcast'),
    (_uniform(codes=np.zeros((2, 2), np.uint8)), 'codes must be int8'),
    (_centroids(codes=np.zeros(4, np.int8)), 'codes must be uint8'),
    (_centroids(codes=np.array([3], np.uint8)), r'found \[3, 3\]'),
    (_centroids(codebook=np.zeros(4, np.int8)), r'shape \(3,\), got \(4,\)'),
    (_centroids(codebook=np.zeros(3, np.int32)), 'got int32'),
    (_centroids(codebook=np.array([2, 1, 3], np.int8)), 'sorted'),
  ],
)
def test_check_names_the_tensor_and_what_is_wrong(bad, message):
  with pytest.raises(ValueError, match='encoder/w: .*' + message):
    qtensor.check(bad, 'encoder/w')


def test_codes_that_overflow_are_an_error():
  q = qtensor.QTensor(np.int8([[127]]), np.float16(512), None, 256)
  with pytest.raises(ValueError, match='codes times scale overflows float16'):
    qtensor.check(q)
  fine = dataclasses.replace(q, scale=np.float16(511))
  assert np.isfinite(qtensor.dequantize(qtensor.check(fine))).all()


def test_a_codebook_that_overflows_is_an_error():
  q = _centroids(scale=np.float16(546))
  with pytest.raises(
    ValueError, match='codebook times scale overflows float16'
  ):
    qtensor.check(q)
