import collections

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from s8bqat_jax import data
from s8bqat_jax.data import compose


@hypothesis.given(
  st.integers(0, 70), st.integers(1, 6), st.integers(0, 5), st.integers(0, 99)
)
def test_cut_uses_every_item_once(size, low, more, seed):
  high = low + more
  pieces = compose.cut(
    np.random.default_rng(seed), list(range(size)), low, high
  )
  assert sorted(sum(pieces, [])) == list(range(size))
  sizes = [len(p) for p in pieces]
  assert all(1 <= s <= high for s in sizes)
  short = [s for s in sizes if s < low]
  # Some number of pieces of low .. high may add up to size, or none may.
  possible = any(k * low <= size <= k * high for k in range(size + 1))
  assert len(short) <= (0 if possible and high >= 2 * low - 1 else 1)


def test_trim_keeps_the_word():
  rng = np.random.default_rng(0)
  pcm_S = rng.integers(-20, 20, 16_000).astype(np.int16)
  pcm_S[5000:9000] += (8000 * np.sin(np.arange(4000) * 0.1)).astype(np.int16)
  kept_S = compose.trim(pcm_S)
  assert 4000 <= len(kept_S) <= 4000 + 2 * 800 + 2 * 160
  start = int(np.flatnonzero(pcm_S == kept_S[0])[0])
  assert any(
    np.array_equal(pcm_S[s : s + len(kept_S)], kept_S)
    for s in np.flatnonzero(pcm_S == kept_S[0])
  )
  assert start <= 5000


@pytest.mark.parametrize('pcm_S', [np.zeros(0), np.zeros(100), np.zeros(5000)])
def test_trim_leaves_silence_alone(pcm_S):
  assert len(compose.trim(pcm_S.astype(np.int16))) == len(pcm_S)


def test_plan_uses_each_recording_once_a_pass():
  speakers = [f's{i % 3}' for i in range(40)]
  strings = compose.plan(speakers, 3, 5, 4, [0])
  used = collections.Counter(i for s in strings for i in s.recordings)
  assert used == dict.fromkeys(range(40), 4)
  for s in strings:
    assert len({speakers[i] for i in s.recordings}) == 1
    assert len(s.pauses) == len(s.recordings) + 1
  assert strings == compose.plan(speakers, 3, 5, 4, [0])
  assert strings != compose.plan(speakers, 3, 5, 4, [1])


def test_evaluation_strings(words_manifest):
  spec = f'manifest:{words_manifest}?folds=4&fold=1&compose=2-4'
  corpus = data.load(f'{spec}&split=eval')
  assert len(set(corpus.speakers_N)) == 2
  words = [w for t in corpus.texts_N for w in t.split()]
  assert collections.Counter(words) == dict.fromkeys(
    ('zero', 'one', 'two', 'go', 'stop'), 6
  )
  for i in range(len(corpus)):
    assert len(corpus.pcm(i)) == round(corpus.durations_N[i] * 16_000)
  train = data.load(f'{spec}&split=train&passes=2')
  assert not set(train.speakers_N) & set(corpus.speakers_N)
  assert len(' '.join(train.texts_N).split()) == 2 * 15 * 5
  # Speakers with as many recordings are still shuffled differently.
  assert train.texts_N[: len(corpus)] != corpus.texts_N


def test_a_string_is_its_recordings_and_silence(words_manifest):
  corpus = data.load(f'manifest:{words_manifest}?speakers=a&compose=3-3')
  plain = data.load(f'manifest:{words_manifest}?speakers=a')
  trimmed = {i: compose.trim(plain.pcm(i)) for i in range(len(plain))}
  strings = compose.plan(
    plain.speakers_N, 3, 3, 1, [0, int(plain.fingerprint, 16)]
  )
  assert len(strings) == len(corpus) == 5
  for k, string in enumerate(strings):
    pcm_S, at = corpus.pcm(k), string.pauses[0]
    assert not pcm_S[:at].any()
    for i, pause in zip(string.recordings, string.pauses[1:]):
      middle = slice(at + 80, at + len(trimmed[i]) - 80)
      np.testing.assert_array_equal(pcm_S[middle], trimmed[i][80:-80])
      at += len(trimmed[i])
      assert not pcm_S[at : at + pause].any()
      at += pause
    assert at == len(pcm_S)
    assert corpus.texts_N[k] == ' '.join(
      plain.texts_N[i] for i in string.recordings
    )


def test_noise_and_seed_change_strings_and_reading_does_not(words_manifest):
  base = f'manifest:{words_manifest}?split=train&compose=2-4'
  noisy = data.load(f'{base}&snr=0-10')
  np.testing.assert_array_equal(noisy.pcm(3), noisy.pcm(3))
  again = data.load(f'{base}&snr=0-10&cache=none')
  np.testing.assert_array_equal(noisy.pcm(3), again.pcm(3))
  clean = data.load(base)
  assert clean.texts_N == noisy.texts_N
  assert (clean.pcm(3) != noisy.pcm(3)).any()
  other = data.load(f'{base}&seed=1')
  assert other.texts_N != clean.texts_N
  assert len({c.fingerprint for c in (noisy, clean, other)}) == 3


def test_a_split_of_any_name_but_train_is_evaluation(words_manifest):
  base = f'manifest:{words_manifest}?compose=2-4&snr=0-10'
  named = data.load(f'{base}&split_column=age&split=5')
  unnamed = data.load(f'{base}&speakers=a')
  assert len(' '.join(named.texts_N).split()) == 15
  assert named.fingerprint == unnamed.fingerprint
  for i in range(len(named)):
    np.testing.assert_array_equal(named.pcm(i), unnamed.pcm(i))


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ('snr=0-10', 'snr= needs compose='),
    ('passes=2', 'passes= needs compose='),
    ('compose=x', 'LO-HI'),
    ('compose=0-3', 'LO-HI'),
    ('compose=1.5-3', 'LO-HI'),
    ('split=eval&compose=2-4&passes=2', 'enters one string only'),
    ('split=dev&compose=2-4&passes=3', 'enters one string only'),
    ('split_column=age&split=5&compose=2-4&passes=2', 'enters one string only'),
  ],
)
def test_errors(words_manifest, options, message):
  with pytest.raises(ValueError) as e:
    data.load(f'manifest:{words_manifest}?{options}')
  assert message in str(e.value)


def test_strings_need_speakers(make_manifest):
  csv = make_manifest([{'path': 'a.wav', 'text': 'x'}])
  with pytest.raises(ValueError, match='needs the speaker'):
    data.load(f'manifest:{csv}?compose=1-2')
