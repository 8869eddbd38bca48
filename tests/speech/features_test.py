"""Log-mel against the textbook definition in float64, and as a stream."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from s8bqat_jax.speech import features


def _mel(hz):
  return 2595 * np.log10(1 + hz / 700)


def _reference(config, audio_S):
  """One frame, one bin, one band at a time."""
  W, hop, N = 400, 160, 512
  n = np.arange(W)
  window = 0.5 * (1 - np.cos(2 * np.pi * n / W))
  mel_edges = np.linspace(
    _mel(config.low_hz), _mel(config.high_hz), config.num_mels + 2
  )
  edges = 700 * (10 ** (mel_edges / 2595) - 1)
  frames = []
  for start in range(0, len(audio_S) - W + 1, hop):
    frame = audio_S[start : start + W].astype(np.float64) * window
    energy = np.zeros(config.num_mels)
    for k in range(N // 2 + 1):
      hz = k * 16000 / N
      power = abs(np.sum(frame * np.exp(-2j * np.pi * k * n / N))) ** 2
      for band in range(config.num_mels):
        left, center, right = edges[band : band + 3]
        if left < hz <= center:
          energy[band] += power * (hz - left) / (center - left)
        elif center < hz < right:
          energy[band] += power * (right - hz) / (right - center)
    frames.append(np.log(energy + 1e-6))
  return np.array(frames)


@functools.cache
def _speechlike(seconds=0.12, batch=1):
  rng = np.random.default_rng(0)
  t = np.arange(int(seconds * 16000)) / 16000
  tone = 0.3 * np.sin(2 * np.pi * (300 + 2000 * t) * t)
  return (tone + 0.02 * rng.normal(size=(batch, len(t)))).astype(np.float32)


_log_mel = jax.jit(features.log_mel, static_argnums=0)
_chunk = jax.jit(features.log_mel_chunk, static_argnums=0)


@pytest.mark.parametrize('num_mels', [40, 64, 80])
def test_equals_textbook(num_mels):
  config = features.LogMel(num_mels=num_mels)
  audio = _speechlike()
  feats, lengths = _log_mel(config, audio, np.array([audio.shape[1]]))
  expected = _reference(config, audio[0])
  assert lengths.tolist() == [len(expected)]
  np.testing.assert_allclose(feats[0], expected, rtol=1e-4, atol=1e-4)


def test_int16_and_float_agree():
  config = features.LogMel()
  whole = np.round(_speechlike() * 32768).astype(np.int16)
  lengths = np.array([whole.shape[1]])
  a, _ = _log_mel(config, whole, lengths)
  b, _ = _log_mel(config, (whole / 32768).astype(np.float32), lengths)
  np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize('dtype', ['int8', 'int32', 'uint8', 'uint16', 'bool'])
def test_other_integers_are_refused(dtype):
  audio = jnp.zeros([1, 800], dtype)
  with pytest.raises(TypeError, match=f'{dtype}.*int16'):
    features.log_mel(features.LogMel(), audio, jnp.array([800]))
  with pytest.raises(TypeError, match=f'{dtype}.*int16'):
    features.log_mel_chunk(features.LogMel(), features.initial_carry(1), audio)


def test_padding_changes_nothing_and_is_zero():
  config = features.LogMel()
  audio = _speechlike(batch=2)
  S = audio.shape[1]
  lengths = np.array([S, S - 500])
  short, frames = _log_mel(config, audio, lengths)
  junk = np.pad(audio, [(0, 0), (0, 640)], constant_values=0.9)
  junk[1, S - 500 :] = -0.7
  long, frames_long = _log_mel(config, junk, lengths)
  np.testing.assert_array_equal(frames, frames_long)
  assert frames[1] < frames[0] == short.shape[1]
  T = short.shape[1]
  np.testing.assert_allclose(long[:, :T], short, rtol=1e-5, atol=1e-5)
  np.testing.assert_array_equal(long[:, T:], 0)
  np.testing.assert_array_equal(short[1, frames[1] :], 0)


@pytest.mark.parametrize('samples', [0, 1, 399, 400, 559, 560])
def test_short_audio(samples):
  config = features.LogMel()
  audio = jnp.zeros([1, samples])
  feats, lengths = features.log_mel(config, audio, jnp.array([samples]))
  expected = max(0, (samples - 400) // 160 + 1) if samples >= 400 else 0
  assert feats.shape == (1, expected, 40) and lengths.tolist() == [expected]
  assert np.isfinite(feats).all()


def test_silence_is_the_floor():
  audio = jnp.zeros([1, 400], jnp.int16)
  feats, _ = features.log_mel(features.LogMel(), audio, jnp.array([400]))
  np.testing.assert_allclose(feats, np.log(1e-6), rtol=1e-6)


@pytest.mark.parametrize('pieces', [[160], [1600], [700, 1, 160, 43, 400]])
def test_stream_equals_batch(pieces):
  config = features.LogMel()
  audio = _speechlike(seconds=0.5, batch=2)
  S = audio.shape[1]
  whole, _ = _log_mel(config, audio, np.array([S, S]))
  carry = features.initial_carry(2)
  got, start = [], 0
  while start < S:
    size = pieces[min(len(got), len(pieces) - 1)]
    carry, feats = _chunk(config, carry, audio[:, start : start + size])
    got.append(feats)
    start += size
  np.testing.assert_allclose(
    np.concatenate(got, axis=1), whole, rtol=1e-5, atol=1e-5
  )


def test_equal_chunks_settle_on_one_shape():
  config = features.LogMel()
  carry, shapes = features.initial_carry(1), []
  for _ in range(8):
    carry, feats = _chunk(config, carry, np.zeros([1, 320], np.float32))
    shapes.append((carry.shape, feats.shape))
  assert len(set(shapes[2:])) == 1


@pytest.mark.parametrize(
  ['change', 'message'],
  [
    ({'high_hz': 9000.0}, 'high_hz=9000'),
    ({'low_hz': 8000.0}, 'low_hz < high_hz'),
    ({'hop_ms': 0.0}, 'hop_ms=0'),
    ({'hop_ms': 30.0}, 'hop_ms=30'),
    ({'num_mels': 200}, 'without a bin'),
  ],
)
def test_impossible_configs_are_errors(change, message):
  with pytest.raises(ValueError, match=message):
    features.LogMel(**change)


def test_lengths_of_any_integer_type():
  config = features.LogMel()
  lengths = [0, 1, config.window - 1, config.window, 1600]
  expected = [0, 0, 0, 1, (1600 - config.window) // config.hop + 1]
  assert [config.num_frames(n) for n in lengths] == expected
  for dtype in (np.uint32, np.uint16, np.int32):
    for array in (np.array(lengths, dtype), jnp.array(lengths, dtype)):
      np.testing.assert_array_equal(config.num_frames(array), expected)
  feats, frames = features.log_mel(
    config, jnp.ones((1, 1600)), jnp.array([config.window - 1], jnp.uint32)
  )
  assert not feats.any() and not frames.any()
  assert features.log_mel(config, jnp.ones((0, 1600)), jnp.zeros(0, int))[
    0
  ].shape == (0, expected[-1], config.num_mels)
