"""Log-mel features: a pure function of samples, in a batch or as a stream.

Frame t covers samples [t * hop, t * hop + window) and nothing else (no
centering, no padding), so that a stream gives the same frames as the file.

Conventions, stated because libraries differ: samples in [-1, 1]; periodic
Hann window; power spectrum of `fft_size` points; HTK mel scale,
2595 log10(1 + f / 700), with triangles of peak one that are linear in hertz;
natural logarithm of (energy + 1e-6), about the energy of 16-bit rounding
noise in a wide filter.

Dimension key: B batch, S samples, T frames, F mel bands, W window, K bins.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

_FLOOR = 1e-6
_INT16_SCALE = 32768.0


@dataclasses.dataclass(frozen=True)
class LogMel:
  """What the features are; part of a model's config.

  Attributes:
    num_mels: F.
    sample_rate: of the audio, in hertz.
    window_ms: length of a frame.
    hop_ms: distance between frames.
    low_hz: lower edge of the first band.
    high_hz: upper edge of the last band.
  """

  num_mels: int = 40
  sample_rate: int = 16000
  window_ms: float = 25.0
  hop_ms: float = 10.0
  low_hz: float = 20.0
  high_hz: float = 8000.0

  def __post_init__(self):
    if not 0 <= self.low_hz < self.high_hz <= self.sample_rate / 2:
      raise ValueError(
        f'expected 0 <= low_hz < high_hz <= {self.sample_rate / 2} (half of '
        f'sample_rate), got low_hz={self.low_hz}, high_hz={self.high_hz}'
      )
    if not 0 < self.hop <= self.window:
      raise ValueError(
        f'expected 0 < hop_ms <= window_ms, got hop_ms={self.hop_ms}, '
        f'window_ms={self.window_ms}'
      )
    empty = np.flatnonzero(_mel_matrix(self).sum(0) == 0)
    if empty.size:
      raise ValueError(
        f'num_mels={self.num_mels} leaves mel bands {empty.tolist()} without '
        f'a bin of the {self.fft_size}-point spectrum: use fewer bands or a '
        'longer window'
      )

  @property
  def window(self) -> int:
    """Samples of a frame."""
    return round(self.sample_rate * self.window_ms / 1000)

  @property
  def hop(self) -> int:
    """Samples between frames."""
    return round(self.sample_rate * self.hop_ms / 1000)

  @property
  def fft_size(self) -> int:
    """The next power of two."""
    return 1 << (self.window - 1).bit_length()

  def num_frames(self, num_samples):
    """Whole frames in so many samples (ints or arrays)."""
    frames = (num_samples - self.window) // self.hop + 1
    return frames * (num_samples >= self.window)  # unsigned ones too


def log_mel(
  config: LogMel, audio_BxS: jax.Array, lengths_B: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Features of a padded batch.

  Args:
    config: what the features are.
    audio_BxS: float samples in [-1, 1], or int16.
    lengths_B: samples of each row.

  Returns:
    feats_BxTxF, float32, zero beyond each row's frames, and lengths_B in
    frames. T = config.num_frames(S).
  """
  feats_BxTxF = _frames_to_mel(config, _to_float(audio_BxS))
  frames_B = config.num_frames(lengths_B)
  valid_BxT = jnp.arange(feats_BxTxF.shape[1]) < frames_B[:, None]
  return jnp.where(valid_BxT[..., None], feats_BxTxF, 0.0), frames_B


def initial_carry(batch_size: int) -> jax.Array:
  """The carry of `log_mel_chunk` before any sample."""
  return jnp.zeros([batch_size, 0], jnp.float32)


def log_mel_chunk(
  config: LogMel, carry_BxR: jax.Array, samples_BxS: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Features of the frames that these samples complete.

  Any number of samples may be fed. Under jit the first calls compile for
  their own shapes; chunks of a multiple of the hop settle on one shape.

  Args:
    config: what the features are.
    carry_BxR: from `initial_carry` or the previous call.
    samples_BxS: the next samples, float in [-1, 1] or int16.

  Returns:
    The next carry, which holds the samples that later frames need, and
    feats_BxTxF, where T may be 0.
  """
  buffer = jnp.concatenate([carry_BxR, _to_float(samples_BxS)], axis=1)
  feats_BxTxF = _frames_to_mel(config, buffer)
  return buffer[:, feats_BxTxF.shape[1] * config.hop :], feats_BxTxF


def _to_float(audio):
  if audio.dtype == jnp.int16:
    return audio.astype(jnp.float32) / _INT16_SCALE
  if not jnp.issubdtype(audio.dtype, jnp.floating):
    raise TypeError(
      f'audio of {audio.dtype}: expected int16, or floats in [-1, 1]; scale '
      'it to one of them'
    )
  return audio.astype(jnp.float32)


def _frames_to_mel(config, audio_BxS):
  B, S = audio_BxS.shape
  T = config.num_frames(S)
  if T == 0:
    return jnp.zeros([B, 0, config.num_mels], jnp.float32)
  spectrum_BxTxK = jnp.fft.rfft(_windowed_frames(config, audio_BxS, T))
  power_BxTxK = spectrum_BxTxK.real**2 + spectrum_BxTxK.imag**2
  mel = jnp.asarray(_mel_matrix(config), jnp.float32)
  energy_BxTxF = jnp.matmul(power_BxTxK, mel, precision='highest')
  return jnp.log(energy_BxTxF + _FLOOR)


def _windowed_frames(config, audio_BxS, T):
  """Overlapping frames under the window, padded to the transform's size.

  A frame's hops are written one after the other: as one fused loop, with a
  branch for every sample, this would take longer than the transform.
  """
  hop, window = config.hop, config.window
  B, S = audio_BxS.shape
  needed = (T + -(-window // hop) - 1) * hop
  audio_BxS = jnp.pad(audio_BxS[:, :needed], [(0, 0), (0, max(needed - S, 0))])
  hops_BxNxH = audio_BxS.reshape(B, needed // hop, hop)
  hann_W = _hann(window)
  frames_BxTxW = jnp.zeros([B, T, config.fft_size], jnp.float32)
  for i, start in enumerate(range(0, window, hop)):
    part_H = hann_W[start : start + hop]
    part_BxTxH = hops_BxNxH[:, i : i + T, : len(part_H)] * part_H
    frames_BxTxW = jax.lax.dynamic_update_slice_in_dim(
      frames_BxTxW, part_BxTxH, start, axis=-1
    )
  return frames_BxTxW


def _hann(window):
  phase = 2 * np.pi * np.arange(window) / window
  return (0.5 - 0.5 * np.cos(phase)).astype(np.float32)


@functools.cache
def _mel_matrix(config) -> np.ndarray:
  """Weights of the triangular bands, [K, F]."""
  to_mel = lambda hz: 2595.0 * np.log10(1.0 + hz / 700.0)
  to_hz = lambda mel: 700.0 * (10.0 ** (mel / 2595.0) - 1.0)
  edges = to_hz(
    np.linspace(
      to_mel(config.low_hz), to_mel(config.high_hz), config.num_mels + 2
    )
  )
  left, center, right = edges[:-2], edges[1:-1], edges[2:]
  bins = np.arange(config.fft_size // 2 + 1)
  hz = (bins * config.sample_rate / config.fft_size)[:, None]
  rising = (hz - left) / (center - left)
  falling = (right - hz) / (right - center)
  return np.maximum(0.0, np.minimum(rising, falling))
