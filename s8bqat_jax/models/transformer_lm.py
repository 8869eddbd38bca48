"""A causal Transformer language model.

Pre-norm blocks, sinusoidal positions (no bytes to ship), one kernel per
projection so that each may get bits of its own. Token 0, the blank of every
tokenizer, doubles as the end of a sentence: it starts a text and ends it.

Shapes: B batch, T tokens, D width, H heads, K = D / H, V vocabulary.

References:
  Vaswani et al., Attention Is All You Need, 2017.
  Press and Wolf, Using the Output Embedding to Improve Language Models, 2017.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp


class TransformerLm(nn.Module):
  """The language model; sizes come from the config.

  Attributes:
    vocab_size: V, token 0 included.
    width: D.
    layers: number of blocks.
    heads: H.
    ffn_width: hidden units of the feed-forward part.
    tied: the output layer shares the embedding (one tensor to ship).
    dropout: rate, on the embedding and each residual branch.
    dtype: of the products.
  """

  vocab_size: int
  width: int = 192
  layers: int = 4
  heads: int = 4
  ffn_width: int = 768
  tied: bool = True
  dropout: float = 0.0
  dtype: Any = jnp.float32

  def setup(self):
    if self.width % (2 * self.heads):
      raise ValueError(
        f'width={self.width} must be a multiple of 2 * heads={2 * self.heads}'
      )
    self.embed = nn.Embed(
      self.vocab_size,
      self.width,
      dtype=self.dtype,
      # With a tied output layer, logits of unit scale want small rows.
      embedding_init=nn.initializers.normal(self.width**-0.5),
      name='embed',
    )
    self.blocks = [
      _Block(
        self.heads, self.ffn_width, self.dropout, self.dtype, name=f'block_{i}'
      )
      for i in range(self.layers)
    ]
    self.norm_out = nn.LayerNorm(dtype=self.dtype, name='norm_out')
    if not self.tied:
      self.out = nn.Dense(
        self.vocab_size, use_bias=False, dtype=self.dtype, name='out'
      )
    self.drop = nn.Dropout(self.dropout)

  def __call__(
    self, tokens_BxT: jax.Array, *, deterministic: bool = True
  ) -> jax.Array:
    """Predicts each next token.

    Args:
      tokens_BxT: int32 tokens; position t sees tokens 0..t.
      deterministic: False draws dropout (rng `dropout`).

    Returns:
      logits_BxTxV, float32: of the token after each position.
    """
    x_BxTxD = self.embed(tokens_BxT) * self.width**0.5
    x_BxTxD += _positions(tokens_BxT.shape[1], self.width).astype(self.dtype)
    x_BxTxD = self.drop(x_BxTxD, deterministic=deterministic)
    for block in self.blocks:
      x_BxTxD = block(x_BxTxD, deterministic)
    x_BxTxD = self.norm_out(x_BxTxD)
    out = self.embed.attend if self.tied else self.out
    return out(x_BxTxD).astype(jnp.float32)


class _Block(nn.Module):
  """Self-attention and a feed-forward layer, each behind a norm."""

  heads: int
  ffn_width: int
  dropout: float
  dtype: Any

  @nn.compact
  def __call__(self, x_BxTxD, deterministic):
    batch, length, width = x_BxTxD.shape
    dense = lambda n, name: nn.Dense(n, dtype=self.dtype, name=name)
    drop = nn.Dropout(self.dropout)

    def split_heads(name, y_BxTxD):
      y = dense(width, name)(y_BxTxD)
      return y.reshape(batch, length, self.heads, width // self.heads)

    y_BxTxD = nn.LayerNorm(dtype=self.dtype, name='norm_attention')(x_BxTxD)
    q_BxTxHxK, k_BxTxHxK, v_BxTxHxK = (
      split_heads(name, y_BxTxD) for name in ('query', 'key', 'value')
    )
    scale = (width // self.heads) ** -0.5
    logits_BxHxTxT = jnp.einsum('bqhk,bshk->bhqs', q_BxTxHxK * scale, k_BxTxHxK)
    past_TxT = jnp.tril(jnp.ones((length, length), bool))
    logits_BxHxTxT = jnp.where(past_TxT, logits_BxHxTxT, -1e9)
    weights_BxHxTxT = jax.nn.softmax(logits_BxHxTxT)
    y_BxTxHxK = jnp.einsum('bhqs,bshk->bqhk', weights_BxHxTxT, v_BxTxHxK)
    y_BxTxD = dense(width, 'attention_out')(
      y_BxTxHxK.reshape(batch, length, width)
    )
    x_BxTxD = x_BxTxD + drop(y_BxTxD, deterministic=deterministic)

    y_BxTxD = nn.LayerNorm(dtype=self.dtype, name='norm_ffn')(x_BxTxD)
    y_BxTxF = jax.nn.gelu(dense(self.ffn_width, 'ffn_in')(y_BxTxD))
    y_BxTxD = dense(width, 'ffn_out')(y_BxTxF)
    return x_BxTxD + drop(y_BxTxD, deterministic=deterministic)


def token_losses(logits_BxTxV: jax.Array, targets_BxT: jax.Array) -> jax.Array:
  """Negative log-likelihood of each target, in nats.

  Args:
    logits_BxTxV: from the model.
    targets_BxT: the token after each position.

  Returns:
    nll_BxT, float32.
  """
  if logits_BxTxV.shape[:-1] != targets_BxT.shape:
    raise ValueError(
      f'logits of shape {logits_BxTxV.shape} for targets of shape '
      f'{targets_BxT.shape}; expected {logits_BxTxV.shape[:-1]}'
    )
  logits_BxTxV = logits_BxTxV.astype(jnp.float32)
  chosen_BxT = jnp.take_along_axis(logits_BxTxV, targets_BxT[..., None], -1)
  return jax.nn.logsumexp(logits_BxTxV, -1) - chosen_BxT[..., 0]


def check_vocabulary(model: TransformerLm, params: Any) -> None:
  """Raises unless `params` were trained with the model's vocabulary.

  Args:
    model: the language model, `vocab_size` from the tokenizer at hand.
    params: its params, as `model.init` returns them.
  """
  rows = params['params']['embed']['embedding'].shape[0]
  if rows != model.vocab_size:
    raise ValueError(
      f'the checkpoint has an embedding of {rows} tokens, the vocabulary '
      f'{model.vocab_size}; load the tokenizer that the checkpoint was '
      'trained with'
    )


def _positions(length: int, width: int) -> jax.Array:
  """Sines and cosines of falling frequencies, [T, D]."""
  rates = 10_000.0 ** (-jnp.arange(0, width, 2) / width)
  angles = jnp.arange(length)[:, None] * rates
  return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], -1)
