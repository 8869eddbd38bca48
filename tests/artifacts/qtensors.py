"""QTensors of every kind, for hypothesis and for plain tests."""

import ml_dtypes
import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from s8bqat_jax.artifacts import qtensor


@st.composite
def qtensors(draw):
  levels = draw(st.integers(2, 256))
  shape = draw(hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=7))
  dtype = draw(st.sampled_from([np.float32, np.float16, ml_dtypes.bfloat16]))
  rng = np.random.default_rng(draw(st.integers(0, 99)))
  per_channel = draw(st.booleans()) and len(shape) > 0
  scale_shape = (1,) * (len(shape) - 1) + shape[-1:] if per_channel else ()
  scale = rng.uniform(0.01, 0.1, scale_shape).astype(dtype)
  if draw(st.booleans()):
    low, high = qtensor.uniform_range(levels)
    codes = rng.integers(low, high + 1, shape).astype(np.int8)
    return qtensor.QTensor(codes, scale, None, levels)
  codes = rng.integers(0, levels, shape).astype(np.uint8)
  book = np.sort(rng.choice(np.arange(-128, 128), levels, replace=False))
  book = book.astype(draw(st.sampled_from([np.int8, np.float32])))
  return qtensor.QTensor(codes, scale, book, levels)


def assert_same(a, b):
  """Asserts that two QTensors are equal in every field and dtype."""
  assert a.levels == b.levels
  assert (a.codebook is None) == (b.codebook is None)
  for x, y in zip(
    (a.codes, a.scale, a.codebook), (b.codes, b.scale, b.codebook)
  ):
    if x is not None:
      x, y = np.asarray(x), np.asarray(y)
      assert (x.dtype, x.shape) == (y.dtype, y.shape)
      np.testing.assert_array_equal(x, y)


def codes(shape, levels=16, seed=0):
  """Centroids, some of them commoner than others."""
  rng = np.random.default_rng(seed)
  return qtensor.QTensor(
    codes=rng.binomial(levels - 1, 0.5, shape).astype(np.uint8),
    scale=np.float32(0.01),
    codebook=np.sort(rng.permutation(256)[:levels] - 128).astype(np.int8),
    levels=levels,
  )


def ternary(shape):
  """Three uniform levels."""
  rng = np.random.default_rng(1)
  codes = rng.integers(-1, 2, shape).astype(np.int8)
  return qtensor.QTensor(codes, np.float32(0.3), None, 3)


def tree():
  """A model of everything that a file may hold."""
  return {
    'encoder': {
      'lstm': {'kernel': codes((24, 10)), 'bias': np.ones(10, np.float32)},
      'norm': {'scale': np.full(5, 1.5, ml_dtypes.bfloat16)},
      'blocks': {0: {'w': ternary((6, 7))}, 1: {'w': codes((3,), 2)}},
      'empty': {},
    },
    'steps': np.asarray(7),
    'none yet': np.zeros((0, 4), np.float16),
  }


def assert_same_tree(a, b):
  """Asserts that two trees are equal to the last bit."""
  if isinstance(a, dict):
    assert a.keys() == b.keys()
    for key in a:
      assert_same_tree(a[key], b[key])
  elif qtensor.is_qtensor(a):
    assert_same(a, b)
  else:
    a, b = np.asarray(a), np.asarray(b)
    assert (a.dtype, a.shape) == (b.dtype, b.shape)
    assert a.tobytes() == b.tobytes()
