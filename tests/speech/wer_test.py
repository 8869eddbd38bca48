"""Error counts against a textbook edit distance."""

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from s8bqat_jax.speech import wer


def _distance(reference, hypothesis):
  """Levenshtein distance by dynamic programming, cell by cell."""
  table = np.zeros([len(reference) + 1, len(hypothesis) + 1], int)
  table[:, 0] = np.arange(len(reference) + 1)
  table[0] = np.arange(len(hypothesis) + 1)
  for i, r in enumerate(reference, start=1):
    for j, h in enumerate(hypothesis, start=1):
      table[i, j] = min(
        table[i - 1, j] + 1,
        table[i, j - 1] + 1,
        table[i - 1, j - 1] + (r != h),
      )
  return table[-1, -1]


_sentences = st.lists(st.sampled_from(['a', 'b', 'ab', 'abc']), max_size=6)


@hypothesis.given(st.lists(st.tuples(_sentences, _sentences), max_size=4))
def test_equals_edit_distance_per_utterance(pairs):
  references = [' '.join(r) for r, _ in pairs]
  hypotheses = [' '.join(h) for _, h in pairs]
  counts = wer.count_errors(references, hypotheses)
  assert counts.word_errors_N.tolist() == [_distance(r, h) for r, h in pairs]
  assert counts.words_N.tolist() == [len(r) for r, _ in pairs]
  assert counts.char_errors_N.tolist() == [
    _distance(r, h) for r, h in zip(references, hypotheses, strict=True)
  ]
  assert counts.chars_N.tolist() == [len(r) for r in references]


def test_rates_pool_over_utterances():
  counts = wer.count_errors(
    ['one two three', 'four', ''], ['one too three', 'four five', 'six']
  )
  assert counts.word_errors_N.tolist() == [1, 1, 1]
  assert counts.wer == 3 / 4
  assert counts.cer == (1 + 5 + 3) / (13 + 4)


def test_white_space_does_not_count():
  counts = wer.count_errors([' one  two\n'], ['one two'])
  assert counts.wer == counts.cer == 0.0


def test_degenerate_inputs():
  with pytest.raises(ValueError, match='2 references but 1'):
    wer.count_errors(['a', 'b'], ['a'])
  with pytest.raises(ValueError, match='reference words: there are none'):
    _ = wer.count_errors([], []).wer
  assert wer.count_errors([''], ['']).word_errors_N.tolist() == [0]
