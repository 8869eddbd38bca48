"""Rescoring as the language model experiment does it."""

import json
import pathlib
import shutil

import ml_collections
import numpy as np
import pytest

from experiments import lm_matrix, lm_rescoring, rescoring, scoring
from experiments.configs import lm
from s8bqat_jax.data import text as text_lib
from s8bqat_jax.speech import mixture, ngram, significance

TEXT = text_lib.TextCorpus(('a b', 'b c', 'ab'), '', 'text')
# Of the four utterances that `spoken` says: the right one comes second.
LISTS = [
  [ngram.Candidate('ab b', -1.0), ngram.Candidate('ab c', -1.1)],
  [ngram.Candidate('a', -1.0), ngram.Candidate('b', -1.1)],
  [ngram.Candidate('c ab', -1.0), ngram.Candidate('c ab a', -1.1)],
  [],
]
# And of the two of development data.
DEV = [
  [ngram.Candidate('b a', -1.0), ngram.Candidate('b c', -1.5)],
  [ngram.Candidate('c b', -1.0), ngram.Candidate('c a', -1.5)],
]


@pytest.fixture
def config(spoken):
  asr, spec, _ = spoken
  folder = pathlib.Path(asr).parent
  dev = 'path,speaker,text\n0.wav,z,b c\n3.wav,z,c a\n'
  (folder / 'dev.csv').write_text(dev)
  section = lm.default().rescore
  section.recognizer, section.eval = str(asr), spec
  section.dev = f'manifest:{folder}/dev.csv'
  section.update({'beam': 3, 'words': 3})
  return ml_collections.ConfigDict({'rescore': section})


@pytest.fixture
def heard(monkeypatch):
  """The lists, as if a recognizer had made them."""
  monkeypatch.setattr(rescoring.Rescorer, 'searched', (DEV, LISTS))
  monkeypatch.setattr(rescoring.Rescorer, 'lists', (DEV, LISTS))


def test_a_file_gets_its_error_rates_once(
  config, heard, lms, tmp_path, monkeypatch
):
  shutil.copy(lms['fresh'], tmp_path / 'shipped.safetensors')
  made = lm_rescoring.make(config, TEXT, tmp_path / 'lists')
  assert not made.done(tmp_path / 'shipped.safetensors')
  found = made.evaluate(tmp_path / 'shipped.safetensors')
  assert made.done(tmp_path / 'shipped.safetensors')
  errors_KxN = np.load(found[lm_rescoring.ERRORS])
  first, count, oracle = made.references()
  # Two of seven words, one of one, one more, and what was not heard at all.
  assert first['wer'] == pytest.approx(100 * 5 / 8)
  assert oracle['wer'] == pytest.approx(100 * 2 / 8)
  assert count['method'] == '4-gram'
  for key, errors_N in zip(('wer', 'wer_mixed'), errors_KxN):
    assert errors_N.shape == (4,)
    assert found[key] == pytest.approx(100 * errors_N.sum() / 8)
    assert oracle['wer'] <= found[key]
    assert {f'{key}_weight', f'{key}_word_bonus', f'{key}_ci95'} <= set(found)
  assert 0 < found['wer_mixed_share'] < 1 and 'wer_share' not in found
  assert found['rescored_words'] == 8
  monkeypatch.setattr(rescoring.Rescorer, 'chosen', None)
  assert made.evaluate(tmp_path / 'shipped.safetensors') == found
  json.dumps(found)


def test_lists_are_searched_once(config, lms, tmp_path, monkeypatch):
  folder = tmp_path / 'lists'
  made = lm_rescoring.make(config, TEXT, folder)
  searched = made.references()
  assert len(list(folder.iterdir())) == 2
  monkeypatch.setattr(rescoring.nbest, 'write_lists', None)
  assert lm_rescoring.make(config, TEXT, folder).references() == searched


def rescorer(config, folder, **options):
  section = config.rescore
  return rescoring.Rescorer(
    section.recognizer, section.dev, section.eval, folder, beam=3, **options
  )


def test_lists_are_of_the_texts_words(config, tmp_path):
  heard = text_lib.TextCorpus(('b', 'b', 'ab ab ab', 'c'), '', 'text')
  free = rescorer(config, tmp_path)
  lists = rescorer(config, tmp_path, text=heard, words=2)
  assert 'b' in lists.scored.texts_N and lists.lines == ['ab ab ab', 'c']
  said = lambda of: {
    w for found in of.searched for n in found for c in n for w in c.text.split()
  }
  assert said(lists) <= {'ab', 'c'}
  assert said(free) - {'ab', 'c'}
  # With other words they are other lists.
  others = rescorer(config, tmp_path, text=heard, words=1)
  keys = [str(of.about(of.dev)) for of in (free, lists, others)]
  assert len(set(keys)) == 3
  # What the words weighed in the search is gone.
  weight = lists._weights
  for with_it, without in zip(lists.searched[1], lists.lists[1]):
    expected = [(t, x - sum(weight[w] for w in t.split())) for t, x in with_it]
    for (text, score), found in zip(sorted(expected), sorted(without)):
      assert found == (text, pytest.approx(score))


