"""Commands that score language models, or choose transcripts by them."""

import jax
import numpy as np
import pytest
import soundfile

from experiments import language_model
from experiments import recognizer as recognizer_lib
from s8bqat_jax.artifacts import packed_file
from s8bqat_jax.data import text as text_lib
from s8bqat_jax.speech import tokenizers
from tests.experiments import commands

LINES = ('a b', 'b b a c', 'c', 'a a a b c d')  # d is not in the vocabulary


@pytest.fixture(scope='module')
def models(tmp_path_factory):
  """{name: file}: of random weights, and of zeros, which know nothing."""
  folder = tmp_path_factory.mktemp('models')
  tokenizer = tokenizers.WordTokenizer.from_texts(['a b c <unk>'])
  about = {'width': 8, 'layers': 1, 'heads': 2, 'ffn_width': 16, 'tied': True}
  made = language_model.from_config(about, tokenizer)
  fresh = made.init(jax.random.key(0))
  zeros = jax.tree.map(np.zeros_like, fresh)
  for name, tree in (('fresh', fresh), ('zeros', zeros)):
    packed_file.save(
      folder / f'{name}.safetensors',
      jax.device_get(tree),
      config={language_model.CONFIG_KEY: made.to_config()},
      tokenizer=tokenizer.to_config(),
    )
  return {n: str(folder / f'{n}.safetensors') for n in ('fresh', 'zeros')}


def test_a_model_that_knows_nothing_guesses(models):
  corpus = text_lib.TextCorpus(LINES, '', '')
  metrics, nats_L = language_model.score(models['zeros'], corpus, 128, 64)
  made, *_ = language_model.load(models['zeros'])
  assert metrics['perplexity'] == pytest.approx(made.model.vocab_size)
  words = np.array([len(line.split()) + 1 for line in LINES])
  np.testing.assert_allclose(nats_L, words * np.log(made.model.vocab_size))
  assert metrics['words'] == 17 and metrics['unknown_words'] == 1


def test_the_command_compares_with_the_first(models, tmp_path):
  text = tmp_path / 'text.txt'
  text.write_text('\n'.join(LINES) + '\n')
  given = ','.join(f'{name}={path}' for name, path in models.items())
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


@pytest.fixture
def spoken(recognizer, params, tmp_path):
  """(packed recognizer, data spec, sentences): it hears nothing in noise."""
  rng = np.random.default_rng(0)
  rows = ['path,speaker,text']
  for i, text in enumerate(['ab c', 'b', 'c ab a', 'a b']):
    pcm = (2000 * rng.normal(size=9000)).astype(np.int16)
    soundfile.write(tmp_path / f'{i}.wav', pcm, 16000)
    rows.append(f'{i}.wav,{"xy"[i % 2]},{text}')
  (tmp_path / 'all.csv').write_text('\n'.join(rows) + '\n')
  own, tree = recognizer_lib.shipped(recognizer, params)
  letters = tokenizers.CharTokenizer.from_texts(['abc efg'])  # with a space
  packed_file.save(
    tmp_path / 'asr.safetensors',
    jax.device_get(tree),
    config={'recognizer': own.to_config()},
    tokenizer=letters.to_config(),
  )
  (tmp_path / 'sentences.txt').write_text('a b\nb c\nab\n')
  return (
    tmp_path / 'asr.safetensors',
    f'manifest:{tmp_path}/all.csv',
    tmp_path / 'sentences.txt',
  )


def test_a_recognizers_lists_are_ordered_by_them(models, spoken, tmp_path):
  asr, spec, sentences = spoken
  given = ','.join(f'{name}={path}' for name, path in models.items())
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
  )
  wer = {row['method']: row['metrics']['wer'] for row in found['rows']}
  systems = ['fresh', 'fresh, 4-gram', 'zeros', 'zeros, 4-gram', '4-gram']
  assert set(wer) == {'first of the list', 'oracle', *systems}
  # Tuned on what is scored, and free to leave the order as it is.
  for name in systems:
    assert wer['oracle'] <= wer[name] <= wer['first of the list']
  compared = {c['b'] for c in found['comparisons']}
  assert compared == set(wer) - {'fresh', 'oracle'}
  assert len(list((tmp_path / 'runs').iterdir())) == 1  # searched once


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
