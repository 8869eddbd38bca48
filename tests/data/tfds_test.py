import json
import pathlib
import re
import shutil
import sys
import tarfile

import numpy as np
import pytest

from s8bqat_jax import data
from s8bqat_jax.data import tfds

_RECORDED = pathlib.Path(__file__).parent / 'fixtures/librispeech_tfds.tar.gz'


@pytest.fixture
def recorded(tmp_path):
  """What the TFDS catalog's LibriSpeech builder wrote, see the recorder."""
  with tarfile.open(_RECORDED) as archive:
    # Python 3.11.4 and later ask for a filter, those before know of none.
    safe = {'filter': 'data'} if hasattr(tarfile, 'data_filter') else {}
    archive.extractall(tmp_path / 'tfds', **safe)
  return tmp_path / 'tfds'


@pytest.mark.parametrize('name', ['librispeech', 'librispeech/lazy_decode'])
def test_catalog_sets_are_read_without_tensorflow(recorded, name):
  corpus = data.load(
    f'tfds:{name}:dev_clean?dir={recorded}/array_record&case=lower'
  )
  assert sorted(corpus.utt_ids_N) == [
    f'{s}-{s}1-000{k}' for s in (174, 84) for k in (0, 1)
  ]
  for i, utt_id in enumerate(corpus.utt_ids_N):
    speaker, k = int(utt_id.split('-')[0]), int(utt_id[-1])
    assert corpus.speakers_N[i] == str(speaker)
    assert corpus.texts_N[i] == f'speaker {("one", "two")[k]} here'
    size = 1200 + 400 * k + speaker
    want_S = (8000 * np.sin(np.arange(size) * 0.02 * (k + 1))).astype(np.int16)
    np.testing.assert_array_equal(corpus.pcm(i), want_S)
    np.testing.assert_allclose(corpus.durations_N[i] * 16_000, size)
  assert 'tensorflow' not in sys.modules


def test_selection_works_as_for_a_manifest(recorded):
  spec = f'tfds:librispeech:dev_clean?dir={recorded}/array_record'
  some = data.load(f'{spec}&speakers=84')
  assert sorted(some.utt_ids_N) == ['84-841-0000', '84-841-0001']
  whole = data.load(spec)
  for i, utt_id in enumerate(some.utt_ids_N):
    j = whole.utt_ids_N.index(utt_id)
    np.testing.assert_array_equal(some.pcm(i), whole.pcm(j))


def test_any_corpus_is_prepared_and_read_back(words_manifest, tmp_path):
  corpora = {
    'train': data.load(f'manifest:{words_manifest}?speakers=a,b'),
    'test': data.load(f'manifest:{words_manifest}?speakers=c'),
  }
  folder = tfds.prepare(corpora, 'my_words', tmp_path / 'tfds')
  for split, corpus in corpora.items():
    read = data.load(f'tfds:my_words:{split}?dir={tmp_path}/tfds')
    assert sorted(read.utt_ids_N) == sorted(corpus.utt_ids_N)
    for i, utt_id in enumerate(read.utt_ids_N):
      j = corpus.utt_ids_N.index(utt_id)
      np.testing.assert_array_equal(read.pcm(i), corpus.pcm(j))
      assert read[i].text == corpus[j].text
      assert read[i].speaker == corpus[j].speaker
  # A second set in the same process.
  tfds.prepare({'test': corpora['test']}, 'other_words', tmp_path / 'tfds')
  # TFDS itself reads it too.
  import tensorflow_datasets

  source = tensorflow_datasets.builder_from_directory(folder).as_data_source()
  assert len(source['test']) == 15
  assert source['test'][0]['audio'].dtype == np.int16
  assert 'tensorflow' not in sys.modules


def test_a_copied_set_is_the_same_corpus(words_manifest, tmp_path):
  corpora = {'train': data.load(f'manifest:{words_manifest}')}
  tfds.prepare(corpora, 'my_words', tmp_path / 'here')
  # Without the times of the files.
  shutil.copytree(
    tmp_path / 'here', tmp_path / 'there', copy_function=shutil.copy
  )
  here, there = (
    data.load(f'tfds:my_words:train?dir={tmp_path}/{name}')
    for name in ('here', 'there')
  )
  assert here.fingerprint == there.fingerprint


def test_samples_that_are_not_finite(recorded, monkeypatch):
  decode = tfds.AudioField.decode

  def broken(self, value):
    samples, rate = decode(self, value)
    return np.where(np.arange(len(samples)) == 3, np.nan, samples), rate

  corpus = data.load(
    f'tfds:librispeech/lazy_decode:dev_clean?dir={recorded}/array_record'
  )
  monkeypatch.setattr(tfds.AudioField, 'decode', broken)
  with pytest.raises(data.BadUtteranceError, match='samples that are not fin'):
    corpus.pcm(0)


def test_a_set_that_is_not_prepared_names_the_extra(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, 'tensorflow', None)
  with pytest.raises(ImportError, match=r's8bqat_jax\[tfds\]') as e:
    data.load(f'tfds:librispeech:dev_clean?dir={tmp_path}')
  assert f'not prepared in {tmp_path}' in str(e.value)


def test_a_corrupt_record_is_named(recorded, monkeypatch):
  spec = f'tfds:librispeech/lazy_decode:dev_clean?dir={recorded}/array_record'
  corpus, parse = data.load(spec), tfds.Records.parse

  def damaged(self, index):
    record = dict(parse(self, index))
    return record | {'speech': record['speech'][:9]} if index == 2 else record

  monkeypatch.setattr(tfds.Records, 'parse', damaged)
  message = re.escape(f'{spec}: record 2 of ') + '.*prepare the set again'
  with pytest.raises(data.BadUtteranceError, match=message):
    corpus.pcm(2)
  corpus.pcm(1)
  with pytest.raises(ValueError, match='cache=none: record 2 of '):
    data.load(f'{spec}&cache=none')


def test_errors(recorded):
  base = recorded / 'array_record'
  with pytest.raises(ValueError, match="no split 'train'; there are dev_clean"):
    data.load(f'tfds:librispeech:train?dir={base}')
  with pytest.raises(ValueError, match='prepared as tfrecord'):
    data.load(f'tfds:librispeech:dev_clean?dir={recorded}/tfrecord')
  folder = base / 'librispeech' / 'default' / '2.1.1'
  features = json.loads((folder / 'features.json').read_text())
  del features['featuresDict']['features']['speech']
  (folder / 'features.json').write_text(json.dumps(features))
  with pytest.raises(ValueError, match='no audio feature.*there are .*text'):
    data.load(f'tfds:librispeech:dev_clean?dir={base}')
  next(folder.glob('*dev_clean*')).unlink()
  with pytest.raises(ValueError, match='0 of the 1 files'):
    data.load(f'tfds:librispeech:dev_clean?dir={base}')
