"""Loudness and noise of a batch, mixed inside the jitted step.

The host only draws them (`perturb.Perturbation`); a batch carries the draws:

  gains_B          float32, factor of the amplitude
  snr_db_B         float32, ratio of the noise mixed in; infinite for none
  noise_kinds_B    int32, row of the bank
  noise_places_B   float32 in [0, 1), where in the bank the noise starts

the last three only if the perturbation has noise.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from s8bqat_jax.data import corpus as corpus_lib
from s8bqat_jax.data import noise, perturb

_FRAME = corpus_lib.SAMPLE_RATE // 50


def no_draws(size: int, *, noisy: bool) -> dict[str, np.ndarray]:
  """Returns the draws of `size` rows to which nothing happens.

  Args:
    size: Rows.
    noisy: Whether other rows may get noise.
  """
  draws = {'gains_B': np.ones(size, np.float32)}
  if noisy:
    draws['snr_db_B'] = np.full(size, np.inf, np.float32)
    draws['noise_kinds_B'] = np.zeros(size, np.int32)
    draws['noise_places_B'] = np.zeros(size, np.float32)
  return draws


def set_draw(
  draws: dict[str, np.ndarray], row: int, draw: perturb.Draw
) -> None:
  """Writes one row.

  Args:
    draws: Holds the arrays of `no_draws`.
    row: Which.
    draw: What is to happen.
  """
  draws['gains_B'][row] = draw.gain
  if 'snr_db_B' in draws:
    draws['snr_db_B'][row] = draw.snr_db
    draws['noise_kinds_B'][row] = draw.noise_kind
    draws['noise_places_B'][row] = draw.noise_place


@functools.cache
def _bank(samples: int) -> np.ndarray:
  """float32 [kinds, at least `samples`], each kind repeated if too short."""
  bank_KxS = np.stack([noise.bank(kind) for kind in noise.KINDS])
  return np.tile(bank_KxS, (1, -(-samples // bank_KxS.shape[1])))


def _speech_power(audio_BxS: jax.Array) -> jax.Array:
  """Mean square over the frames where somebody speaks, float32 [B].

  As `noise.speech_power`; zeros that pad a row are frames without speech.
  """
  batch, size = audio_BxS.shape
  count = max(1, size // _FRAME)
  framed = audio_BxS[:, : count * _FRAME].reshape(batch, count, -1)
  power_BxN = jnp.mean(jnp.square(framed), axis=-1)
  loud_BxN = power_BxN >= 1e-3 * power_BxN.max(axis=1, keepdims=True)
  loud_BxN &= power_BxN > 0
  total_B = jnp.where(loud_BxN, power_BxN, 0.0).sum(axis=1)
  return total_B / jnp.maximum(loud_BxN.sum(axis=1), 1)


def perturbed(batch: Mapping[str, jax.Array]) -> jax.Array:
  """Returns a batch's audio as training hears it.

  Noise reaches its ratio over the frames of speech, and what is then too loud
  is scaled down; where a perturbation has no noise, a gain clips it, as a
  recorder would. Without draws in the batch nothing is changed.

  Args:
    batch: Of a loader.

  Returns:
    audio_BxS: the int16 samples themselves, or float32 in about [-1, 1], zero
    beyond each row's length.
  """
  pcm_BxS = batch['audio_BxS']
  if 'gains_B' not in batch:
    return pcm_BxS
  scale_B = batch['gains_B'] / 32768
  audio_BxS = pcm_BxS.astype(jnp.float32) * scale_B[:, None]
  if 'snr_db_B' not in batch:
    return jnp.clip(audio_BxS, -1.0, 1.0)
  size = audio_BxS.shape[1]
  bank_KxS = jnp.asarray(_bank(size))
  room = bank_KxS.shape[1] - size

  def take(kind, place):
    start = jnp.floor(place * (room + 1)).astype(jnp.int32)
    return jax.lax.dynamic_slice(bank_KxS, (kind, start), (1, size))[0]

  noise_BxS = jax.vmap(take)(batch['noise_kinds_B'], batch['noise_places_B'])
  # 10^(-inf) is 0: rows without noise get none.
  ratio_B = 10 ** (-batch['snr_db_B'] / 10)
  gain_B = jnp.sqrt(_speech_power(audio_BxS) * ratio_B)
  mixed_BxS = audio_BxS + gain_B[:, None] * noise_BxS
  inside_BxS = jnp.arange(size) < batch['audio_lengths_B'][:, None]
  mixed_BxS = jnp.where(inside_BxS, mixed_BxS, 0.0)
  peak_B = jnp.abs(mixed_BxS).max(axis=1, initial=1.0)
  return mixed_BxS / peak_B[:, None]
