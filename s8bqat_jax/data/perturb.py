"""What a waveform goes through in training: speed, loudness, noise.

The draws are made on the host, a function of (seed, epoch, index). Speed is
applied there, from copies made once (`speeds.py`); loudness and noise are two
multiplications and an addition, fused into the step (`waveform.py`).
"""

import dataclasses
import fractions
import functools
import math
from typing import NamedTuple

import numpy as np

from s8bqat_jax.data import noise

_HALF_WIDTH = 12  # taps of the interpolating filter on either side

# Small enough that BLAS does not wake its threads, which would spin on the
# cores that the training step needs.
_BLOCKS = 256


def _ratio(speed: float) -> fractions.Fraction:
  """Samples out per sample in."""
  return 1 / fractions.Fraction(speed).limit_denominator(20)


@functools.cache
def _speed_filter(up: int, down: int) -> np.ndarray:
  """[down + 2 * _HALF_WIDTH, up]: column j makes output sample j of a block."""
  cutoff = min(1.0, up / down) * 0.95
  taken_W = np.arange(down + 2 * _HALF_WIDTH) - _HALF_WIDTH
  offset_WxU = taken_W[:, None] - np.arange(up)[None, :] * down / up
  window_WxU = np.cos(np.pi / 2 * np.clip(offset_WxU / _HALF_WIDTH, -1, 1)) ** 2
  taps_WxU = cutoff * np.sinc(cutoff * offset_WxU) * window_WxU
  return (taps_WxU / taps_WxU.sum(axis=0)).astype(np.float32)


def change_speed(audio_S: np.ndarray, speed: float) -> np.ndarray:
  """Plays faster or slower, pitch and formants included.

  One matrix product makes all samples: for speed 0.9, every block of 9 samples
  and its neighbors is multiplied into 10.

  Args:
    audio_S: float32 samples.
    speed: Near 1; taken as the nearest fraction with a denominator of at most
      20.

  Returns:
    float32 [ceil(S / speed)].
  """
  ratio = _ratio(speed)
  up, down = ratio.numerator, ratio.denominator
  if up == down or not len(audio_S):
    return audio_S
  size = -(-len(audio_S) * up // down)
  blocks = -(-size // up)
  taps_WxU = _speed_filter(up, down)
  padded_S = np.zeros(blocks * down + 2 * _HALF_WIDTH, np.float32)
  padded_S[_HALF_WIDTH : _HALF_WIDTH + len(audio_S)] = audio_S
  windows_NxW = np.lib.stride_tricks.sliding_window_view(
    padded_S, len(taps_WxU)
  )[::down]
  made_NxU = np.empty((blocks, up), np.float32)
  for first in range(0, blocks, _BLOCKS):
    # Copied: BLAS takes no overlapping rows.
    rows_BxW = np.ascontiguousarray(windows_NxW[first : first + _BLOCKS])
    np.matmul(rows_BxW, taps_WxU, out=made_NxU[first : first + _BLOCKS])
  return made_NxU.reshape(-1)[:size]


class Draw(NamedTuple):
  """What happens to one utterance.

  Attributes:
    speed: One of the speeds.
    gain: Factor of its amplitude.
    snr_db: Ratio at which noise is mixed in; infinite for none.
    noise_kind: Row of the bank of noise.
    noise_place: Where in the bank it starts, 0 .. 1.
  """

  speed: float
  gain: float
  snr_db: float
  noise_kind: int
  noise_place: float


@dataclasses.dataclass(frozen=True)
class Perturbation:
  """What may happen to an utterance; give it to `make_loader`.

  Attributes:
    speeds: Drawn uniformly.
    gain_db: Loudness is changed by a number of this range, None for never.
    snr_db: Noise is mixed in at a ratio of this range, None for never.
    noise_probability: How often there is noise.
  """

  speeds: tuple[float, ...] = (0.9, 1.0, 1.1)
  gain_db: tuple[float, float] | None = (-6.0, 6.0)
  snr_db: tuple[float, float] | None = None
  noise_probability: float = 0.5

  def __post_init__(self):
    if not self.speeds or not all(0.5 <= s <= 2 for s in self.speeds):
      raise ValueError(f'speeds={self.speeds}: expected numbers in 0.5 .. 2')
    for name in ('gain_db', 'snr_db'):
      limits = getattr(self, name)
      if limits is not None and not limits[0] <= limits[1]:
        raise ValueError(f'{name}={limits}: expected (low, high)')

  @property
  def stretch(self) -> tuple[float, float]:
    """Shortest and longest that an utterance of length 1 can become."""
    ratios = [float(_ratio(s)) for s in self.speeds]
    return min(ratios), max(ratios)

  def draw(self, seed: int, epoch: int, index: int) -> Draw:
    """Draws for one utterance.

    Args:
      seed: Of the run.
      epoch: Another epoch draws anew.
      index: Of the utterance.
    """
    rng = np.random.default_rng([seed, epoch, index])
    speed = self.speeds[int(rng.integers(len(self.speeds)))]
    gain_db = 0.0 if self.gain_db is None else rng.uniform(*self.gain_db)
    snr_db, kind, place = math.inf, 0, 0.0
    if self.snr_db is not None and rng.random() < self.noise_probability:
      snr_db = rng.uniform(*self.snr_db)
      kind, place = int(rng.integers(len(noise.KINDS))), rng.random()
    return Draw(speed, 10 ** (gain_db / 20), snr_db, kind, place)
