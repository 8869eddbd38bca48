"""The corpora of the protocol, where they are; see `corpora`."""

import collections

import numpy as np

from s8bqat_jax import data

_DIGITS = 'zero,one,two,three,four,five,six,seven,eight,nine'


def test_task_b_folds(corpora):
  csv = corpora('asc_commands') / 'metadata.csv'
  evaluated = collections.Counter()
  for fold in range(4):
    sides = [
      data.load(f'manifest:{csv}?folds=4&fold={fold}&split={s}')
      for s in ('train', 'dev', 'eval')
    ]
    assert [len(set(c.speakers_N)) for c in sides] == [15, 3, 6]
    assert sum(map(len, sides)) == 9600
    evaluated.update(set(sides[2].speakers_N))
  assert len(evaluated) == 24 and set(evaluated.values()) == {1}


def test_task_b_strings(corpora):
  csv = corpora('asc_commands') / 'metadata.csv'
  corpus = data.load(
    f'manifest:{csv}?speakers=01&texts={_DIGITS}&compose=3-6&snr=0-20'
  )
  words = collections.Counter(' '.join(corpus.texts_N).split())
  assert words == dict.fromkeys(_DIGITS.split(','), 10)
  sizes = [len(t.split()) for t in corpus.texts_N]
  assert min(sizes) >= 3 and max(sizes) <= 6
  seconds_per_word = corpus.durations_N.sum() / 100
  assert 0.4 < seconds_per_word < 1.3  # recordings of 1 s, trimmed


def test_task_c_splits(corpora):
  csv = corpora('speechocean762') / 'metadata.csv'
  sizes, minutes, speakers = [], [], set()
  for split in ('train', 'dev', 'eval'):
    corpus = data.load(
      f'manifest:{csv}?split={split}&shares=85,15,25&split_by=age'
    )
    sizes.append(len(corpus))
    minutes.append(corpus.durations_N.sum() / 60)
    assert not speakers & set(corpus.speakers_N)
    speakers |= set(corpus.speakers_N)
  assert sizes == [1700, 300, 500]
  assert len(speakers) == 125
  np.testing.assert_allclose(sum(minutes), 172.6, atol=0.1)
  utterance = corpus[0]
  assert len(utterance.audio_S) == round(corpus.durations_N[0] * 16_000)
  assert 0.01 < np.abs(utterance.audio_S).max() <= 1


def test_fsdd_is_resampled(corpora):
  csv = corpora('fsdd') / 'metadata.csv'
  corpus = data.load(f'manifest:{csv}?speakers=theo&texts=zero,one')
  assert len(corpus) == 100
  for i in range(0, 100, 20):
    got = len(corpus.pcm(i)) / 16_000
    np.testing.assert_allclose(got, corpus.durations_N[i], atol=1e-3)
  rest = data.load(
    f'manifest:{csv}?exclude_speakers=theo&split=train&shares=80,20,0'
  )
  assert len(set(rest.speakers_N)) == 4 and 'theo' not in rest.speakers_N
