"""Beam search for transducers: batched, jitted, with N-best.

The search is alignment-length synchronous: step i extends every hypothesis by
one arc of the lattice, so that one with u labels stands at frame t = i - u.
Two alignments of one prefix therefore meet at the same step, where their
probabilities are added: a score is the probability of the label sequence, the
sum over the alignments the beam kept, and with a beam wide enough it is exact.

References:
  G. Saon, Z. Tueske, K. Audhkhasi, Alignment-Length Synchronous Decoding for
  RNN Transducer, ICASSP 2020 (K). Batching, pruning by the worst finished
  hypothesis and the automaton are ours.

Dimension key: as `decode`, K hypotheses, S states of an automaton.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from s8bqat_jax.speech import decode

# Score of a place in the beam that holds no hypothesis.
_EMPTY = -1e30


class Automaton(NamedTuple):
  """A weighted acceptor of label sequences; state 0 is the start.

  Attributes:
    next_SxV: state after a label, -1 where the label is not allowed.
    weight_SxV: natural-log weight of taking the label.
    final_S: weight of ending there, -inf where no sequence may end.
  """

  next_SxV: jax.Array
  weight_SxV: jax.Array
  final_S: jax.Array


class NBest(NamedTuple):
  """The likeliest transcripts of each row, best first.

  Attributes:
    labels_BxKxN: 0 beyond each length.
    lengths_BxK: labels of each.
    scores_BxK: log-probability (plus automaton weights), -inf where fewer
      than K were found.
  """

  labels_BxKxN: jax.Array
  lengths_BxK: jax.Array
  scores_BxK: jax.Array

  def best(self) -> decode.Decoded:
    """The first transcript of each row."""
    return decode.Decoded(self.labels_BxKxN[:, 0], self.lengths_BxK[:, 0])


class _Hypotheses(NamedTuple):
  """A beam; unused places score _EMPTY."""

  labels_BxKxN: jax.Array
  lengths_BxK: jax.Array
  scores_BxK: jax.Array


class _Active(NamedTuple):
  """Hypotheses that still have frames, with what extends them."""

  hyps: _Hypotheses
  state: Any  # of the prediction network, leading axis B * K
  pred: Any
  node_BxK: jax.Array  # of the automaton


def beam_search(
  transducer: decode.Transducer,
  enc_BxTxD: jax.Array,
  lengths_B: jax.Array,
  *,
  beam: int = 8,
  max_labels: int | None = None,
  automaton: Automaton | None = None,
) -> NBest:
  """Searches for the likeliest label sequences. Jit it with the model.

  Args:
    transducer: the model.
    enc_BxTxD: encoder output.
    lengths_B: frames of each row, 0..T.
    beam: K, hypotheses kept per row.
    max_labels: N, most labels of a transcript; default T.
    automaton: what transcripts are allowed, and their weights.

  Returns:
    K transcripts per row. A row without frames has the empty one.
  """
  B, T, D = enc_BxTxD.shape
  K, N = beam, T if max_labels is None else max_labels
  if K < 1 or N < 0:
    raise ValueError(
      f'expected beam >= 1 and max_labels >= 0, got beam={beam}, '
      f'max_labels={max_labels}'
    )
  if T == 0:
    enc_BxTxD = jnp.zeros([B, 1, D], enc_BxTxD.dtype)
  first = jnp.arange(K) == 0
  nothing = _Hypotheses(
    jnp.zeros([B, K, N], jnp.int32),
    jnp.zeros([B, K], jnp.int32),
    jnp.full([B, K], _EMPTY),
  )
  has_frames_Bx1 = lengths_B[:, None] > 0
  start = nothing._replace(
    scores_BxK=jnp.where(first & has_frames_Bx1, 0.0, _EMPTY)
  )
  at_once = 0.0 if automaton is None else automaton.final_S[0]
  finished = nothing._replace(
    scores_BxK=_clip(jnp.where(first & ~has_frames_Bx1, at_once, _EMPTY))
  )
  state, pred = decode.initial_carry(transducer, B * K)
  active = _Active(start, state, pred, jnp.zeros([B, K], jnp.int32))

  # The most that an automaton may still give: for a label, and at the end.
  per_label = at_end = jnp.float32(0)
  if automaton is not None:
    per_label = jnp.maximum(automaton.weight_SxV.max(), 0)
    at_end = jnp.maximum(automaton.final_S.max(), 0)

  def unfinished(loop):
    _, active, finished = loop
    # Extending multiplies by probabilities, and merging adds them: nothing
    # that comes of a row's hypotheses is more likely than all of them, but for
    # what an automaton may give.
    left_BxK = N - active.hyps.lengths_BxK
    hopes_BxK = active.hyps.scores_BxK + per_label * left_BxK + at_end
    all_B = jax.nn.logsumexp(hopes_BxK, axis=1)
    return jnp.any((all_B > finished.scores_BxK[:, -1]) & (all_B > _EMPTY / 2))

  def extend(loop):
    step, active, finished = loop
    active, ended = _extend(
      transducer, enc_BxTxD, lengths_B, automaton, step, active
    )
    return step + 1, active, _keep_best(finished, ended)

  _, _, finished = jax.lax.while_loop(
    unfinished, extend, (jnp.int32(0), active, finished)
  )
  scores = finished.scores_BxK
  return NBest(
    finished.labels_BxKxN,
    finished.lengths_BxK,
    jnp.where(scores > _EMPTY, scores, -jnp.inf),
  )


def _extend(transducer, enc_BxTxD, lengths_B, automaton, step, active):
  """One arc for every hypothesis: (what goes on, what ends here)."""
  B, T, D = enc_BxTxD.shape
  hyps = active.hyps
  K, N = hyps.labels_BxKxN.shape[1:]
  frame_BxK = step - hyps.lengths_BxK
  enc_BxKxD = jnp.take_along_axis(
    enc_BxTxD, jnp.clip(frame_BxK, 0, T - 1)[..., None], axis=1
  )
  logits = transducer.joint(enc_BxKxD.reshape(B * K, D), active.pred)
  V = logits.shape[-1]
  log_p = jax.nn.log_softmax(logits.astype(jnp.float32)).reshape(B, K, V)
  blank_BxK = hyps.scores_BxK + log_p[..., 0]
  label_BxKxV = (hyps.scores_BxK[..., None] + log_p).at[..., 0].set(_EMPTY)
  label_BxKxV = jnp.where(
    (hyps.lengths_BxK < N)[..., None], label_BxKxV, _EMPTY
  )
  final_BxK = jnp.zeros([B, K])
  if automaton is not None:
    allowed_BxKxV = automaton.next_SxV[active.node_BxK] >= 0
    weighted = label_BxKxV + automaton.weight_SxV[active.node_BxK]
    label_BxKxV = jnp.where(allowed_BxKxV, weighted, _EMPTY)
    final_BxK = automaton.final_S[active.node_BxK]

  blank_BxK, label_BxKxV = _merge(hyps, blank_BxK, label_BxKxV)
  ends_BxK = frame_BxK + 1 >= lengths_B[:, None]
  ended = hyps._replace(
    scores_BxK=_clip(jnp.where(ends_BxK, blank_BxK + final_BxK, _EMPTY))
  )
  blank_BxK = jnp.where(ends_BxK, _EMPTY, blank_BxK)

  # The best K of the K blanks and K * V labels, blanks first.
  candidates = jnp.concatenate(
    [blank_BxK, label_BxKxV.reshape(B, K * V)], axis=1
  )
  scores_BxK, chosen_BxK = jax.lax.top_k(_clip(candidates), K)
  is_label_BxK = chosen_BxK >= K
  parent_BxK = jnp.where(is_label_BxK, (chosen_BxK - K) // V, chosen_BxK)
  new_label_BxK = jnp.where(is_label_BxK, (chosen_BxK - K) % V, 0)

  labels, lengths = _take((hyps.labels_BxKxN, hyps.lengths_BxK), parent_BxK)
  place_BxKxN = jnp.arange(N) == lengths[..., None]
  labels = jnp.where(
    place_BxKxN & is_label_BxK[..., None], new_label_BxK[..., None], labels
  )
  unflat = lambda x: x.reshape(B, K, *x.shape[1:])
  flat = lambda x: x.reshape(B * K, *x.shape[2:])
  old = jax.tree.map(unflat, (active.state, active.pred))
  old = jax.tree.map(flat, _take(old, parent_BxK))
  new = transducer.predict_step(old[0], new_label_BxK.reshape(B * K))
  state, pred = jax.tree.map(
    lambda n, o: decode.select_rows(is_label_BxK.reshape(-1), n, o), new, old
  )
  node_BxK = _take(active.node_BxK, parent_BxK)
  if automaton is not None:
    after = automaton.next_SxV[node_BxK, new_label_BxK]
    node_BxK = jnp.where(is_label_BxK, after, node_BxK)
  hyps = _Hypotheses(labels, lengths + is_label_BxK, scores_BxK)
  return _Active(hyps, state, pred, node_BxK), ended


def _merge(hyps, blank_BxK, label_BxKxV):
  """Adds the arc (parent, label) to the hypothesis it makes again.

  Hypothesis j gets there by a blank, its own prefix without the last label
  gets there by that label; at most one such prefix is in the beam.
  """
  labels, lengths = hyps.labels_BxKxN, hyps.lengths_BxK
  N = labels.shape[-1]
  if N == 0:
    return blank_BxK, label_BxKxV
  is_last = jnp.arange(N) == lengths[..., None] - 1
  last_BxK = jnp.sum(jnp.where(is_last, labels, 0), axis=-1)
  prefix_BxKxN = jnp.where(is_last, 0, labels)
  alive_BxK = hyps.scores_BxK > _EMPTY
  # makes[b, j, k]: hypothesis k and the last label of j make j.
  makes_BxJxK = (
    (lengths[:, :, None] == lengths[:, None] + 1)
    & jnp.all(prefix_BxKxN[:, :, None] == labels[:, None], axis=-1)
    & (alive_BxK[:, :, None] & alive_BxK[:, None])
  )
  # by_last[b, k, j]: score of k extended by the last label of j.
  by_last_BxKxJ = jnp.take_along_axis(
    label_BxKxV, jnp.broadcast_to(last_BxK[:, None], makes_BxJxK.shape), axis=2
  )
  arriving_BxJ = jnp.max(
    jnp.where(makes_BxJxK, by_last_BxKxJ.swapaxes(1, 2), _EMPTY), axis=2
  )
  V = label_BxKxV.shape[-1]
  is_last_JxV = last_BxK[..., None] == jnp.arange(V)
  merged_BxKxV = jnp.einsum(
    'bjk,bjv->bkv',
    makes_BxJxK.astype(jnp.float32),
    is_last_JxV.astype(jnp.float32),
  )
  return (
    jnp.logaddexp(blank_BxK, arriving_BxJ),
    jnp.where(merged_BxKxV > 0, _EMPTY, label_BxKxV),
  )


def _keep_best(finished, ended):
  both = jax.tree.map(
    lambda x, y: jnp.concatenate([x, y], axis=1), finished, ended
  )
  K = finished.scores_BxK.shape[1]
  scores_BxK, chosen_BxK = jax.lax.top_k(both.scores_BxK, K)
  labels, lengths = _take((both.labels_BxKxN, both.lengths_BxK), chosen_BxK)
  return _Hypotheses(labels, lengths, scores_BxK)


def _take(tree, index_BxK):
  """x[b, index[b, k]] of every leaf."""
  return jax.tree.map(
    lambda x: jax.vmap(lambda row, index: row[index])(x, index_BxK), tree
  )


def _clip(scores):
  """Empty places score exactly _EMPTY, so that they compare as such."""
  return jnp.where(scores > _EMPTY / 2, scores, _EMPTY)
