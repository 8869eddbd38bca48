import numpy as np
import pytest

from s8bqat_jax.data import noise


@pytest.mark.parametrize('kind', noise.KINDS)
def test_the_bank_has_unit_power_and_two_sides(kind):
  noise_S = noise.bank(kind)
  assert noise_S.dtype == np.float32
  np.testing.assert_allclose(noise_S.std(), 1, rtol=1e-3)
  other_S = noise.bank(kind, 1)
  # A hum is a hum; what lies over it is another draw.
  assert abs(np.corrcoef(noise_S, other_S)[0, 1]) < 0.9


def test_colors_fall_as_they_should():
  def slope(kind):
    power_F = np.abs(np.fft.rfft(noise.bank(kind))) ** 2
    low = power_F[2_000:4_000].mean()
    high = power_F[32_000:64_000].mean()
    return np.log2(high / low) / 4  # per octave

  for kind, exponent in (('white', 0), ('pink', 1), ('brown', 2)):
    assert abs(slope(kind) + exponent) < 0.1


@pytest.mark.parametrize('size', [0, 1, 16_000, 20 * 16_000, 50 * 16_000])
def test_draw_gives_any_length(size):
  got_S = noise.draw(np.random.default_rng(0), size)
  assert got_S.shape == (size,)


@pytest.mark.parametrize('snr_db', [-5.0, 0.0, 20.0])
def test_mix_reaches_the_ratio_over_speech_frames(snr_db):
  rng = np.random.default_rng(0)
  audio_S = np.zeros(32_000, np.float32)
  audio_S[8000:16_000] = 0.05 * rng.standard_normal(8000)
  noise_S = rng.standard_normal(32_000).astype(np.float32)
  added_S = noise.mix(audio_S, noise_S, snr_db) - audio_S
  ratio = np.mean(audio_S[8000:16_000] ** 2) / np.mean(added_S**2)
  np.testing.assert_allclose(10 * np.log10(ratio), snr_db, atol=0.2)


def test_mix_does_not_clip_and_leaves_silence():
  loud_S = np.full(1600, 0.9, np.float32)
  mixed_S = noise.mix(loud_S, np.linspace(-3, 3, 1600, dtype=np.float32), 0.0)
  assert np.abs(mixed_S).max() <= 1
  silence_S = np.zeros(1600, np.float32)
  np.testing.assert_array_equal(noise.mix(silence_S, loud_S, 0.0), silence_S)
  assert noise.mix(silence_S[:0], loud_S[:0], 0.0).shape == (0,)
  assert noise.speech_power(silence_S[:0]) == 0
