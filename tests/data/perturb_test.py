import numpy as np
import pytest

from s8bqat_jax.data import perturb

RATE = 16_000


@pytest.mark.parametrize('speed', [0.9, 1.1, 0.85, 1.25])
def test_a_tone_keeps_its_shape_at_another_pitch(speed):
  hertz = 440.0
  audio_S = np.sin(2 * np.pi * hertz * np.arange(RATE) / RATE, dtype=np.float32)
  got_S = perturb.change_speed(audio_S, speed)
  assert got_S.dtype == np.float32
  assert len(got_S) == int(np.ceil(len(audio_S) / speed))
  want_S = np.sin(2 * np.pi * hertz * speed * np.arange(len(got_S)) / RATE)
  np.testing.assert_allclose(got_S[50:-50], want_S[50:-50], atol=2e-3)


def test_speeding_up_does_not_alias():
  near_nyquist_S = np.sin(2 * np.pi * 7900 * np.arange(RATE) / RATE)
  got_S = perturb.change_speed(near_nyquist_S.astype(np.float32), 1.25)
  assert np.abs(got_S[100:-100]).max() < 0.05


@pytest.mark.parametrize('size', [0, 1, 2, 9, 10, 2561])
def test_short_audio(size):
  audio_S = np.ones(size, np.float32)
  assert len(perturb.change_speed(audio_S, 0.9)) == -(-size * 10 // 9)
  assert perturb.change_speed(audio_S, 1.0) is audio_S


def _pcm(size=8000):
  rng = np.random.default_rng(1)
  return rng.integers(-8000, 8000, size).astype(np.int16)


def test_draws_follow_seed_epoch_and_index_alone():
  mix = perturb.Perturbation(snr_db=(0, 20))
  pcm_S = _pcm()
  base_S = mix(pcm_S, 1, 2, 3)
  mix(pcm_S, 7, 7, 7)
  np.testing.assert_array_equal(base_S, mix(pcm_S, 1, 2, 3))
  for other in ((2, 2, 3), (1, 3, 3), (1, 2, 4)):
    got_S = mix(pcm_S, *other)
    assert len(got_S) != len(base_S) or (got_S != base_S).any()


def test_lengths_stay_within_stretch():
  mix = perturb.Perturbation(speeds=(0.93, 1.0, 1.07))
  low, high = mix.stretch
  sizes = {len(mix(_pcm(), 0, 0, i)) for i in range(50)}
  assert len(sizes) == 3
  assert 8000 * low <= min(sizes) and max(sizes) <= np.ceil(8000 * high)


def test_nothing_drawn_changes_nothing():
  still = perturb.Perturbation(speeds=(1.0,), gain_db=None)
  pcm_S = _pcm()
  assert still(pcm_S, 0, 0, 0) is pcm_S
  assert still.stretch == (1.0, 1.0)


def test_gain_is_in_its_range():
  louder = perturb.Perturbation(speeds=(1.0,), gain_db=(-12, -6))
  pcm_S = _pcm()
  for i in range(20):
    ratio = np.std(louder(pcm_S, 0, 0, i)) / np.std(pcm_S)
    assert 10 ** (-12.1 / 20) < ratio < 10 ** (-5.9 / 20)


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'speeds': ()}, 'speeds='),
    ({'speeds': (0.1,)}, 'speeds='),
    ({'gain_db': (3, -3)}, 'gain_db='),
    ({'snr_db': (3, -3)}, 'snr_db='),
  ],
)
def test_errors(options, message):
  with pytest.raises(ValueError, match=message):
    perturb.Perturbation(**options)
