import numpy as np
import pytest

from s8bqat_jax.data import corpus as corpus_lib


def _table(name='t', sizes=(3, 0, 5)) -> corpus_lib.Table:
  return corpus_lib.Table(
    spec=name,
    utt_ids_N=[f'{name}{i}' for i in range(len(sizes))],
    texts_N=[f'text {i}' for i in range(len(sizes))],
    speakers_N=['s'] * len(sizes),
    durations_N=np.array(sizes, np.float32) / corpus_lib.SAMPLE_RATE,
    read=lambda i: np.full(sizes[i], 1000 * i - 32768, np.int16),
    fingerprint=corpus_lib.fingerprint([name, sizes]),
  )


def test_an_utterance_is_the_float_view_of_its_samples():
  table = _table()
  utterance = table[2]
  assert (utterance.utt_id, utterance.text) == ('t2', 'text 2')
  assert utterance.audio_S.dtype == np.float32
  np.testing.assert_array_equal(
    utterance.audio_S * 32768, table.pcm(2).astype(float)
  )
  assert table[0].audio_S.min() == -1
  assert len(table[1].audio_S) == 0


def test_iterating_ends_and_negative_indices_are_errors():
  table = _table()
  assert [u.utt_id for u in table] == ['t0', 't1', 't2']
  for index in (-1, 3):
    with pytest.raises(IndexError, match='of 3'):
      table.pcm(index)


def test_it_is_a_corpus():
  assert isinstance(_table(), corpus_lib.Corpus)


def test_subset_and_concat_read_the_right_rows():
  a, b = _table('a'), _table('b', (7, 2))
  both = corpus_lib.concat([a, b])
  assert len(both) == 5
  assert both.utt_ids_N == ['0/a0', '0/a1', '0/a2', '1/b0', '1/b1']
  for i, (part, j) in enumerate([(a, 0), (a, 1), (a, 2), (b, 0), (b, 1)]):
    np.testing.assert_array_equal(both.pcm(i), part.pcm(j))
  some = corpus_lib.subset(both, [4, 0])
  assert list(some.texts_N) == ['text 1', 'text 0']
  np.testing.assert_array_equal(some.pcm(0), b.pcm(1))
  np.testing.assert_array_equal(some.durations_N, both.durations_N[[4, 0]])


def test_a_subset_may_be_a_mask():
  table = _table()
  for mask in ([True, False, True], np.array([True, False, True])):
    some = corpus_lib.subset(table, mask)
    assert list(some.utt_ids_N) == ['t0', 't2']
    assert some.fingerprint == corpus_lib.subset(table, [0, 2]).fingerprint
  assert len(corpus_lib.subset(table, [False] * 3)) == 0
  assert len(corpus_lib.subset(table, [])) == 0
  assert corpus_lib.subset(table, range(1, 3)).utt_ids_N == ['t1', 't2']


@pytest.mark.parametrize(
  ('indices', 'message'),
  [
    ([True, False], 'mask of 2.*3 utterances'),
    ([0, -1], 'row -1.*0..2'),
    (np.array([0, 3]), 'row 3.*0..2'),
    ([0.0, 1.0], 'float64'),
    ([[0, 1]], r'int\d+ \(1, 2\)'),
  ],
)
def test_rows_that_are_not_there_are_refused(indices, message):
  with pytest.raises(ValueError, match=f't: {message}'):
    corpus_lib.subset(_table(), indices)


def test_a_slice_names_subset():
  with pytest.raises(TypeError, match=r'subset\(corpus, range\(0, 2\)\)'):
    _table()[:2]


def test_fingerprints_follow_content():
  a = _table('a')
  assert corpus_lib.subset(a, [0, 1]).fingerprint == (
    corpus_lib.subset(a, [0, 1]).fingerprint
  )
  assert corpus_lib.subset(a, [0, 1]).fingerprint != (
    corpus_lib.subset(a, [1, 0]).fingerprint
  )
  assert corpus_lib.fingerprint(['ab', 'c']) != (
    corpus_lib.fingerprint(['a', 'bc'])
  )


def test_concat_of_nothing_is_an_error():
  with pytest.raises(ValueError, match='at least one'):
    corpus_lib.concat([])
