"""Greedy decoding of transducers, a batch at once or frame by frame, and CTC.

Decoding knows no model class. A `Transducer` is three functions closed over
parameters, so float weights, decoded codes and the integer twin decode alike.

Dimension key: B batch, T encoder frames, D encoder, E prediction network, V
vocabulary, N most labels an output can hold, W frames looked at together.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

# Most frames are blank, and a blank leaves the prediction network unchanged:
# this many frames are classified at once and the blanks before the first
# label are skipped together.
_FRAMES_AT_ONCE = 4


class Transducer(NamedTuple):
  """What decoding needs of a model.

  Attributes:
    initial_state: (batch_size) -> state of the prediction network before any
      label, a pytree with leading axis B. Its first label is 0, blank.
    predict_step: (state, label_B) -> (state, pred), pred a pytree with leading
      axis B (usually one array pred_BxE).
    joint: (enc_BxD, pred) -> logits_BxV, where 0 is blank.
  """

  initial_state: Callable[[int], Any]
  predict_step: Callable[[Any, jax.Array], tuple[Any, Any]]
  joint: Callable[[jax.Array, Any], jax.Array]


class Decoded(NamedTuple):
  """One transcript per row; labels are 0 beyond each length."""

  labels_BxN: jax.Array
  lengths_B: jax.Array


class GreedyCarry(NamedTuple):
  """What a stream remembers: the prediction network after the last label."""

  state: Any
  pred: Any


def initial_carry(transducer: Transducer, batch_size: int) -> GreedyCarry:
  """The carry before any frame."""
  state = transducer.initial_state(batch_size)
  blank_B = jnp.zeros([batch_size], jnp.int32)
  return GreedyCarry(*transducer.predict_step(state, blank_B))


def greedy(
  transducer: Transducer,
  enc_BxTxD: jax.Array,
  lengths_B: jax.Array,
  *,
  max_symbols: int = 4,
) -> Decoded:
  """Takes the likeliest label at each step. Jit it with the model.

  Args:
    transducer: the model.
    enc_BxTxD: encoder output.
    lengths_B: frames of each row, 0..T.
    max_symbols: labels one frame may emit before the next frame begins.

  Returns:
    The transcripts, N = T * max_symbols.
  """
  carry = initial_carry(transducer, enc_BxTxD.shape[0])
  return greedy_chunk(
    transducer, carry, enc_BxTxD, lengths_B, max_symbols=max_symbols
  )[1]


def greedy_chunk(
  transducer: Transducer,
  carry: GreedyCarry,
  enc_BxTxD: jax.Array,
  lengths_B: jax.Array,
  *,
  max_symbols: int = 4,
) -> tuple[GreedyCarry, Decoded]:
  """Decodes the next frames of a stream; T may be 1.

  Every row walks its own path: each iteration looks at the next few frames of
  each row, goes to the first that is not blank and emits one label there. A
  batch thus takes about max(U + T / 4) iterations, not T * max_symbols.

  Args:
    transducer: the model.
    carry: from `initial_carry` or the previous chunk.
    enc_BxTxD: the next encoder frames.
    lengths_B: how many of them are frames of each row, 0..T.
    max_symbols: labels one frame may emit before the next frame begins.

  Returns:
    The next carry and the labels these frames emit, N = T * max_symbols.
  """
  if max_symbols < 1:
    raise ValueError(f'max_symbols must be at least 1, got {max_symbols}')
  B, T, _ = enc_BxTxD.shape
  if T == 0:
    return carry, Decoded(jnp.zeros([B, 0], jnp.int32), jnp.zeros(B, jnp.int32))
  W, N = min(_FRAMES_AT_ONCE, T), T * max_symbols
  rows_B = jnp.arange(B)

  def unfinished(loop):
    return jnp.any(loop[1] < lengths_B)

  def emit_one(loop):
    carry, frame_B, symbols_B, labels_BxN, count_B = loop
    frame_BxW = frame_B[:, None] + jnp.arange(W)
    enc_BxWxD = jnp.take_along_axis(
      enc_BxTxD, jnp.minimum(frame_BxW, T - 1)[..., None], axis=1
    )
    repeated = jax.tree.map(lambda x: jnp.repeat(x, W, axis=0), carry.pred)
    logits = transducer.joint(enc_BxWxD.reshape(B * W, -1), repeated)
    best_BxW = jnp.argmax(logits, axis=-1).reshape(B, W).astype(jnp.int32)
    is_label_BxW = (best_BxW != 0) & (frame_BxW < lengths_B[:, None])
    emits_B = is_label_BxW.any(axis=1)
    first_B = jnp.argmax(is_label_BxW, axis=1).astype(jnp.int32)
    skip_B = jnp.where(emits_B, first_B, W)
    label_B = best_BxW[rows_B, jnp.minimum(skip_B, W - 1)]
    # A label beyond the buffer's end is not written: N rows off it.
    place_B = jnp.where(emits_B, count_B, N)
    labels_BxN = labels_BxN.at[rows_B, place_B].set(label_B, mode='drop')

    symbols_B = jnp.where(skip_B == 0, symbols_B + 1, 1)
    full_B = symbols_B == max_symbols
    frame_B = frame_B + skip_B + (emits_B & full_B)
    symbols_B = jnp.where(emits_B & ~full_B, symbols_B, 0)
    after = GreedyCarry(*transducer.predict_step(carry.state, label_B))
    carry = jax.tree.map(
      lambda new, old: select_rows(emits_B, new, old), after, carry
    )
    return carry, frame_B, symbols_B, labels_BxN, count_B + emits_B

  zeros_B = jnp.zeros([B], jnp.int32)
  loop = carry, zeros_B, zeros_B, jnp.zeros([B, N], jnp.int32), zeros_B
  carry, _, _, labels_BxN, count_B = jax.lax.while_loop(
    unfinished, emit_one, loop
  )
  return carry, Decoded(labels_BxN, count_B)


def ctc_greedy(logits_BxTxV: jax.Array, lengths_B: jax.Array) -> Decoded:
  """Takes each frame's likeliest label, by the rules of CTC.

  Of a label that is repeated in frames side by side only the first counts.

  Args:
    logits_BxTxV: of every frame, where 0 is blank.
    lengths_B: frames of each row, 0..T.

  Returns:
    The transcripts, N = T.
  """
  B, T, _ = logits_BxTxV.shape
  best_BxT = jnp.argmax(logits_BxTxV, axis=-1).astype(jnp.int32)
  before_BxT = jnp.pad(best_BxT, ((0, 0), (1, 0)))[:, :T]
  is_label_BxT = (best_BxT != 0) & (best_BxT != before_BxT)
  is_label_BxT &= jnp.arange(T) < lengths_B[:, None]
  # Frames without a label write nowhere: T is beyond the end.
  place_BxT = jnp.where(is_label_BxT, jnp.cumsum(is_label_BxT, axis=1) - 1, T)
  labels_BxT = jnp.zeros([B, T], jnp.int32)
  rows_Bx1 = jnp.arange(B)[:, None]
  labels_BxT = labels_BxT.at[rows_Bx1, place_BxT].set(best_BxT, mode='drop')
  return Decoded(labels_BxT, is_label_BxT.sum(axis=1, dtype=jnp.int32))


def select_rows(mask_B, x, y):
  """x where mask_B, else y, along the leading axis."""
  return jnp.where(mask_B.reshape([-1] + [1] * (x.ndim - 1)), x, y)
