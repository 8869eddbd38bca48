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


def test_draws_follow_seed_epoch_and_index_alone():
  mix = perturb.Perturbation(snr_db=(0, 20))
  base = mix.draw(1, 2, 3)
  assert base == mix.draw(1, 2, 3)
  for other in ((2, 2, 3), (1, 3, 3), (1, 2, 4)):
    assert mix.draw(*other) != base


def test_draws_stay_in_their_ranges():
  mix = perturb.Perturbation(
    speeds=(0.93, 1.0, 1.07), gain_db=(-12, -6), snr_db=(3, 9)
  )
  draws = [mix.draw(0, 0, i) for i in range(200)]
  assert {d.speed for d in draws} == {0.93, 1.0, 1.07}
  assert all(-12 <= 20 * np.log10(d.gain) <= -6 for d in draws)
  noisy = [d for d in draws if np.isfinite(d.snr_db)]
  assert 70 < len(noisy) < 130  # half of them
  assert all(3 <= d.snr_db <= 9 for d in noisy)
  assert {d.noise_kind for d in noisy} == set(range(5))
  low, high = mix.stretch
  assert low < 1 / 1.069 and high > 1 / 0.931


def test_nothing_to_draw():
  still = perturb.Perturbation(speeds=(1.0,), gain_db=None)
  assert still.draw(0, 0, 0) == (1.0, 1.0, float('inf'), 0, 0.0)
  assert still.stretch == (1.0, 1.0)


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
