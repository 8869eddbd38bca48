import numpy as np
import pytest

from s8bqat_jax import data
from s8bqat_jax.data import corpus as corpus_lib
from s8bqat_jax.data import speeds


def _corpus(bad=()):
  rng = np.random.default_rng(0)
  audio = [
    rng.integers(-9000, 9000, n).astype(np.int16) for n in (900, 1, 1700)
  ]
  reads = []

  def read(i):
    reads.append(i)
    if i in bad:
      raise corpus_lib.BadUtteranceError(f'row {i} is broken')
    return audio[i]

  table = corpus_lib.Table(
    spec='test',
    utt_ids_N=['a', 'b', 'c'],
    texts_N=['x'] * 3,
    speakers_N=['s'] * 3,
    durations_N=np.array([len(a) for a in audio], np.float32) / 16_000,
    read=read,
    fingerprint='f' * 16,
  )
  return table, reads


@pytest.mark.parametrize('cache', [None, 'none'])
def test_every_speed_is_change_speed(cache):
  corpus, _ = _corpus()
  read = speeds.at_speeds(corpus, (0.9, 1.0, 1.1), cache)
  for speed in (0.9, 1.0, 1.1):
    for i in range(3):
      want_S = speeds.change(corpus.pcm(i), speed)
      got_S = read(i, speed)
      assert got_S.dtype == np.int16
      np.testing.assert_array_equal(got_S, want_S)
      assert len(got_S) == np.ceil(len(corpus.pcm(i)) / speed)


def test_copies_are_made_once(cache):
  corpus, reads = _corpus()
  speeds.at_speeds(corpus, (0.9, 0.9, 1.0))(0, 0.9)
  assert sorted(reads) == [0, 1, 2]
  speeds.at_speeds(corpus, (0.9, 1.0))(2, 0.9)
  assert len(reads) == 3
  assert len(list(cache.iterdir())) == 1


def test_copies_go_where_the_spec_says(make_manifest, cache, tmp_path):
  file = make_manifest([{'path': 'a.wav', 'text': 'x', 'speaker': 's'}])
  for spec, kept in ((tmp_path / 'own', 1), ('none', 0)):
    corpus = data.load(f'manifest:{file}?cache={spec}')
    for part in (corpus, data.subset(corpus, [0]), data.concat([corpus] * 2)):
      assert len(speeds.at_speeds(part, (0.5,))(0, 0.5)) == 16_000
      found = list((tmp_path / 'own').glob('speed-*'))
      assert kept == 0 or found
    assert not cache.exists()
  assert len(found) == 3


def test_a_large_corpus_gets_no_copies(cache, monkeypatch):
  monkeypatch.setattr(speeds, '_MOST_BYTES', 100)
  corpus, _ = _corpus()
  assert len(speeds.at_speeds(corpus, (0.9,))(0, 0.9)) == 1000
  assert not cache.exists()


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path):
  file = tmp_path / 'file'
  file.write_text('in the way')
  corpus, _ = _corpus()
  assert len(speeds.at_speeds(corpus, (0.9,), str(file))(0, 0.9)) == 1000


def test_bad_audio_is_an_error_when_it_is_read():
  corpus, _ = _corpus(bad={1})
  read = speeds.at_speeds(corpus, (0.9, 1.0))
  assert len(read(0, 0.9)) == 1000
  for speed in (0.9, 1.0):
    with pytest.raises(corpus_lib.BadUtteranceError, match='row 1 is broken'):
      read(1, speed)
