import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from s8bqat_jax.artifacts import entropy


@settings(max_examples=80)
@given(
  st.integers(2, 256),
  st.sampled_from([0, 1, 2, 100, 2047, 5000, 12_345]),
  st.sampled_from([0.01, 0.3, 3.0, 100.0]),
  st.integers(0, 99),
)
def test_codes_come_back_exactly(levels, size, concentration, seed):
  rng = np.random.default_rng(seed)
  p = rng.dirichlet(np.full(levels, concentration))
  codes = rng.choice(levels, size, p=p).astype(np.uint8)
  stream = entropy.encode(codes, levels)
  np.testing.assert_array_equal(entropy.decode(stream, levels, size), codes)


@pytest.mark.parametrize('levels', [2, 16, 256])
def test_size_is_within_one_percent_of_the_entropy(levels):
  rng = np.random.default_rng(0)
  p = rng.dirichlet(np.ones(levels))
  codes = rng.choice(levels, 300_000, p=p).astype(np.uint8)
  share = np.bincount(codes, minlength=levels) / codes.size
  share = share[share > 0]
  entropy_bytes = -np.sum(share * np.log2(share)) * codes.size / 8
  size = entropy.encode(codes, levels).size
  table_and_states = levels // 8 + 1 + 2 * levels + 4 * (codes.size // 2048)
  assert entropy_bytes <= size <= 1.01 * entropy_bytes + table_and_states


def test_one_single_value_costs_next_to_nothing():
  assert entropy.encode(np.full(2000, 7, np.uint8), 16).size == 2 + 2 + 4


def test_levels_that_do_not_occur_cost_a_bit_each():
  few = np.random.default_rng(0).integers(0, 16, 5000).astype(np.uint8)
  alone = entropy.encode(few, 16).size
  assert entropy.encode(few + np.uint8(100), 256).size == alone + (256 - 16) / 8


def test_a_rare_code_survives_among_many():
  codes = np.zeros(200_000, np.uint8)
  codes[777] = 255
  stream = entropy.encode(codes, 256)
  np.testing.assert_array_equal(entropy.decode(stream, 256, codes.size), codes)


@pytest.mark.parametrize(
  'change, message',
  [
    (lambda s: s[:20], 'whole words'),
    (lambda s: s[:-1], 'whole words'),
    (lambda s: s[:-2], 'ends too early'),
    (lambda s: np.append(s, s[:2]), 'does not end'),
    (lambda s: np.concatenate([s[:2], s[2:3] ^ 1, s[3:]]), 'must sum to 16384'),
    (lambda s: s[:1], 'whole words'),
  ],
)
def test_damaged_streams_are_refused(change, message):
  codes = np.random.default_rng(0).integers(0, 16, 5000).astype(np.uint8)
  stream = entropy.encode(codes, 16)
  with pytest.raises(ValueError, match=message):
    entropy.decode(change(stream), 16, codes.size)


def test_a_table_of_codes_beyond_the_levels_is_refused():
  stream = entropy.encode(np.arange(12, dtype=np.uint8), 12)
  with pytest.raises(ValueError, match='codes above 11'):
    entropy.decode(
      np.concatenate([stream[:1], np.uint8([255]), stream[2:]]), 12, 12
    )
