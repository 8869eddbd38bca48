import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from s8bqat_jax.artifacts import packing


def _bit_by_bit(codes, bits):
  """The format, literally: one Python integer is the whole stream."""
  stream = sum(int(c) << (bits * i) for i, c in enumerate(codes))
  return stream.to_bytes(-(-len(codes) * bits // 8), 'little')


@settings(max_examples=200)
@given(st.integers(2, 256), st.integers(0, 70), st.integers(0, 99))
def test_bytes_are_the_stream_of_bits_and_come_back(levels, size, seed):
  codes = np.random.default_rng(seed).integers(0, levels, size)
  codes = codes.astype(np.uint8)
  packed = packing.pack(codes, levels)
  assert packed.dtype == np.uint8
  assert packed.shape == (packing.packed_size(size, levels),)
  if levels != 3:
    assert packed.tobytes() == _bit_by_bit(codes, (levels - 1).bit_length())
  np.testing.assert_array_equal(packing.unpack(packed, levels, size), codes)


def test_five_ternary_codes_to_a_byte():
  codes = np.array([2, 0, 1, 1, 2, 1], np.uint8)
  packed = packing.pack(codes, 3)
  assert packed.tolist() == [2 + 9 + 27 + 2 * 81, 1]
  np.testing.assert_array_equal(packing.unpack(packed, 3, 6), codes)


@pytest.mark.parametrize('levels', [2, 3, 8, 32, 256])
@pytest.mark.parametrize('size', [0, 13])
def test_jax_packs_as_numpy_does(levels, size):
  codes = np.random.default_rng(0).integers(0, levels, size).astype(np.uint8)
  packed = packing.pack(jnp.asarray(codes), levels)
  np.testing.assert_array_equal(packed, packing.pack(codes, levels))
  np.testing.assert_array_equal(packing.unpack(packed, levels, size), codes)


def test_a_wrong_length_is_an_error():
  with pytest.raises(ValueError, match=r'10 codes of 4 levels.*\(3,\).*\(4,\)'):
    packing.unpack(np.zeros(4, np.uint8), 4, 10)


def test_a_byte_that_no_five_ternary_codes_give_is_an_error():
  assert packing.unpack(np.array([242], np.uint8), 3, 5).tolist() == [2] * 5
  with pytest.raises(ValueError, match='byte 243 stands for no five ternary'):
    packing.unpack(np.array([0, 243], np.uint8), 3, 10)
