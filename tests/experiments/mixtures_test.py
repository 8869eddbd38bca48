"""Mixing, tuning and choosing among N-best lists."""

import math

import numpy as np
import pytest

from experiments import mixtures as lib
from experiments import nbest
from s8bqat_jax.speech import ngram

COUNT = ngram.NGram(['a b', 'a c', 'a b b'], order=2)


def neural(text):
  """A network that finds every word and end equally likely."""
  return np.log(np.full(len(text.split()) + 1, 0.2))


def test_mixture_is_of_probabilities_word_by_word():
  mixed = lib.Mixture({'a b': neural('a b')}, COUNT, 0.25)
  expected = sum(
    math.log(0.25 * 0.2 + 0.75 * COUNT.prob(word, context))
    for word, context in (('a', []), ('b', ['a']), ('</s>', ['a', 'b']))
  )
  assert mixed.log_prob('a b') == pytest.approx(expected)
  alone = lib.Mixture({'a b': neural('a b')}, COUNT)
  assert alone.log_prob('a b') == pytest.approx(3 * math.log(0.2))


@pytest.mark.parametrize('texts', [['a b', 'a c'], ['c c a', 'b a c']])
def test_fitted_share_is_the_likeliest(texts):
  words = {text: neural(text) for text in texts}
  fitted = lib.Mixture(words, COUNT).fitted(texts)
  total = lambda m: sum(map(m.log_prob, texts))
  for share in np.linspace(0.01, 0.99, 30):
    other = lib.Mixture(words, COUNT, share)
    assert total(fitted) >= total(other) - 1e-3


def test_oracle_takes_the_fewest_errors():
  lists = [
    [ngram.Candidate('a x', 0.0), ngram.Candidate('a b', -1.0)],
    [],
    [ngram.Candidate('c', 0.0)],
  ]
  assert nbest.oracle(lists, ['a b', 'a', 'c c']) == ['a b', '', 'c']


def test_a_language_model_moves_the_choice_and_tuning_finds_how():
  # The recognizer prefers the wrong word by a nat.
  lists = [[ngram.Candidate('a c b', 0.0), ngram.Candidate('a b b', -1.0)]] * 4
  assert nbest.choose(lists) == ['a c b'] * 4
  pair = nbest.tune(lists, COUNT, ['a b b'] * 4)
  assert nbest.choose(lists, COUNT, *pair) == ['a b b'] * 4


def test_lists_survive_the_disk(tmp_path):
  lists = [[ngram.Candidate('a "b"', -1.5)], []]
  path = tmp_path / 'new' / 'nbest.jsonl'
  nbest.write_lists(path, lists)
  assert nbest.read_lists(path) == lists
  assert [p.name for p in path.parent.iterdir()] == ['nbest.jsonl']
