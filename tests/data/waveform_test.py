import functools

import jax
import numpy as np
import pytest

from s8bqat_jax.data import noise, perturb, waveform

LENGTHS_B = np.array([32_000, 20_000, 0, 9], np.int32)


@functools.cache
def _perturbed():
  return jax.jit(waveform.perturbed)


def _batch(draws, size=32_000):
  rng = np.random.default_rng(0)
  audio_BxS = np.zeros((len(draws), size), np.int16)
  for row, length in enumerate(LENGTHS_B):
    speech = slice(length // 4, length // 2)
    audio_BxS[row, speech] = rng.integers(-3000, 3000, audio_BxS.shape[1])[
      speech
    ]
  batch = waveform.no_draws(
    len(draws), noisy=any(np.isfinite(d.snr_db) for d in draws)
  )
  for row, draw in enumerate(draws):
    waveform.set_draw(batch, row, draw)
  return {'audio_BxS': audio_BxS, 'audio_lengths_B': LENGTHS_B, **batch}


def test_without_draws_the_samples_come_back():
  batch = {'audio_BxS': np.ones((2, 5), np.int16)}
  assert waveform.perturbed(batch) is batch['audio_BxS']


def test_gain():
  draws = [perturb.Draw(1.0, g, np.inf, 0, 0.0) for g in (1, 0.5, 2, 1)]
  batch = _batch(draws)
  got_BxS = _perturbed()(batch)
  want_BxS = batch['audio_BxS'] / 32768 * np.array([[1], [0.5], [2], [1]])
  np.testing.assert_allclose(got_BxS, want_BxS, atol=1e-7)


def test_too_loud_is_clipped():
  batch = _batch([perturb.Draw(1.0, 100.0, np.inf, 0, 0.0)] * 4)
  assert np.abs(_perturbed()(batch)).max() == 1


@pytest.mark.parametrize('kind', range(len(noise.KINDS)))
def test_noise_is_that_of_the_bank_at_its_ratio(kind):
  place, snr_db = 0.25, 6.0
  draws = [perturb.Draw(1.0, 0.5, snr_db, kind, place)] * 3
  draws.append(perturb.Draw(1.0, 0.5, np.inf, kind, place))
  batch = _batch(draws)
  got_BxS = np.asarray(_perturbed()(batch))
  bank_S = noise.bank(noise.KINDS[kind])
  start = int(place * (len(bank_S) - 32_000 + 1))
  for row, length in enumerate(LENGTHS_B[:2]):
    audio_S = batch['audio_BxS'][row, :length].astype(np.float32) / 65536
    want_S = noise.mix(audio_S, bank_S[start : start + length], snr_db)
    # The host's frames end with the row, the batch's with the bucket.
    np.testing.assert_allclose(got_BxS[row, :length], want_S, atol=2e-3)
    assert not got_BxS[row, length:].any()
  assert not got_BxS[2].any()
  np.testing.assert_array_equal(got_BxS[3], batch['audio_BxS'][3] / 65536)


def test_a_batch_longer_than_the_bank():
  batch = waveform.no_draws(1, noisy=True)
  waveform.set_draw(batch, 0, perturb.Draw(1.0, 1.0, 0.0, 1, 0.999))
  size = 25 * 16_000
  batch |= {
    'audio_BxS': np.full((1, size), 1000, np.int16),
    'audio_lengths_B': np.array([size], np.int32),
  }
  got_BxS = np.asarray(waveform.perturbed(batch))
  assert np.isfinite(got_BxS).all() and got_BxS[0, -10:].std() > 0
