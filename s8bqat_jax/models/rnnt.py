"""A streaming RNN transducer: LSTM encoder, prediction network, joint.

The encoder stacks frames, runs LSTM layers, and halves the frame rate after
the layers named in `reduce_after`. Nothing looks ahead further than one
stacked frame, so `encode_chunk` streams what `encode` computes at once.

Shapes: B batch, T feature frames, F features, S encoder frames, D encoder
output = joint width, U labels, U1 = U + 1, E = D, V vocabulary with blank 0.

References:
  Graves, Sequence Transduction with Recurrent Neural Networks, 2012.
  He et al., Streaming End-to-end Speech Recognition for Mobile Devices, 2019.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from s8bqat_jax.models import lstm

BLANK = 0


def stack_frames(x_BxTxD: jax.Array, factor: int) -> jax.Array:
  """Concatenates every `factor` frames; a last incomplete group is dropped."""
  batch, frames, width = x_BxTxD.shape
  groups = frames // factor
  return x_BxTxD[:, : groups * factor].reshape(batch, groups, factor * width)


def from_ctc(params: dict) -> dict:
  """Returns params of a transducer that begins as the CTC model it was.

  The joint network gets what the CTC head has learned, and hears nothing of the
  prediction network yet. From a fresh joint network a transducer learns first
  which words follow which, and may stay there.

  Args:
    params: of an `RNNT` with `ctc`, whose encoder and CTC head are trained.
  """
  made = {**params, 'joint_out': params['ctc_out']}
  made['predictor_out'] = jax.tree.map(jnp.zeros_like, params['predictor_out'])
  return made


class RNNT(nn.Module):
  """The transducer; sizes come from the config.

  Attributes:
    vocab_size: V, blank included.
    encoder_width: hidden units of every encoder layer.
    encoder_layers: number of encoder layers.
    predictor_width: hidden units of the prediction network.
    predictor_layers: its layers.
    embed_width: width of its label embedding.
    joint_width: D.
    stack: feature frames concatenated into one encoder input.
    reduce_after: layers (counted from 0), each once, after which frames are
      paired.
    dropout: rate, after every encoder layer and the embedding.
    ctc: also owns a CTC head on the encoder (an auxiliary training loss).
    dtype: of the products.
    fast_backward: as in `lstm.LSTM`.
  """

  vocab_size: int
  encoder_width: int = 128
  encoder_layers: int = 2
  predictor_width: int = 128
  predictor_layers: int = 1
  embed_width: int = 32
  joint_width: int = 128
  stack: int = 4
  reduce_after: tuple[int, ...] = ()
  dropout: float = 0.0
  ctc: bool = False
  dtype: Any = jnp.float32
  fast_backward: bool = True

  def setup(self):
    there = set(self.reduce_after) & set(range(self.encoder_layers))
    if sorted(there) != sorted(self.reduce_after):
      # `subsampling` would count a pairing that never happens.
      raise ValueError(
        f'reduce_after={tuple(self.reduce_after)}: expected layers of '
        f'0..{self.encoder_layers - 1} (there are encoder_layers='
        f'{self.encoder_layers}), each at most once'
      )

    def layer(width, name):
      return lstm.LSTM(width, self.dtype, self.fast_backward, name=name)

    def dense(width, name):
      return nn.Dense(width, dtype=self.dtype, name=name)

    self.encoder = [
      layer(self.encoder_width, f'encoder_{i}')
      for i in range(self.encoder_layers)
    ]
    self.encoder_out = dense(self.joint_width, 'encoder_out')
    self.embed = nn.Embed(
      self.vocab_size, self.embed_width, dtype=self.dtype, name='embed'
    )
    self.predictor = [
      layer(self.predictor_width, f'predictor_{i}')
      for i in range(self.predictor_layers)
    ]
    self.predictor_out = dense(self.joint_width, 'predictor_out')
    self.joint_out = dense(self.vocab_size, 'joint_out')
    if self.ctc:
      self.ctc_out = dense(self.vocab_size, 'ctc_out')
    self.drop = nn.Dropout(self.dropout)

  @property
  def subsampling(self) -> int:
    """Feature frames per encoder frame."""
    return self.stack * 2 ** len(self.reduce_after)

  def encode(
    self,
    feats_BxTxF: jax.Array,
    lengths_B: jax.Array,
    *,
    deterministic: bool = True,
  ) -> tuple[jax.Array, jax.Array]:
    """Returns enc_BxSxD and its lengths_B; frames past a length are garbage."""
    carry = self.initial_carry(feats_BxTxF.shape[0])
    _, enc_BxSxD = self._encode(carry, feats_BxTxF, deterministic)
    return enc_BxSxD, lengths_B // self.subsampling

  def encode_chunk(
    self,
    carry: tuple[lstm.Carry, ...],
    feats_BxKxF: jax.Array,
    *,
    deterministic: bool = True,
  ) -> tuple[tuple[lstm.Carry, ...], jax.Array]:
    """Encodes the next K frames, K a multiple of `subsampling`.

    Args:
      carry: from `initial_carry` or the chunk before.
      feats_BxKxF: features.
      deterministic: False applies dropout.

    Returns:
      The new carry and enc_BxSxD, S = K / subsampling.
    """
    frames = feats_BxKxF.shape[1]
    if frames % self.subsampling:
      raise ValueError(
        f'a chunk of {frames} frames: expected a multiple of '
        f'{self.subsampling} (subsampling); keep the rest for the next chunk, '
        'it would be lost'
      )
    return self._encode(carry, feats_BxKxF, deterministic)

  def _encode(self, carry, feats_BxTxF, deterministic):
    x = stack_frames(feats_BxTxF, self.stack)
    carries = []
    for i, layer in enumerate(self.encoder):
      new, x = layer(x, carry[i])
      carries.append(new)
      x = self.drop(x, deterministic=deterministic)
      if i in self.reduce_after:
        x = stack_frames(x, 2)
    return tuple(carries), self.encoder_out(x)

  def initial_carry(self, batch: int) -> tuple[lstm.Carry, ...]:
    """Returns the encoder's carry before the first frame."""
    return tuple(layer.initial_carry(batch) for layer in self.encoder)

  def predict(
    self, labels_BxU: jax.Array, *, deterministic: bool = True
  ) -> jax.Array:
    """Returns pred_BxU1xE: position u has seen a start symbol and u labels."""
    start = jnp.full((labels_BxU.shape[0], 1), BLANK, labels_BxU.dtype)
    carry = self.initial_prediction(labels_BxU.shape[0])
    labels_BxU1 = jnp.concatenate([start, labels_BxU], axis=1)
    return self._predict(carry, labels_BxU1, deterministic)[1]

  def predict_step(
    self, carry: tuple[lstm.Carry, ...], label_B: jax.Array
  ) -> tuple[tuple[lstm.Carry, ...], jax.Array]:
    """Advances the prediction network by one label: (carry, pred_BxE)."""
    carry, pred_Bx1xE = self._predict(carry, label_B[:, None], True)
    return carry, pred_Bx1xE[:, 0]

  def initial_prediction(self, batch: int) -> tuple[lstm.Carry, ...]:
    """Returns the prediction network's carry; its first label is BLANK."""
    return tuple(layer.initial_carry(batch) for layer in self.predictor)

  def _predict(self, carry, labels_BxU1, deterministic):
    x = self.drop(self.embed(labels_BxU1), deterministic=deterministic)
    carries = []
    for layer, before in zip(self.predictor, carry):
      new, x = layer(x, before)
      carries.append(new)
    return tuple(carries), self.predictor_out(x)

  def joint(self, enc: jax.Array, pred: jax.Array) -> jax.Array:
    """Returns logits [..., V] from [..., D] and [..., D], broadcasting."""
    return self.joint_out(jnp.tanh(enc + pred))

  def ctc_logits(self, enc_BxSxD: jax.Array) -> jax.Array:
    """Returns the CTC head's logits_BxSxV (`ctc=True` models only)."""
    return self.ctc_out(jnp.tanh(enc_BxSxD))

  def __call__(
    self, feats_BxTxF: jax.Array, lengths_B: jax.Array, labels_BxU: jax.Array
  ) -> Any:
    """Touches every parameter: what `init` runs."""
    enc_BxSxD, _ = self.encode(feats_BxTxF, lengths_B)
    pred_BxU1xE = self.predict(labels_BxU)
    logits = self.joint(enc_BxSxD[:, :1], pred_BxU1xE[:, :1])
    return logits, (self.ctc_logits(enc_BxSxD) if self.ctc else None)
