"""Kneser-Ney by hand and as a distribution; the lexicon's tree; rescoring."""

import itertools
import math

import numpy as np
import pytest

from s8bqat_jax.speech import ngram, tokenizers

_TEXTS = ['the cat sat', 'the cat ran', 'a dog sat', 'the', '']


@pytest.mark.parametrize('order', [1, 2, 3])
def test_every_context_has_a_distribution(order):
  model = ngram.NGram(_TEXTS, order=order)
  vocabulary = [*model.words, '</s>', 'never-seen']
  seen = [*model.words, 'never-seen']
  for length in range(3):
    for context in itertools.product(seen, repeat=length):
      total = sum(model.prob(word, context) for word in vocabulary)
      np.testing.assert_allclose(total, 1.0)
      assert all(model.prob(word, context) > 0 for word in vocabulary)


def test_bigram_by_hand():
  model = ngram.NGram(['a b', 'a c', 'd b'], order=2, discount=0.5)
  # Distinct words to the left: a 1 (<s>), b 2 (a, d), c 1, d 1, </s> 2 (b, c).
  # Uniform over a b c d </s> and the unknown: 1/6.
  of_b = (2 - 0.5) / 7 + 0.5 * 5 / 7 / 6
  np.testing.assert_allclose(model.prob('b', ['never-seen']), of_b)
  # After a: b once, c once.
  expected = (1 - 0.5) / 2 + 0.5 * 2 / 2 * of_b
  np.testing.assert_allclose(model.prob('b', ['a']), expected)


def test_sentences_multiply_and_seen_ones_are_likelier():
  model = ngram.NGram(_TEXTS)
  by_hand = math.log(
    model.prob('the', [])
    * model.prob('cat', ['the'])
    * model.prob('</s>', ['the', 'cat'])
  )
  np.testing.assert_allclose(model.log_prob('the cat'), by_hand)
  assert model.log_prob('the cat sat') > model.log_prob('sat cat the')
  assert math.isfinite(model.log_prob('zebra'))


def _walk(automaton, labels):
  """Total weight of a label sequence, -inf if it is not accepted."""
  state = total = 0
  for label in labels:
    total += float(automaton.weight_SxV[state, label])
    state = int(automaton.next_SxV[state, label])
    if state < 0:
      return -math.inf
  return total + float(automaton.final_S[state])


def test_lexicon_accepts_its_words_with_their_weights():
  weights = {'cat': -1.0, 'cats': -2.5, 'cab': -3.0, 'dog': -0.5}
  tokenizer = tokenizers.CharTokenizer.from_texts([' '.join(weights) + ' x y'])
  automaton = ngram.lexicon(weights, tokenizer)
  for words in itertools.product(weights, repeat=2):
    labels = tokenizer.encode(' '.join(words))
    expected = sum(weights[word] for word in words)
    np.testing.assert_allclose(_walk(automaton, labels), expected, rtol=1e-6)
  for text in ['ca', 'cat ca', 'catx', 'dogs', 'x', 'catcat']:
    assert _walk(automaton, tokenizer.encode(text)) == -math.inf
  # No arc gains: scores only fall as a beam goes on.
  assert float(automaton.weight_SxV.max()) <= 0


def test_rescoring_prefers_what_the_text_prefers():
  model = ngram.NGram(_TEXTS)
  candidates = [
    ngram.Candidate('the cat set', -1.0),
    ngram.Candidate('the cat sat', -1.5),
  ]
  assert ngram.rescore(candidates, model, weight=0.0) == candidates
  best = ngram.rescore(candidates, model, weight=1.0)[0]
  assert best.text == 'the cat sat'
  expected = -1.5 + model.log_prob('the cat sat') + 3 * 0.2
  again = ngram.rescore(candidates, model, weight=1.0, word_bonus=0.2)[0]
  np.testing.assert_allclose(again.score, expected)


def test_nothing_to_learn_from():
  with pytest.raises(ValueError, match='all texts are empty'):
    ngram.NGram(['', ' '])
  with pytest.raises(ValueError, match='order=0'):
    ngram.NGram(_TEXTS, order=0)
  no_space = tokenizers.CharTokenizer('abc')
  with pytest.raises(ValueError, match='a tokenizer with a space'):
    ngram.lexicon({'ab': 0.0}, no_space)


@pytest.mark.parametrize('word', ['a b', '', ' ', 'a '])
def test_what_is_no_word_of_a_lexicon(word):
  tokenizer = tokenizers.CharTokenizer.from_texts(['a b'])
  with pytest.raises(ValueError, match='is no word'):
    ngram.lexicon({'a': -1.0, word: -1.0}, tokenizer)


@pytest.mark.parametrize('weight', [0.5, math.nan])
def test_a_word_that_would_gain(weight):
  tokenizer = tokenizers.CharTokenizer.from_texts(['a b'])
  with pytest.raises(ValueError, match="word 'a' has weight"):
    ngram.lexicon({'a': weight}, tokenizer)


def test_the_end_of_a_sentence_may_be_written():
  model = ngram.NGram(['a </s> b', 'c'], 2)
  words = [*(model.words - {'</s>'}), '</s>', 'unknown']
  for context in ([], ['a'], ['zzz']):
    total = sum(model.prob(word, context) for word in words)
    np.testing.assert_allclose(total, 1, rtol=1e-12)


class _Forbids:
  def log_prob(self, text):
    return -math.inf if 'no' in text else 0.0


def test_a_language_model_of_no_weight_says_nothing():
  candidates = [ngram.Candidate('yes', -0.5), ngram.Candidate('no', -1.0)]
  assert ngram.rescore(candidates, _Forbids(), weight=0.0) == candidates
  best = ngram.rescore(candidates[::-1], _Forbids(), weight=0.5)[0]
  assert best.text == 'yes'
