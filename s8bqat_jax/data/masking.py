"""SpecAugment on the device, inside the jitted step."""

import dataclasses

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class SpecAugment:
  """How much is masked.

  Attributes:
    freq_masks: Bands per utterance.
    freq_width: Channels of a band, at most.
    time_masks: Stretches per utterance.
    time_width: Frames of a stretch, at most.
    time_share: Share of the utterance that one stretch hides, at most.
    freq_warp: How much the frequency axis is stretched or squeezed, at most,
      as a shorter or longer vocal tract does; 0 never.
  """

  freq_masks: int = 2
  freq_width: int = 15
  time_masks: int = 2
  time_width: int = 40
  time_share: float = 0.15
  freq_warp: float = 0.0

  def __post_init__(self):
    for name in ('freq_masks', 'freq_width', 'time_masks', 'time_width'):
      if type(value := getattr(self, name)) is not int or value < 0:
        raise ValueError(f'{name}={value}: expected a whole number, 0 or more')
    if not 0 <= self.time_share <= 1:
      raise ValueError(f'time_share={self.time_share}: expected 0 to 1')
    if not 0 <= self.freq_warp < 1:
      raise ValueError(
        f'freq_warp={self.freq_warp}: expected 0 or more and below 1'
      )


def _bands(
  key: jax.Array, num: int, widest_B: jax.Array, sizes_B: jax.Array, size: int
) -> jax.Array:
  """bool [B, size]: `num` bands of 0 .. widest_B entries within sizes_B."""
  width_key, start_key = jax.random.split(key)
  shape = (len(sizes_B), num)
  width_BxM = jnp.floor(
    jax.random.uniform(width_key, shape) * (widest_B[:, None] + 1)
  )
  room_BxM = sizes_B[:, None] - width_BxM
  start_BxM = jnp.floor(jax.random.uniform(start_key, shape) * (room_BxM + 1))
  at_S = jnp.arange(size)
  inside_BxMxS = (at_S >= start_BxM[..., None]) & (
    at_S < (start_BxM + width_BxM)[..., None]
  )
  return inside_BxMxS.any(axis=1)


def _warp(key: jax.Array, feats_BxTxF: jax.Array, most: float) -> jax.Array:
  """Stretches each utterance's frequency axis by 1 - most .. 1 + most.

  Linear interpolation along the channels, as one product with a matrix of at
  most two entries a column. What lies beyond the last channel repeats it.
  """
  batch, _, channels = feats_BxTxF.shape
  stretch_B = jax.random.uniform(key, (batch,), minval=-most, maxval=most) + 1
  at_F = jnp.arange(channels)
  from_BxF = jnp.minimum(at_F * stretch_B[:, None], channels - 1)
  share_BxFxG = jnp.maximum(
    0.0, 1 - jnp.abs(at_F[:, None] - from_BxF[:, None, :])
  )
  return jnp.einsum(
    'btf,bfg->btg', feats_BxTxF, share_BxFxG.astype(feats_BxTxF.dtype)
  )


def spec_augment(
  key: jax.Array,
  feats_BxTxF: jax.Array,
  lengths_B: jax.Array,
  config: SpecAugment = SpecAugment(),  # noqa: B008 (frozen)
) -> jax.Array:
  """Hides bands of frequency and stretches of time behind the mean.

  Published (K): the masks, uniform in width and position. Ours (R): the limit
  `time_share` keeps short utterances recognizable, and the fill is each
  utterance's mean over its frames, which is 0 for normalized features. The
  warp is that of vocal tract length perturbation on the axis of the channels
  instead of hertz (R); it comes before the masks.

  Args:
    key: A JAX random key; another key for another step.
    feats_BxTxF: Features, zero past `lengths_B`, where they stay so.
    lengths_B: Frames of each utterance.
    config: How much to hide.

  Returns:
    [B, T, F] of the same dtype.

  References:
    Park et al., SpecAugment, Interspeech 2019.
    N. Jaitly, G. Hinton, Vocal Tract Length Perturbation (VTLP) improves
    speech recognition, ICML workshop on deep learning for audio, 2013.
  """
  batch, frames, channels = feats_BxTxF.shape
  if config.freq_warp:
    key, warp_key = jax.random.split(key)
    feats_BxTxF = _warp(warp_key, feats_BxTxF, config.freq_warp)
  time_key, freq_key = jax.random.split(key)
  widest_B = jnp.minimum(
    config.time_width, jnp.floor(lengths_B * config.time_share)
  )
  time_BxT = _bands(time_key, config.time_masks, widest_B, lengths_B, frames)
  all_B = jnp.full((batch,), channels)
  widest = min(config.freq_width, channels)
  freq_BxF = _bands(
    freq_key,
    config.freq_masks,
    jnp.full((batch,), widest),
    all_B,
    channels,
  )
  valid_BxT = jnp.arange(frames) < lengths_B[:, None]
  count_B = jnp.maximum(lengths_B, 1) * channels
  kept_BxTxF = jnp.where(valid_BxT[..., None], feats_BxTxF, 0)
  mean_B = kept_BxTxF.astype(jnp.float32).sum((1, 2)) / count_B
  hidden_BxTxF = (time_BxT[..., None] | freq_BxF[:, None, :]) & (
    valid_BxT[..., None]
  )
  fill_Bx1x1 = mean_B[:, None, None].astype(feats_BxTxF.dtype)
  return jnp.where(hidden_BxTxF, fill_Bx1x1, feats_BxTxF)
