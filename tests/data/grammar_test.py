import numpy as np

from s8bqat_jax.data import grammar


def test_sentences_use_every_word_of_a_vocabulary_of_about_300():
  words = grammar.vocabulary()
  assert 280 <= len(words) <= 340
  rng = np.random.default_rng(0)
  sentences = [grammar.generate(rng) for _ in range(20_000)]
  assert {w for s in sentences for w in s.split()} == set(words)
  assert len(set(sentences)) > 15_000


def test_sentences_are_lower_case_words_with_single_spaces():
  rng = np.random.default_rng(1)
  for _ in range(500):
    words = grammar.generate(rng).split(' ')
    assert 2 <= len(words) <= 25
    assert all(w.isascii() and w.isalpha() and w.islower() for w in words)


def test_a_small_grammar():
  small = {'start': 'a <x>|b', 'x': 'c|d <x>'}
  rng = np.random.default_rng(0)
  seen = {grammar.generate(rng, small) for _ in range(200)}
  assert {'b', 'a c', 'a d c'} <= seen
  assert grammar.vocabulary(small) == ['a', 'b', 'c', 'd']


def test_every_symbol_is_defined_and_used():
  import re

  used = set(re.findall('<([a-z]+)>', ' '.join(grammar.SENTENCES.values())))
  assert used | {'start'} == set(grammar.SENTENCES)
