"""Greedy decoding against one row, one frame, one label at a time."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from s8bqat_jax.speech import decode
from tests.speech import toy_transducer


def _greedy_reference(transducer, enc_TxD, max_symbols):
  state = transducer.initial_state(1)
  state, pred = transducer.predict_step(state, jnp.zeros([1], jnp.int32))
  labels = []
  for frame in np.asarray(enc_TxD):
    for _ in range(max_symbols):
      best = int(np.argmax(transducer.joint(frame[None], pred)[0]))
      if best == 0:
        break
      labels.append(best)
      state, pred = transducer.predict_step(state, jnp.array([best]))
  return labels


def _lists(decoded):
  return [
    row[:n].tolist()
    for row, n in zip(
      np.asarray(decoded.labels_BxN), decoded.lengths_B, strict=True
    )
  ]


@pytest.mark.parametrize('max_symbols', [1, 2, 4])
@pytest.mark.parametrize('blank_bias', [-1.0, 0.5, 2.0])
def test_greedy_equals_one_step_at_a_time(max_symbols, blank_bias):
  transducer = toy_transducer.make(V=4, blank_bias=blank_bias)
  enc = toy_transducer.encode(B=6, T=11)
  lengths = np.array([11, 10, 6, 1, 0, 11])
  decoded = decode.greedy(transducer, enc, lengths, max_symbols=max_symbols)
  expected = [
    _greedy_reference(transducer, enc[b, :t], max_symbols)
    for b, t in enumerate(lengths)
  ]
  assert _lists(decoded) == expected
  assert decoded.labels_BxN.shape == (6, 11 * max_symbols)
  # Zero beyond each length.
  assert np.count_nonzero(decoded.labels_BxN) == sum(map(len, expected))


def test_bias_spans_no_label_to_the_bound():
  """The test above would prove little if all biases decoded alike."""
  enc, lengths = toy_transducer.encode(T=11), np.array([11, 11, 11])
  run = lambda bias: (
    decode.greedy(
      toy_transducer.make(blank_bias=bias), enc, lengths, max_symbols=3
    ).lengths_B
  )
  np.testing.assert_array_equal(run(100.0), 0)
  np.testing.assert_array_equal(run(-100.0), 33)
  assert 0 < run(0.5).sum() < 99


@pytest.mark.parametrize('pieces', [[1] * 11, [3, 1, 0, 7], [4, 4, 3]])
def test_stream_equals_batch(pieces):
  transducer = toy_transducer.make(V=4)
  enc = toy_transducer.encode(B=3, T=11)
  lengths = np.array([11, 7, 2])
  whole = _lists(decode.greedy(transducer, enc, lengths))
  step = jax.jit(functools.partial(decode.greedy_chunk, transducer))
  carry = decode.initial_carry(transducer, 3)
  got, start = [[], [], []], 0
  for size in pieces:
    left = np.clip(lengths - start, 0, size)
    carry, decoded = step(carry, enc[:, start : start + size], left)
    got = [a + b for a, b in zip(got, _lists(decoded), strict=True)]
    start += size
  assert got == whole and any(whole)


def test_max_symbols_must_be_positive():
  transducer = toy_transducer.make()
  with pytest.raises(ValueError, match='max_symbols'):
    decode.greedy(
      transducer, toy_transducer.encode(), np.array([1, 1, 1]), max_symbols=0
    )


@pytest.mark.parametrize('T', [0, 1, 2, 40])
def test_ctc_merges_what_repeats_and_drops_blanks(T):
  B, V = 6, 3
  rng = np.random.default_rng(T)
  logits = rng.normal(size=(B, T, V)).astype(np.float32)
  logits[0, :, 0] = 9  # Nothing but blanks.
  logits[1, :, 2] = 9  # One label all the time.
  lengths = rng.integers(0, T + 1, B)
  lengths[:3] = T, T, 0
  found = jax.jit(decode.ctc_greedy)(logits, lengths)
  assert found.labels_BxN.shape == (B, T)
  for row, length, labels, count in zip(logits, lengths, *found):
    path = row[:length].argmax(-1)
    wanted = [int(k) for k, _ in itertools.groupby(path) if k]
    assert count == len(wanted)
    assert labels.tolist() == wanted + [0] * (T - len(wanted))


def test_greedy_in_x64():
  transducer = toy_transducer.make()
  enc, lengths = toy_transducer.encode(B=2, T=5), np.array([5, 3])
  expected = decode.greedy(transducer, enc, lengths)
  with jax.enable_x64(True):
    found = decode.greedy(transducer, enc, lengths)
    nothing = decode.greedy(transducer, enc[:, :0], np.array([0, 0]))
  for a, b in zip(found, expected, strict=True):
    np.testing.assert_array_equal(a, b)
  assert nothing.lengths_B.dtype == found.lengths_B.dtype
