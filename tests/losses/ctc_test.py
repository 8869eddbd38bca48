"""CTC against the sum over every frame-by-frame labelling."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from s8bqat_jax.losses import ctc


def _nll_by_enumeration(logits_TxV, labels, blank=0):
  x = np.asarray(logits_TxV, np.float64)
  log_p = x - np.logaddexp.reduce(x, axis=-1, keepdims=True)
  total = -np.inf
  for path in itertools.product(range(log_p.shape[1]), repeat=len(log_p)):
    merged = [label for label, _ in itertools.groupby(path) if label != blank]
    if merged == list(labels):
      score = sum(log_p[t, label] for t, label in enumerate(path))
      total = np.logaddexp(total, score)
  return -total


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_equals_enumeration(dtype):
  rng = np.random.default_rng(0)
  logits = jnp.asarray(rng.normal(size=(4, 5, 3)), dtype)
  labels = np.array([[1, 2], [1, 1], [2, 0], [0, 0]])
  enc_lengths, label_lengths = np.array([5, 3, 4, 2]), np.array([2, 2, 1, 0])
  nll_B = ctc.ctc_loss(logits, labels, enc_lengths, label_lengths)
  assert nll_B.dtype == jnp.float32
  expected = [
    _nll_by_enumeration(logits[b, :t], labels[b, :u])
    for b, (t, u) in enumerate(zip(enc_lengths, label_lengths, strict=True))
  ]
  np.testing.assert_allclose(nll_B, expected, rtol=1e-5)


def test_batch_padding_is_free_and_without_gradient():
  logits = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, 3)))
  labels = np.array([[1, 2], [0, 0]])
  loss = lambda x: ctc.ctc_loss(x, labels, np.array([5, 0]), np.array([2, 0]))
  assert loss(logits)[1] == 0.0
  grad = jax.grad(lambda x: loss(x).sum())(logits)
  assert np.isfinite(grad).all()
  np.testing.assert_array_equal(grad[1], 0.0)


def test_shape_error_prints_both_shapes():
  with pytest.raises(ValueError, match=r'\(3,\) do not match logits \(2, 5, 3'):
    ctc.ctc_loss(
      jnp.zeros([2, 5, 3]), jnp.ones([2, 1], int), jnp.ones(3), jnp.ones(2)
    )


def test_a_label_outside_of_the_vocabulary_is_impossible():
  logits = jnp.asarray(np.random.default_rng(0).normal(size=(3, 5, 3)))
  labels = np.array([[1, 3], [-1, 2], [1, 9]])
  loss = lambda x: ctc.ctc_loss(x, labels, np.full(3, 5), np.array([2, 2, 1]))
  nll_B = loss(logits)
  np.testing.assert_array_equal(np.isinf(nll_B), [True, True, False])
  np.testing.assert_allclose(
    nll_B[2], _nll_by_enumeration(logits[2], [1]), rtol=1e-5
  )
  grad = jax.grad(lambda x: loss(x).sum())(logits)
  assert np.isfinite(grad).all() and not grad[:2].any() and grad[2].any()
  with pytest.raises(ValueError, match='blank=7 is none of 3 labels: 0..2'):
    ctc.ctc_loss(logits, labels, np.full(3, 5), np.full(3, 2), blank=7)


def test_a_class_that_never_comes():
  logits = np.random.default_rng(0).normal(size=(2, 6, 4)).astype(np.float32)
  logits[:, :, 3] = -np.inf
  labels = np.array([[1, 2], [1, 1]])
  lengths = np.array([6, 6]), np.array([2, 2])
  loss = lambda x: ctc.ctc_loss(x, labels, *lengths)
  expected = [_nll_by_enumeration(x, y) for x, y in zip(logits, labels)]
  np.testing.assert_allclose(loss(logits), expected, rtol=1e-5)
  assert np.isfinite(jax.grad(lambda x: loss(x).sum())(logits)).all()
  needed = ctc.ctc_loss(logits, np.array([[3, 1], [1, 2]]), *lengths)
  assert needed[0] > 1e4 and np.isfinite(needed).all()


def test_no_frames_at_all():
  nll_B = ctc.ctc_loss(
    jnp.zeros([2, 0, 3]), np.ones([2, 1], int), np.zeros(2), np.array([0, 1])
  )
  assert nll_B[0] == 0 and nll_B[1] > 1e4
