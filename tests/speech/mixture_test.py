"""Mixing language models word by word, and by how much."""

import math

import numpy as np
import pytest

from s8bqat_jax.speech import mixture as lib
from s8bqat_jax.speech import ngram

COUNT = ngram.NGram(['a b', 'a c', 'a b b'], order=2)


class _Even:
  """Finds every word and end equally likely."""

  def word_log_probs(self, text):
    return np.log(np.full(len(text.split()) + 1, 0.2))


def test_a_mixture_is_of_probabilities_word_by_word():
  mixed = lib.Mixture(_Even(), COUNT, 0.25)
  words = ('a', []), ('b', ['a']), ('</s>', ['a', 'b'])
  expected = [math.log(0.25 * 0.2 + 0.75 * COUNT.prob(*word)) for word in words]
  np.testing.assert_allclose(mixed.word_log_probs('a b'), expected)
  assert mixed.log_prob('a b') == pytest.approx(sum(expected))


def test_a_mixture_of_a_mixture():
  inner = lib.Mixture(_Even(), COUNT, 0.5)
  outer = lib.Mixture(inner, COUNT, 0.5)
  same = lib.Mixture(_Even(), COUNT, 0.25)
  assert outer.log_prob('a b b') == pytest.approx(same.log_prob('a b b'))


@pytest.mark.parametrize('texts', [['a b', 'a c'], ['c c a', 'b a c']])
def test_the_fitted_share_is_the_likeliest(texts):
  fitted = lib.fit(_Even(), COUNT, texts)
  total = lambda m: sum(map(m.log_prob, texts))
  for share in np.linspace(0.01, 0.99, 30):
    assert total(fitted) >= total(lib.Mixture(_Even(), COUNT, share)) - 1e-3


def test_the_share_leans_to_what_fits():
  first, second = ngram.NGram(['a b'] * 5), ngram.NGram(['c d'] * 5)
  assert lib.fit(first, second, ['a b']).share > 0.9
  assert lib.fit(first, second, ['c d']).share < 0.1


def test_what_is_known_is_said_again():
  known = lib.Known({'a b': _Even().word_log_probs('a b')})
  assert known.log_prob('a b') == pytest.approx(3 * math.log(0.2))
  fitted = lib.fit(known, COUNT, ['a b'])
  assert fitted == lib.Mixture(known, COUNT, fitted.share)


def test_what_is_impossible_to_one_is_up_to_the_other():
  never, sure = np.array([-np.inf, 0.0]), np.array([0.0, 0.0])
  np.testing.assert_allclose(lib.mix(never, sure, 0.5), [np.log(0.5), 0.0])


def test_bad_input():
  with pytest.raises(ValueError, match='no sentences'):
    lib.fit(_Even(), COUNT, [])
  known = lib.Known({'a b': np.zeros(1)})
  with pytest.raises(ValueError, match='same words'):
    lib.Mixture(known, COUNT, 0.5).log_prob('a b')
  with pytest.raises(ValueError, match='share of 1.0'):
    lib.Mixture(_Even(), COUNT, 1.0).log_prob('a b')