def test_words_need_a_text(config, tmp_path):
  with pytest.raises(ValueError, match='give both'):
    rescorer(config, tmp_path, words=2)


def test_intervals_are_over_articles(config, heard, tmp_path):
  text = tmp_path / 'text.txt'
  text.write_text(' = A = \nab c\nb\n = B = \nc ab a\n')
  config.rescore.text = f'text:{text}'
  made = lm_rescoring.make(config, TEXT, tmp_path / 'lists')
  assert list(made._clusters_N) == ['0', '0', '1', 'a b']
  assert made.references()[0]['articles'] == 3


def test_cells_are_compared_over_their_seeds(config, heard, tmp_path):
  made = lm_rescoring.make(config, TEXT, tmp_path)
  a, b = lm_matrix.Cell('float'), lm_matrix.Cell('admm', 3)
  errors = {
    (a, 0): [[1, 1, 1, 2], [0, 0, 0, 0]],
    (a, 1): [[2, 1, 1, 2], [0, 0, 0, 0]],
    (b, 0): [[1, 0, 1, 2], [1, 0, 0, 0]],
    (b, 1): [[1, 0, 0, 2], [1, 0, 0, 0]],
    (b, 7): [[9, 9, 9, 9], [9, 9, 9, 9]],  # a seed that only one has
  }
  metrics = {}
  for (cell, seed), of in errors.items():
    path = tmp_path / f'{cell.method}{seed}.npy'
    np.save(path, np.array(of))
    metrics[cell, seed] = {lm_rescoring.ERRORS: path}
  asked = [(a, b), (a, lm_matrix.Cell('admm', 2))]
  # Without one that would be relative to no errors.
  (row,) = made.comparisons(metrics, asked, (0, 1))
  assert (row['a'], row['b']) == ('float', 'admm, 3')
  assert row['metric'] == 'wer' and row['seeds'] == [0, 1]
  np.testing.assert_allclose(row['a_per_seed'], [100 * 5 / 8, 100 * 6 / 8])
  np.testing.assert_allclose(row['b_per_seed'], [100 * 4 / 8, 100 * 3 / 8])
  np.testing.assert_allclose(row['relative'], 100 * (7 - 11) / 11)
  expected = significance.compare(
    [errors[a, s][0] for s in (0, 1)],
    [errors[b, s][0] for s in (0, 1)],
    [2, 1, 3, 2],
    ['ab c', 'b', 'c ab a', 'a b'],
  )
  assert row['ci95'] == scoring.relative(expected)['ci95']
  assert row['complete'] is False  # two seeds carry no claim


def test_weights_are_those_of_development_data(config, heard, tmp_path):
  lists = rescorer(config, tmp_path)
  # It knows the development transcripts, and is wrong about all the others.
  words = lambda text, x: np.full(len(text.split()) + 1, x)
  right = {'b c': -0.1, 'c a': -0.1, 'ab b': -0.1, 'a': -0.1, 'c ab': -0.1}
  known = mixture.Known(
    {text: words(text, right.get(text, -9.0)) for text in lists.texts}
  )
  found = lists.chosen(known)
  assert found.about['weight'] > 0
  assert [h.hypothesis for h in found.hypotheses] == ['ab b', 'a', 'c ab', '']
  assert [h.reference for h in found.hypotheses] == lists.scored.texts_N
  # And a mixture's share is the one that fits them.
  useless = mixture.Known({t: words(t, -20.0) for t in lists.texts})
  assert lists.mixed(known, useless).share > 0.9
  assert lists.mixed(useless, known).share < 0.1


def test_no_recognizer_no_rescoring(config, tmp_path):
  config.rescore.recognizer = ''
  assert lm_rescoring.make(config, TEXT, tmp_path) is None


def test_a_recognizer_that_is_not_there(config, tmp_path):
  config.rescore.recognizer = str(tmp_path / 'none.safetensors')
  with pytest.raises(FileNotFoundError, match='rescore.recognizer.*packed'):
    lm_rescoring.make(config, TEXT, tmp_path)


def test_what_is_tuned_on_is_not_scored(config, tmp_path):
  _, _, file = config.rescore.eval.partition(':')
  copy = pathlib.Path(file).with_name('copy.csv')
  shutil.copy(file, copy)
  config.rescore.dev = f'manifest:{copy}'
  with pytest.raises(ValueError, match='tuned on data that nothing'):
    lm_rescoring.make(config, TEXT, tmp_path)
