import math

import jax
import numpy as np
import pytest

from experiments import nbest, recognizer
from s8bqat_jax import data, speech
from s8bqat_jax.models import rnnt
from s8bqat_jax.speech import ngram


def _candidates(*pairs):
  return [ngram.Candidate(*pair) for pair in pairs]


def test_unigrams_favor_the_task_and_add_up():
  texts, sentences = ['a b', 'a'], ['c c d', 'c e', 'cx cx cx']
  found = nbest.unigrams(texts, sentences, 2, ' abcde')
  assert found.keys() == {'a', 'b', 'c', 'd'}
  assert sum(map(math.exp, found.values())) == pytest.approx(1)
  assert found['a'] > found['b'] and found['c'] > found['d']


def test_unigrams_without_a_task_are_the_sentences():
  found = nbest.unigrams((), ['a a a b', 'c'], 2, ' abc')
  assert found.keys() == {'a', 'b'}
  assert math.exp(found['a']) == pytest.approx(0.75)


def test_what_is_left_without_weights_is_ordered_by_that():
  nbests = [_candidates(('a', -2.0), ('b a', -3.0)), []]
  found = nbest.unweighted(nbests, {'a': -0.5, 'b': -1.5})
  assert found == [_candidates(('b a', -1.0), ('a', -1.5)), []]
  assert nbest.unweighted(nbests, {}) == nbests


def test_oracle_takes_the_fewest_errors():
  lists = [
    [ngram.Candidate('a x', 0.0), ngram.Candidate('a b', -1.0)],
    [],
    [ngram.Candidate('c', 0.0)],
  ]
  assert nbest.oracle(lists, ['a b', 'a', 'c c']) == ['a b', '', 'c']


def test_the_oracle_of_nothing_is_nothing():
  nbests = [_candidates(('a b', -1.0), ('a', -0.5)), []]
  assert nbest.oracle(nbests, ['a b', 'b']) == ['a b', '']
  assert nbest.oracle([[], []], ['a', 'b']) == ['', '']


def test_tuning_finds_the_weight_that_mends_the_errors():
  language = ngram.NGram(['a b', 'a b', 'b a a'])
  # The recognizer prefers what the n-gram has never seen.
  nbests = [_candidates(('b b', -1.0), ('a b', -1.5)), []]
  assert nbest.choose(nbests) == ['b b', '']
  weight, bonus = nbest.tune(nbests, language, ['a b', ''])
  assert weight > 0
  assert nbest.choose(nbests, language, weight, bonus) == ['a b', '']


def test_a_model_of_no_use_changes_nothing():
  language = ngram.NGram(['c d'])
  nbests = [_candidates(('a b', 0.0), ('a', -5.0))]
  assert nbest.tune(nbests, language, ['a b']) == (0.0, 0.0)


def test_what_is_scored_is_not_counted():
  corpus = data.load('espeak:digits?utterances=2&cache=none')
  lines = ['new', corpus.texts_N[0], 'new', corpus.texts_N[1]]
  assert nbest.unheard(lines, corpus) == ['new', 'new']
  assert nbest.unheard(lines) == lines


def test_the_search_spells_words_of_the_lexicon_only():
  tokenizer = speech.CharTokenizer(' abc')
  model = recognizer.Recognizer(
    model=rnnt.RNNT(
      tokenizer.vocab_size,
      encoder_width=8,
      encoder_layers=1,
      predictor_width=8,
      embed_width=4,
      joint_width=8,
    ),
    log_mel=speech.LogMel(),
    normalization=speech.GlobalNorm(
      np.zeros(40, np.float32), np.ones(40, np.float32)
    ),
    tokenizer=tokenizer,
  )
  rng = np.random.default_rng(0)
  pcm = [rng.integers(-9000, 9000, n).astype(np.int16) for n in (6400, 9000)]
  corpus = data.Table(
    spec='noise',
    utt_ids_N=['u', 'v'],
    texts_N=['ab', 'not spelled in these letters'],
    speakers_N=['s', 's'],
    durations_N=np.array([0.4, 0.5625], np.float32),
    read=pcm.__getitem__,
    fingerprint='0' * 16,
  )
  weights = {'ab': -0.1, 'c': -2.0}
  automaton = ngram.lexicon(weights, tokenizer)
  search = nbest.Search(model, model.init(jax.random.key(0)), 4, 2)
  nbests = search(corpus, automaton)
  assert len(nbests) == 2 and all(nbests)
  texts = [c.text for nbest in nbests for c in nbest]
  assert {w for t in texts for w in t.split()} <= {'ab', 'c'}
  assert any(texts)
  for before, after in zip(nbests, nbest.unweighted(nbests, weights)):
    for b, a in zip(before, after):
      added = sum(weights[w] for w in b.text.split())
      assert b == (a.text, pytest.approx(a.score + added))


def test_files_go_by_folder_and_name_or_as_they_are_called():
  assert nbest.named_files(['runs/a/shipped.safetensors', 'large=b/x']) == {
    'a/shipped': 'runs/a/shipped.safetensors',
    'large': 'b/x',
  }
  with pytest.raises(ValueError, match='NAME=FILE'):
    nbest.named_files(['x/a/shipped.safetensors', 'y/a/shipped.safetensors'])


def test_lists_survive_the_disk(tmp_path):
  lists = [[ngram.Candidate('a "b"', -1.5)], []]
  path = tmp_path / 'new' / 'nbest.jsonl'
  nbest.write_lists(path, lists)
  assert nbest.read_lists(path) == lists
  assert [p.name for p in path.parent.iterdir()] == ['nbest.jsonl']
