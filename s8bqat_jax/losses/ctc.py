"""The CTC loss of optax, with lengths in place of padding masks."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from s8bqat_jax.losses.rnnt import check_blank

_LOWEST = -1e20  # stands for a logit of -inf


def ctc_loss(
  logits_BxTxV: jax.Array,
  labels_BxU: jax.Array,
  enc_lengths_B: jax.Array,
  label_lengths_B: jax.Array,
  *,
  blank: int = 0,
) -> jax.Array:
  """Negative log-likelihood of each transcript under CTC.

  CTC needs a frame for every label and one between equal neighbors. A
  transcript longer than that allows has probability zero; optax gives it a
  finite loss of about 1e5, so drop such utterances before training. A label
  outside of the vocabulary is impossible: +inf, with a gradient of zero.

  Args:
    logits_BxTxV: encoder output projected to the vocabulary.
    labels_BxU: labels, anything within the vocabulary beyond each length.
    enc_lengths_B: frames of each row, 0..T.
    label_lengths_B: labels of each row, 0..U.
    blank: index of blank in V.

  Returns:
    nll_B, float32. A row of no frames and no labels (batch padding) is 0.

  References:
    A. Graves et al., Connectionist Temporal Classification, ICML 2006.
  """
  B, T, V = logits_BxTxV.shape
  check_blank(blank, V)
  for name, shape, expected in [
    ('labels', labels_BxU.shape[:1], (B,)),
    ('enc_lengths', enc_lengths_B.shape, (B,)),
    ('label_lengths', label_lengths_B.shape, (B,)),
  ]:
    if shape != expected:
      raise ValueError(
        f'{name} {shape} do not match logits {logits_BxTxV.shape}: '
        f'expected {expected}'
      )
  if not T:  # optax looks at the first frame
    logits_BxTxV, T = jnp.zeros([B, 1, V], logits_BxTxV.dtype), 1
  U = labels_BxU.shape[1]
  padding = lambda size, lengths_B: (
    jnp.arange(size) >= lengths_B[:, None]
  ).astype(jnp.float32)
  nll_B = optax.ctc_loss(
    # It multiplies log-probabilities by zero, which of -inf would be NaN.
    jnp.maximum(logits_BxTxV.astype(jnp.float32), _LOWEST),
    padding(T, enc_lengths_B),
    labels_BxU,
    padding(U, label_lengths_B),
    blank_id=blank,
  )
  # optax takes them for certain.
  unknown_BxU = (labels_BxU < 0) | (labels_BxU >= V)
  counts_BxU = jnp.arange(U) < label_lengths_B[:, None]
  impossible_B = jnp.any(unknown_BxU & counts_BxU, axis=1)
  return jnp.where(impossible_B, jnp.inf, nll_B)
