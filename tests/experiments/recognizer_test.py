"""The recognizer's training loss."""

import dataclasses
import itertools

import jax
import numpy as np
import pytest

from experiments import recognizer as recognizer_lib


@pytest.fixture(scope='module')
def by_share(recognizer, params, batch):
  """{share of CTC: ((loss, parts), gradients)}."""

  def at(share):
    own = dataclasses.replace(recognizer, ctc_weight=share)
    return jax.jit(jax.value_and_grad(own.loss, has_aux=True))(
      params, batch, jax.random.key(0)
    )

  return {share: at(share) for share in (0.0, 0.3, 1.0)}


def test_the_loss_is_the_mean_of_its_parts(by_share):
  (rnnt, only), _ = by_share[0.0]
  assert set(only) == {'rnnt'} and only['rnnt'] == rnnt
  (ctc, only), _ = by_share[1.0]
  assert set(only) == {'ctc'} and only['ctc'] == ctc
  (both, parts), _ = by_share[0.3]
  np.testing.assert_allclose([parts['rnnt'], parts['ctc']], [rnnt, ctc], 1e-5)
  np.testing.assert_allclose(both, 0.7 * rnnt + 0.3 * ctc, rtol=1e-5)


def test_ctc_alone_trains_the_encoder_alone(by_share):
  reached = {
    share: {name for name, g in grads.items() if _any(g)}
    for share, (_, grads) in by_share.items()
  }
  ours = {n for n in reached[0.3] if not n.startswith(('encoder', 'ctc'))}
  assert ours and reached[1.0] == reached[0.3] - ours
  assert reached[0.0] == reached[0.3] - {'ctc_out'}


def test_what_ctc_trained_alone_is_decoded_by_ctc(recognizer, params, batch):
  own = dataclasses.replace(recognizer, ctc_weight=1.0)
  audio, lengths = batch['audio_BxS'], batch['audio_lengths_B']
  found = jax.jit(own.greedy)(params, audio, lengths)
  enc, lengths = recognizer.encode(params, audio, lengths)
  logits = recognizer.nets.ctc_logits(params, enc)
  for row, length, labels, count in zip(logits, lengths, *found):
    path = np.asarray(row[:length]).argmax(-1)
    wanted = [int(k) for k, _ in itertools.groupby(path) if k]
    assert labels[:count].tolist() == wanted
  assert not found.labels_BxN[2, found.lengths_B[2] :].any()


def test_a_file_says_that_ctc_trained_it_alone(recognizer, params, batch):
  own = dataclasses.replace(recognizer, ctc_weight=1.0)
  tokenizer = own.tokenizer.to_config()
  stored = recognizer_lib.from_config(own.to_config(), tokenizer)
  assert stored.encoder_only
  audio, lengths = batch['audio_BxS'], batch['audio_lengths_B']
  with pytest.raises(ValueError, match='trained by CTC alone'):
    stored.beam_search(params, audio, lengths, beam=2)
  assert recognizer_lib.shipped(stored, params) == (stored, params)
  mixed = recognizer_lib.from_config(recognizer.to_config(), tokenizer)
  assert not mixed.encoder_only
  _, tree = recognizer_lib.shipped(mixed, params)
  assert set(params) - set(tree) == {'ctc_out'}


def _any(tree):
  return any(np.any(np.asarray(x)) for x in jax.tree.leaves(tree))
