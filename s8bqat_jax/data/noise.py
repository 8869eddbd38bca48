"""Background noise: a bank of synthetic kinds, and mixing at a drawn SNR."""

import functools

import numpy as np

from s8bqat_jax.data import corpus as corpus_lib

KINDS = ('white', 'pink', 'brown', 'hum', 'babble')
_BANK_SECONDS = 20


def _shaped(rng: np.random.Generator, size: int, exponent: float) -> np.ndarray:
  """Gaussian noise whose power falls as 1 / frequency**exponent."""
  spectrum_F = np.fft.rfft(rng.standard_normal(size))
  spectrum_F *= np.maximum(np.arange(len(spectrum_F)), 20.0) ** (-exponent / 2)
  return np.fft.irfft(spectrum_F, size)


def _hum(rng: np.random.Generator, size: int) -> np.ndarray:
  """A motor: harmonics of 50 Hz that waver, over pink noise."""
  time_S = np.arange(size) / corpus_lib.SAMPLE_RATE
  phase_S = 2 * np.pi * 50 * time_S + 0.3 * np.sin(2 * np.pi * 0.7 * time_S)
  tones = [np.sin(k * phase_S + rng.uniform(0, 6.3)) / k for k in range(1, 12)]
  pink_S = _shaped(rng, size, 1.0)
  return np.sum(tones, axis=0) + pink_S / pink_S.std()


def _babble(rng: np.random.Generator, size: int) -> np.ndarray:
  """Eight talkers' worth of syllables: pink noise switched at 3-6 Hz."""
  time_S = np.arange(size) / corpus_lib.SAMPLE_RATE
  total_S = np.zeros(size)
  for _ in range(8):
    rate = rng.uniform(3, 6)
    wander_S = np.cumsum(rng.standard_normal(size)) * 0.003
    gate_S = np.sin(2 * np.pi * rate * time_S + wander_S + rng.uniform(0, 6.3))
    total_S += _shaped(rng, size, 1.2) * np.maximum(gate_S, 0.05)
  return total_S


@functools.cache
def bank(kind: str, side: int = 0) -> np.ndarray:
  """Returns twenty seconds of a kind of noise.

  Args:
    kind: One of `KINDS`.
    side: Another side is another draw (training never hears evaluation's).

  Returns:
    float32 [S] of unit power.
  """
  rng = np.random.default_rng([KINDS.index(kind), side])
  size = _BANK_SECONDS * corpus_lib.SAMPLE_RATE
  if kind == 'hum':
    noise_S = _hum(rng, size)
  elif kind == 'babble':
    noise_S = _babble(rng, size)
  else:
    exponent = {'white': 0.0, 'pink': 1.0, 'brown': 2.0}[kind]
    noise_S = _shaped(rng, size, exponent)
  noise_S = (noise_S / noise_S.std()).astype(np.float32)
  noise_S.flags.writeable = False
  return noise_S


def draw(rng: np.random.Generator, size: int, side: int = 0) -> np.ndarray:
  """Returns a stretch of a random kind, of unit power in the long run.

  Args:
    rng: Draws the kind and the position.
    size: Samples wanted.
    side: See `bank`.

  Returns:
    float32 [size]; longer than the bank, it repeats.
  """
  noise_S = bank(KINDS[int(rng.integers(len(KINDS)))], side)
  if size > len(noise_S):
    noise_S = np.tile(noise_S, -(-size // len(noise_S)))
  start = int(rng.integers(len(noise_S) - size + 1))
  return noise_S[start : start + size]


def speech_power(audio_S: np.ndarray) -> float:
  """Returns the mean power where somebody speaks.

  Pauses would make a recording with long silence noisier at the same SNR, so
  frames of 20 ms more than 30 dB below the loudest are left out.

  Args:
    audio_S: float samples.

  Returns:
    Mean square over the frames that count; 0 for silence.
  """
  frame = corpus_lib.SAMPLE_RATE // 50
  count = len(audio_S) // frame
  if not count:
    return float(np.mean(np.square(audio_S))) if len(audio_S) else 0.0
  framed_NxS = audio_S[: count * frame].reshape(count, frame)
  power_N = np.einsum('ns,ns->n', framed_NxS, framed_NxS) / frame
  return float(power_N[power_N >= power_N.max() * 1e-3].mean())


def mix(audio_S: np.ndarray, noise_S: np.ndarray, snr_db: float) -> np.ndarray:
  """Returns speech plus noise at a signal-to-noise ratio.

  Args:
    audio_S: float32 speech; silence comes back unchanged.
    noise_S: As many samples of unit power.
    snr_db: Power of the speech frames over the noise, in decibels.

  Returns:
    float32 [S]; scaled down when it would clip.
  """
  gain = np.float32((speech_power(audio_S) / 10 ** (snr_db / 10)) ** 0.5)
  mixed_S = gain * noise_S
  mixed_S += audio_S
  peak = max(mixed_S.max(initial=0), -mixed_S.min(initial=0))
  return mixed_S / peak if peak > 1 else mixed_S
