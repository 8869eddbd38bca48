"""Beam search against the probability of every possible transcript."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from s8bqat_jax.speech import beam, decode
from tests.speech import toy_transducer


def _exhaustive(transducer, enc_TxD, V, max_labels):
  """{labels: log-probability} of every transcript, in float64 NumPy."""
  rows = [
    row
    for U in range(max_labels + 1)
    for row in itertools.product(range(1, V), repeat=U)
  ]
  state = transducer.initial_state(len(rows))
  preds = []
  for column in [[0] * len(rows), *itertools.zip_longest(*rows, fillvalue=0)]:
    state, pred = _jitted(transducer.predict_step)(state, np.array(column))
    preds.append(pred)
  pred_PxU1xE = jnp.stack(preds, axis=1)
  logits = _jitted(transducer.joint)(
    enc_TxD[None, :, None], pred_PxU1xE[:, None]
  )
  logits = np.asarray(logits, np.float64)
  log_p = logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)
  return {row: _log_prob(log_p[i], row) for i, row in enumerate(rows)}


@functools.cache
def _jitted(function):
  return jax.jit(function)


def _log_prob(log_p_TxU1xV, labels):
  T, U = len(log_p_TxU1xV), len(labels)
  alpha = np.full([T, U + 1], -np.inf)
  alpha[0, 0] = 0.0
  for t, u in itertools.product(range(T), range(U + 1)):
    if t:
      alpha[t, u] = alpha[t - 1, u] + log_p_TxU1xV[t - 1, u, 0]
    if u:
      emit = alpha[t, u - 1] + log_p_TxU1xV[t, u - 1, labels[u - 1]]
      alpha[t, u] = np.logaddexp(alpha[t, u], emit)
  return float(alpha[-1, -1] + log_p_TxU1xV[-1, U, 0])


def _nbest_lists(nbest, row):
  return [
    (tuple(labels[:n].tolist()), float(score))
    for labels, n, score in zip(
      np.asarray(nbest.labels_BxKxN[row]),
      nbest.lengths_BxK[row],
      nbest.scores_BxK[row],
      strict=True,
    )
  ]


@functools.cache
def _search(V, K, max_labels, automaton=None):
  transducer = toy_transducer.make(V=V, blank_bias=0.5)

  @jax.jit
  def search(enc, lengths):
    return beam.beam_search(
      transducer,
      enc,
      lengths,
      beam=K,
      max_labels=max_labels,
      automaton=automaton() if automaton else None,
    )

  return transducer, search


@pytest.mark.parametrize('seed', range(3))
def test_wide_beam_is_exact(seed):
  V, max_labels = 3, 3
  transducer, search = _search(V, 16, max_labels)
  enc = toy_transducer.encode(B=3, T=5, seed=seed)
  lengths = np.array([5, 3, 1])
  nbest = search(enc, lengths)
  for row, t in enumerate(lengths):
    expected = _exhaustive(transducer, enc[row, :t], V, max_labels)
    assert len(expected) == 15
    found = _nbest_lists(nbest, row)
    ranked = sorted(expected.items(), key=lambda item: -item[1])
    np.testing.assert_allclose(
      [score for _, score in found[:15]],
      [score for _, score in ranked],
      rtol=1e-4,
    )
    for labels, score in found[:15]:
      np.testing.assert_allclose(score, expected[labels], rtol=1e-4)
    # The sixteenth place finds nothing.
    assert found[15][1] == -np.inf


def test_narrow_beam_finds_the_best_and_never_overstates():
  V, T, max_labels = 4, 6, 5
  transducer = toy_transducer.make_bigram(V)
  search = jax.jit(
    functools.partial(
      beam.beam_search, transducer, beam=6, max_labels=max_labels
    )
  )
  found_best = greedy_best = 0
  for seed in range(20):
    enc = toy_transducer.encode_bigram(T=T, V=V, seed=seed)
    expected = _exhaustive(transducer, enc[0], V, max_labels)
    found = _nbest_lists(search(enc, np.array([T])), 0)
    assert len({labels for labels, _ in found}) == 6
    scores = [score for _, score in found]
    assert scores == sorted(scores, reverse=True)
    for labels, score in found:
      assert score <= expected[labels] + 1e-4
    best = max(expected, key=expected.get)
    found_best += found[0][0] == best
    decoded = _greedy(transducer)(enc, np.array([T]))
    labels = decoded.labels_BxN[0, : decoded.lengths_B[0]]
    greedy_best += tuple(labels.tolist()) == best
  assert found_best >= 18 > greedy_best


@functools.cache
def _greedy(transducer):
  return jax.jit(functools.partial(decode.greedy, transducer))


def test_padding_and_batch_change_nothing():
  transducer, search = _search(4, 4, 6)
  enc = toy_transducer.encode(B=3, T=6)
  lengths = np.array([6, 4, 2])
  together = search(enc, lengths)
  junk = jnp.concatenate([enc, 100 * jnp.ones([3, 2, 4])], axis=1)
  padded = search(junk, lengths)
  for row, t in enumerate(lengths):
    alone = search(enc[row : row + 1, :t], np.array([t]))
    for other in [_nbest_lists(alone, 0), _nbest_lists(padded, row)]:
      for a, b in zip(_nbest_lists(together, row), other, strict=True):
        assert a[0] == b[0]
        np.testing.assert_allclose(a[1], b[1], rtol=1e-5)


def test_rows_without_frames_or_labels():
  _, search = _search(3, 16, 3)
  nbest = search(toy_transducer.encode(B=2, T=5), np.array([0, 5]))
  assert _nbest_lists(nbest, 0)[0] == ((), 0.0)
  assert np.all(nbest.scores_BxK[0, 1:] == -np.inf)
  transducer, search = _search(3, 2, 0)
  enc = toy_transducer.encode(B=1, T=3)
  found = _nbest_lists(search(enc, np.array([3])), 0)
  np.testing.assert_allclose(
    found[0][1], _exhaustive(transducer, enc[0], 3, 0)[()], rtol=1e-5
  )
  none = beam.beam_search(transducer, enc[:, :0], np.array([0]), beam=2)
  assert none.best().lengths_B.tolist() == [0]


def _only_one_two():
  """Accepts (1 2)*, each 2 weighted by -0.5."""
  return beam.Automaton(
    next_SxV=jnp.array([[-1, 1, -1], [-1, -1, 0]]),
    weight_SxV=jnp.array([[0.0, 0.0, 0.0], [0.0, 0.0, -0.5]]),
    final_S=jnp.array([0.0, -jnp.inf]),
  )


def test_automaton_allows_and_weights():
  transducer, search = _search(3, 16, 4, _only_one_two)
  enc = toy_transducer.encode(B=1, T=5)
  nbest = _nbest_lists(search(enc, np.array([5])), 0)
  found = {labels: score for labels, score in nbest if score > -np.inf}
  exact = _exhaustive(transducer, enc[0], 3, 4)
  expected = {
    (): exact[()],
    (1, 2): exact[1, 2] - 0.5,
    (1, 2, 1, 2): exact[1, 2, 1, 2] - 1.0,
  }
  assert found.keys() == expected.keys()
  for labels, score in expected.items():
    np.testing.assert_allclose(found[labels], score, rtol=1e-4)


@pytest.mark.parametrize('bad', [{'beam': 0}, {'max_labels': -1}])
def test_impossible_arguments(bad):
  enc = toy_transducer.encode(B=1)
  with pytest.raises(ValueError, match='beam'):
    beam.beam_search(toy_transducer.make(), enc, np.array([1]), **bad)


def test_two_halves_of_the_best_are_waited_for():
  """No hypothesis alone beats a finished one; merged, two of them do."""
  T, U1, V = 3, 4, 4
  table_TxU1xV = np.full((T, U1, V), 1e-6)
  table_TxU1xV[0, 0, :2] = 0.3, 0.7
  table_TxU1xV[0, 1, [0, 2]] = 0.357, 0.643
  table_TxU1xV[0, 2, [0, 3]] = 0.5, 0.5
  table_TxU1xV[0, 3, 0] = 1
  table_TxU1xV[1, :, 0] = 1
  table_TxU1xV[1, 2] = 1e-6, 1e-6, 1e-6, 1
  table_TxU1xV[2] = 1 / V  # for another row
  logits_TxU1xV = jnp.log(jnp.asarray(table_TxU1xV, jnp.float32))

  def predict_step(state_B, label_B):
    del label_B  # only how many there were counts
    state_B = jnp.minimum(state_B + 1, U1 - 1)
    return state_B, jax.nn.one_hot(state_B, U1)

  transducer = decode.Transducer(
    initial_state=lambda batch_size: jnp.full([batch_size], -1),
    predict_step=predict_step,
    joint=lambda enc, pred: jnp.einsum(
      '...t,...u,tuv->...v', enc, pred, logits_TxU1xV
    ),
  )
  frames = lambda rows: jax.nn.one_hot(jnp.array(rows), T)
  alone = beam.beam_search(
    transducer, frames([[0, 1]]), np.array([2]), beam=2, max_labels=6
  )
  padded = frames([[0, 1, 2, 2, 2, 2], [2] * 6])
  beside = beam.beam_search(
    transducer, padded, np.array([2, 6]), beam=2, max_labels=6
  )
  best, score = _nbest_lists(alone, 0)[0]
  assert best == (1, 2, 3)
  np.testing.assert_allclose(np.exp(score), 0.45, rtol=2e-3)
  for found, same in zip(_nbest_lists(alone, 0), _nbest_lists(beside, 0)):
    assert found[0] == same[0]
    np.testing.assert_allclose(found[1], same[1], rtol=1e-5)


def _rewarding():
  """A second label 1 in a row may end a transcript, and earns twelve."""
  return beam.Automaton(
    jnp.array([[0, 1, 0], [1, 2, 1], [2, 2, 2]]),
    jnp.zeros((3, 3)),
    jnp.array([0.0, 0.0, 12.0]),
  )


def test_what_an_automaton_gives_at_the_end_is_waited_for():
  transducer, search = _search(3, 16, 3, _rewarding)
  enc = toy_transducer.encode(B=1, T=2, seed=0)
  bonus = lambda labels: 12.0 if labels.count(1) >= 2 else 0.0
  expected = {
    labels: score + bonus(labels)
    for labels, score in _exhaustive(transducer, enc[0], 3, 3).items()
  }
  found = _nbest_lists(search(enc, np.array([2])), 0)
  best = max(expected, key=expected.get)
  assert best.count(1) >= 2 and found[0][0] == best
  for labels, score in found[:15]:
    np.testing.assert_allclose(score, expected[labels], rtol=1e-4, atol=1e-4)


def _forbidding():
  """Nothing at all is no transcript."""
  return _rewarding()._replace(final_S=jnp.array([-jnp.inf, 0.0, 0.0]))


def test_no_frames_under_an_automaton():
  _, search = _search(3, 2, 2, _forbidding)
  enc = toy_transducer.encode(B=1, T=2, seed=0)
  assert not np.isfinite(search(enc, np.array([0])).scores_BxK).any()
