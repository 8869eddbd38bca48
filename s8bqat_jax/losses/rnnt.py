"""The RNN transducer loss, without the [B, T, U, V] tensor.

The probability of a transcript is a sum over all monotonic paths through a
lattice of T frames by U + 1 label states: in state (t, u) the model either
emits blank and moves to the next frame, or emits label u and stays. Only two
of the V log-probabilities of a state enter that sum. So the joint network is
run for a few label states at a time, the two numbers are kept and the logits
are thrown away; the backward pass computes them again (`jax.checkpoint`), so
that neither direction ever holds more than one chunk of logits.

The sum itself runs over anti-diagonals t + u = n: all states of a diagonal
are independent, so T + U vector steps replace T * (U + 1) scalar ones. It is
plain autodiff throughout, hence Hessian-vector products work.

Dimension key: B batch, T frames, U labels, U1 = U + 1 label states, V
vocabulary with blank, D encoder, E prediction network, C states in a chunk,
N = T + U diagonals.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

Joint = Callable[[jax.Array, jax.Array], jax.Array]

# Log-probability of a state that no path reaches. Finite, so that no
# difference of two such values is NaN, and so far below any reachable state
# that its share of a sum is exactly zero.
_UNREACHABLE = -1e30
# Floor of one log-probability (a logit of -inf): T + U of them still lie
# above _UNREACHABLE. Below the floor the gradient is zero.
_FLOOR = -1e20
# Logits held at a time, in elements: 4 MB of float32 stays near the cache,
# which is also faster than larger chunks; a smaller chunk starves the GEMM.
_CHUNK_ELEMENTS = 2**20


def rnnt_loss(
  joint: Joint,
  enc_BxTxD: jax.Array,
  pred_BxU1xE: jax.Array,
  labels_BxU: jax.Array,
  enc_lengths_B: jax.Array,
  label_lengths_B: jax.Array,
  *,
  blank: int = 0,
) -> jax.Array:
  """Negative log-likelihood of each transcript; memory of a few label states.

  `joint` may close over parameters: they receive gradients. It is traced
  once, and run once for every C label states that the batch's longest
  transcript reaches, where C is chosen so that a chunk of logits is about
  4 MB: labels padded to a bucket's length cost next to nothing. Logits may
  be bfloat16; everything after them, and the encoder's gradient over the
  chunks, is accumulated in float32.

  Args:
    joint: (enc [..., D], pred [..., E]) -> logits [..., V], where the leading
      axes broadcast against each other.
    enc_BxTxD: encoder output.
    pred_BxU1xE: output of the prediction network; state u has seen u labels.
    labels_BxU: labels, anything beyond each length.
    enc_lengths_B: frames of each row, 0..T.
    label_lengths_B: labels of each row, 0..U.
    blank: index of blank in V.

  Returns:
    nll_B, float32. A row of no frames and no labels (batch padding) is 0;
    labels without frames are impossible: +inf, with a gradient of zero. So
    is a label that is none of V: above 1e19. A length outside its range makes
    a row NaN, with a gradient of zero.

  References:
    A. Graves, Sequence Transduction with Recurrent Neural Networks, 2012.
    Diagonal-by-diagonal evaluation: T. Bagby et al., Efficient Implementation
    of Recurrent Neural Network Transducer in TensorFlow, SLT 2018.
  """
  B, T = enc_BxTxD.shape[:2]
  U1 = pred_BxU1xE.shape[1]
  _check_shapes(
    'enc and pred', (B, T, U1), labels_BxU, enc_lengths_B, label_lengths_B
  )
  if pred_BxU1xE.shape[0] != B:
    raise ValueError(
      f'enc {enc_BxTxD.shape} and pred {pred_BxU1xE.shape} differ in batch size'
    )
  frame, label = (
    jax.ShapeDtypeStruct((B, x.shape[-1]), x.dtype)
    for x in (enc_BxTxD, pred_BxU1xE)
  )
  V = jax.eval_shape(joint, frame, label).shape[-1]
  check_blank(blank, V)
  chunks = _num_chunks(B * T, U1, V)
  C = -(-U1 // chunks)

  # The labels of state u, and any label for the last state: its arc leads
  # out of the lattice, where no path comes back from.
  targets_BxU1 = jnp.pad(labels_BxU, [(0, 0), (0, 1)])
  pad_u = [(0, 0), (0, chunks * C - U1)]
  pred_xs = jnp.pad(pred_BxU1xE, [*pad_u, (0, 0)])
  E = pred_BxU1xE.shape[-1]
  pred_xs = jnp.moveaxis(pred_xs.reshape(B, chunks, C, E), 1, 0)
  targets_xs = jnp.pad(targets_BxU1, pad_u).reshape(B, chunks, C)
  targets_xs = jnp.moveaxis(targets_xs, 1, 0)
  # Cast back inside the loop, so that its transpose adds up in float32.
  wide_enc_BxTxD = _at_least_float32(enc_BxTxD)

  # Two numbers a state are kept for the backward pass: it recomputes the
  # logits, but neither their maximum nor their sum.
  keep = jax.checkpoint_policies.save_only_these_names('peak', 'total')

  def arcs(pred_BxCxE, targets_BxC):
    enc = wide_enc_BxTxD.astype(enc_BxTxD.dtype)
    logits_BxTxCxV = joint(enc[:, :, None], pred_BxCxE[:, None])
    return _arc_log_probs(logits_BxTxCxV, targets_BxC, blank)

  def no_arcs(pred_BxCxE, targets_BxC):
    shapes = jax.eval_shape(arcs, pred_BxCxE, targets_BxC)
    return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)

  @functools.partial(jax.checkpoint, policy=keep)
  def chunk(xs):
    first, *of_states = xs
    # States after the longest transcript are on nobody's path.
    reached = first <= label_lengths_B.max(initial=0)
    return jax.lax.cond(reached, arcs, no_arcs, *of_states)

  # 2 x [chunks, B, T, C]
  arcs_xs = jax.lax.map(chunk, (jnp.arange(chunks) * C, pred_xs, targets_xs))
  blank_BxTxU1, label_BxTxU1 = (
    jnp.moveaxis(x, 0, 2).reshape(B, T, chunks * C)[:, :, :U1] for x in arcs_xs
  )
  return _lattice_nll(
    blank_BxTxU1, label_BxTxU1, enc_lengths_B, label_lengths_B
  )


def rnnt_loss_from_logits(
  logits_BxTxU1xV: jax.Array,
  labels_BxU: jax.Array,
  enc_lengths_B: jax.Array,
  label_lengths_B: jax.Array,
  *,
  blank: int = 0,
) -> jax.Array:
  """The same loss from logits already in memory, for small problems.

  Args:
    logits_BxTxU1xV: joint output; it need not be normalized over V.
    labels_BxU: labels, anything beyond each length.
    enc_lengths_B: frames of each row, 0..T.
    label_lengths_B: labels of each row, 0..U.
    blank: index of blank in V.

  Returns:
    nll_B, float32, as `rnnt_loss`.
  """
  _check_shapes(
    'logits',
    logits_BxTxU1xV.shape[:3],
    labels_BxU,
    enc_lengths_B,
    label_lengths_B,
  )
  check_blank(blank, logits_BxTxU1xV.shape[-1])
  targets_BxU1 = jnp.pad(labels_BxU, [(0, 0), (0, 1)])
  blank_BxTxU1, label_BxTxU1 = _arc_log_probs(
    logits_BxTxU1xV, targets_BxU1, blank
  )
  return _lattice_nll(
    blank_BxTxU1, label_BxTxU1, enc_lengths_B, label_lengths_B
  )


def _num_chunks(rows: int, U1: int, V: int) -> int:
  """Chunks of label states; never one chunk only, unless U1 is 1."""
  states = max(1, _CHUNK_ELEMENTS // max(1, rows * V))
  return min(U1, max(2, -(-U1 // states)))


def _arc_log_probs(logits_BxTxCxV, targets_BxC, blank):
  """Log-probabilities of blank and of the target, 2 x [B, T, C].

  A target outside the vocabulary is impossible.

  The target is picked by comparing with iota: it fuses with the softmax in
  both directions, where a gather's transpose is a scatter into [B, T, C, V].
  """
  logits_BxTxCxV = _at_least_float32(logits_BxTxCxV)
  peak_BxTxC = jax.lax.stop_gradient(logits_BxTxCxV.max(axis=-1))
  peak_BxTxC = checkpoint_name(peak_BxTxC, 'peak')
  total_BxTxC = jnp.exp(logits_BxTxCxV - peak_BxTxC[..., None]).sum(axis=-1)
  total_BxTxC = checkpoint_name(total_BxTxC, 'total')
  log_z_BxTxC = peak_BxTxC + jnp.log(total_BxTxC)
  V = logits_BxTxCxV.shape[-1]
  is_target_BxCxV = targets_BxC[..., None] == jnp.arange(V)
  target_BxTxC = jnp.sum(
    jnp.where(is_target_BxCxV[:, None], logits_BxTxCxV, 0.0), axis=-1
  )
  # What is none of the V matches nowhere: its sum of zero means nothing.
  known_Bx1xC = ((targets_BxC >= 0) & (targets_BxC < V))[:, None]
  label_BxTxC = jnp.where(known_Bx1xC, target_BxTxC - log_z_BxTxC, _FLOOR)
  return logits_BxTxCxV[..., blank] - log_z_BxTxC, label_BxTxC


def _lattice_nll(blank_BxTxU1, label_BxTxU1, enc_lengths_B, label_lengths_B):
  """-log of the sum over paths, diagonal by diagonal; NaN off the lattice."""
  B, T, U1 = blank_BxTxU1.shape
  if not T:  # Something to look up, though no path takes it.
    frame = [(0, 0), (0, 1), (0, 0)]
    blank_BxTxU1, label_BxTxU1 = (
      jnp.pad(x, frame) for x in (blank_BxTxU1, label_BxTxU1)
    )
  # The arcs that arrive in diagonal n leave from diagonal n - 1.
  blank_NxBxU1 = _skew(jnp.maximum(blank_BxTxU1, _FLOOR))
  label_NxBxU1 = _skew(jnp.maximum(label_BxTxU1, _FLOOR))

  def diagonal(alpha_BxU1, arcs):
    blank_BxU1, label_BxU1 = arcs
    stay = alpha_BxU1 + blank_BxU1  # (t - 1, u) -> (t, u)
    emit = (alpha_BxU1 + label_BxU1)[:, :-1]  # (t, u - 1) -> (t, u)
    emit = jnp.pad(emit, [(0, 0), (1, 0)], constant_values=_UNREACHABLE)
    return _log_add(stay, emit), alpha_BxU1

  alpha_BxU1 = jnp.full([B, U1], _UNREACHABLE, blank_NxBxU1.dtype)
  alpha_BxU1 = alpha_BxU1.at[:, 0].set(0.0)
  _, alpha_NxBxU1 = jax.lax.scan(
    diagonal, alpha_BxU1, (blank_NxBxU1, label_NxBxU1)
  )
  # The last arc is the blank that leaves the last state (T_b - 1, U_b).
  last_B = jnp.maximum(enc_lengths_B - 1 + label_lengths_B, 0)
  rows_B = jnp.arange(B)
  end = (last_B, rows_B, label_lengths_B)
  nll_B = -(alpha_NxBxU1[end] + blank_NxBxU1[end])
  without_frames_B = jnp.where(label_lengths_B > 0, jnp.inf, 0.0)
  nll_B = jnp.where(enc_lengths_B > 0, nll_B, without_frames_B)
  there_B = (enc_lengths_B >= 0) & (enc_lengths_B <= T)
  there_B &= (label_lengths_B >= 0) & (label_lengths_B < U1)
  return jnp.where(there_B, nll_B, jnp.nan)


def _log_add(x, y):
  """log(e^x + e^y) of finite values, smooth where x == y.

  Written out because the second derivative of maximum and abs is wrong at a
  tie, and a custom_jvp does not survive a scan differentiated twice.
  """
  peak = jax.lax.stop_gradient(jnp.maximum(x, y))
  return peak + jnp.log(jnp.exp(x - peak) + jnp.exp(y - peak))


def _skew(x_BxTxU1):
  """y[n, b, u] = x[b, n - u, u], where n = 0..T+U-1; other entries unreachable.

  Rows of length T + U1 read with a stride of T + U1 - 1 move by one each.
  """
  B, T, U1 = x_BxTxU1.shape
  x_U1xBxT = jnp.moveaxis(x_BxTxU1, 2, 0)
  pad = [(0, 0), (0, 0), (0, U1)]
  x_U1xBxW = jnp.pad(x_U1xBxT, pad, constant_values=_UNREACHABLE)
  flat = jnp.moveaxis(x_U1xBxW, 1, 0).reshape(B, U1 * (T + U1))[:, :-U1]
  return jnp.transpose(flat.reshape(B, U1, T + U1 - 1), (2, 0, 1))


def _at_least_float32(x):
  return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def check_blank(blank: int, V: int) -> None:
  """Raises ValueError unless blank is one of V labels."""
  if not 0 <= blank < V:
    raise ValueError(f'blank={blank} is none of {V} labels: 0..{V - 1}')


def _check_shapes(name, shape_BxTxU1, labels, enc_lengths, label_lengths):
  B, _, U1 = shape_BxTxU1
  if labels.shape != (B, U1 - 1):
    raise ValueError(
      f'labels {labels.shape} do not match {name}, which have batch {B} and '
      f'{U1} label states: expected labels {(B, U1 - 1)}, one fewer than states'
    )
  for what, lengths in [('enc', enc_lengths), ('label', label_lengths)]:
    if lengths.shape != (B,):
      raise ValueError(
        f'{what}_lengths {lengths.shape} do not match {name}: expected {(B,)}'
      )
