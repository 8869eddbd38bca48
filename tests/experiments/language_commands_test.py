"""Commands that score language models, or choose transcripts by them."""

import numpy as np
import pytest

from experiments import language_model
from s8bqat_jax.data import text as text_lib
from tests.experiments import commands

LINES = ('a b', 'b b a c', 'c', 'a a a b c d')  # d is not in the vocabulary


def test_a_model_that_knows_nothing_guesses(lms):
  corpus = text_lib.TextCorpus(LINES, '', '')
  metrics, nats_L = language_model.score(lms['zeros'], corpus, 128, 64)
  made, *_ = language_model.load(lms['zeros'])
  assert metrics['perplexity'] == pytest.approx(made.model.vocab_size)
  words = np.array([len(line.split()) + 1 for line in LINES])
  np.testing.assert_allclose(nats_L, words * np.log(made.model.vocab_size))
  assert metrics['words'] == 17 and metrics['unknown_words'] == 1


def test_the_command_compares_with_the_first(lms, tmp_path):
  text = tmp_path / 'text.txt'
  text.write_text('\n'.join(LINES) + '\n')
  given = ','.join(f'{name}={path}' for name, path in lms.items())
  found = commands.results(
    tmp_path / 'results',
    'experiments.perplexity',
    f'--lm={given}',
    f'--data=text:{text}',
    '--name=two',
  )
  fresh, zeros = (row['metrics']['perplexity'] for row in found['rows'])
  (compared,) = found['comparisons']
  assert (compared['a'], compared['b']) == ('fresh', 'zeros')
  assert compared['relative'] == pytest.approx(100 * (zeros / fresh - 1))
  low, high = compared['ci95']
  assert low <= compared['relative'] <= high
  assert found['corpus']['spec'] == f'text:{text}'


def test_a_recognizers_lists_are_ordered_by_them(lms, spoken, tmp_path):
  asr, spec, sentences = spoken
  given = ','.join(f'{name}={path}' for name, path in lms.items())
  found = commands.results(
    tmp_path / 'results',
    'experiments.rescore',
    f'--model={asr}',
    f'--dev={spec}',
    f'--data={spec}',
    f'--lm={given}',
    f'--sentences=text:{sentences}',
    f'--runs={tmp_path}/runs',
    '--beam=3',
    '--words=3',
  )
  wer = {row['method']: row['metrics']['wer'] for row in found['rows']}
  systems = ['fresh', 'fresh, 4-gram', 'zeros', 'zeros, 4-gram', '4-gram']
  assert set(wer) == {'first of the list', 'oracle', *systems}
  # Tuned on what is scored, and free to leave the order as it is.
  for name in systems:
    assert wer['oracle'] <= wer[name] <= wer['first of the list']
  compared = {c['b'] for c in found['comparisons']}
  assert compared == set(wer) - {'fresh', 'oracle'}
  assert len(list((tmp_path / 'runs').glob('nbest-*'))) == 1  # searched once


def test_a_lexicon_spells_what_is_recognized(spoken, tmp_path):
  asr, spec, sentences = spoken
  found = commands.results(
    tmp_path / 'results',
    'experiments.decode_lm',
    f'--model={asr}',
    f'--dev={spec}',
    f'--data={spec}',
    f'--texts={spec}',
    f'--sentences={sentences}',
    '--beam=3',
  )
  methods = [row['method'] for row in found['rows']]
  assert methods == ['greedy', 'beam 3', 'lexicon', 'lexicon, n-gram']
  assert found['lexicon_words'] == 4  # a, ab, b and c
  assert found['tuned']['on'] == spec
