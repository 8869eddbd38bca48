"""Word and character errors of each utterance, by minimum edit distance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jiwer
import numpy as np


class ErrorCounts(NamedTuple):
  """Integer arrays, one entry per utterance."""

  word_errors_N: np.ndarray
  words_N: np.ndarray  # of the reference
  char_errors_N: np.ndarray
  chars_N: np.ndarray  # of the reference, spaces included

  @property
  def wer(self) -> float:
    """Word error rate, a fraction (it may exceed 1)."""
    return _rate(self.word_errors_N, self.words_N, 'words')

  @property
  def cer(self) -> float:
    """Character error rate, a fraction."""
    return _rate(self.char_errors_N, self.chars_N, 'characters')


def count_errors(
  references: Sequence[str], hypotheses: Sequence[str]
) -> ErrorCounts:
  """Counts substitutions, deletions and insertions utterance by utterance.

  Words are what white space separates; case and punctuation count.

  Args:
    references: what was said; may be empty strings.
    hypotheses: what was recognized, in the same order.

  Returns:
    The counts.
  """
  if len(references) != len(hypotheses):
    raise ValueError(
      f'{len(references)} references but {len(hypotheses)} hypotheses'
    )
  references = [' '.join(text.split()) for text in references]
  hypotheses = [' '.join(text.split()) for text in hypotheses]
  return ErrorCounts(
    *_edits(jiwer.process_words, references, hypotheses),
    *_edits(jiwer.process_characters, references, hypotheses),
  )


def _edits(process, references, hypotheses):
  if not references:
    return np.zeros(0, np.int64), np.zeros(0, np.int64)
  output = process(list(references), list(hypotheses))
  errors = [
    sum(_chunk_errors(chunk) for chunk in chunks)
    for chunks in output.alignments
  ]
  units = [len(reference) for reference in output.references]
  return np.array(errors, np.int64), np.array(units, np.int64)


def _chunk_errors(chunk):
  if chunk.type == 'equal':
    return 0
  # An insertion has no reference units, a deletion no hypothesis units.
  return max(
    chunk.ref_end_idx - chunk.ref_start_idx,
    chunk.hyp_end_idx - chunk.hyp_start_idx,
  )


def _rate(errors_N, units_N, what):
  units = int(units_N.sum())
  if units == 0:
    raise ValueError(f'an error rate needs reference {what}: there are none')
  return int(errors_N.sum()) / units
