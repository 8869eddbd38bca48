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
