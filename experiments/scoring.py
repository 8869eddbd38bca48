"""Decoding a corpus and counting errors, in training as in evaluation."""

from __future__ import annotations

import functools
import json
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from tqdm import tqdm

from experiments import results
from experiments.recognizer import Recognizer
from s8bqat_jax import data, files
from s8bqat_jax.speech import significance, wer


class Hypothesis(NamedTuple):
  """One recognized utterance; a line of a hypothesis file."""

  utt_id: str
  speaker: str
  reference: str
  hypothesis: str


def of_texts(corpus: data.Corpus, texts: Sequence[str]) -> list[Hypothesis]:
  """Returns what a corpus says beside one text for each utterance."""
  columns = corpus.utt_ids_N, corpus.speakers_N, corpus.texts_N, texts
  return [Hypothesis(*row) for row in zip(*columns, strict=True)]


class NoLabels:
  """Evaluation compares texts, so unknown characters are no obstacle."""

  def encode(self, text: str) -> list[int]:
    del text
    return []


class Scorer:
  """Decodes one corpus with one recognizer, under any weights.

  The decoder is compiled once per batch shape, whatever the weights.
  """

  def __init__(
    self,
    recognizer: Recognizer,
    corpus: data.Corpus,
    batch_size: int = 32,
    beam: int = 1,
  ):
    self.recognizer, self.corpus = recognizer, corpus
    self._loader = data.make_loader(
      corpus,
      NoLabels(),
      batch_size=batch_size,
      # A shape less to compile is worth more than the padding of few batches.
      num_buckets=1 if len(corpus) <= 32 * batch_size else 2,
      train=False,
      process_index=jax.process_index(),
      process_count=jax.process_count(),
    )
    search = functools.partial(recognizer.beam_search, beam=beam)
    self._decode = jax.jit(recognizer.greedy if beam == 1 else search)

  def hypotheses(
    self, params: Any, progress: bool = False
  ) -> Iterator[Hypothesis]:
    """Yields this process's utterances, recognized."""
    steps = self._loader.steps_per_epoch
    batches = self._loader.batches(0, steps)
    for batch in tqdm(batches, total=steps, unit='batch', disable=not progress):
      decoded = jax.device_get(
        self._decode(params, batch['audio_BxS'], batch['audio_lengths_B'])
      )
      for row, index in enumerate(batch['indices_B'].tolist()):
        if index >= 0:
          labels = decoded.labels_BxN[row, : decoded.lengths_B[row]]
          yield Hypothesis(
            self.corpus.utt_ids_N[index],
            self.corpus.speakers_N[index],
            self.corpus.texts_N[index],
            self.recognizer.tokenizer.decode(labels.tolist()),
          )

  def rates(self, params: Any) -> dict[str, float]:
    """Returns wer and cer in percent over all processes, and the words."""
    counts = count(list(self.hypotheses(params)))
    totals = np.array([x.sum() for x in counts], np.int64)
    if jax.process_count() > 1:
      totals = multihost_utils.process_allgather(totals).sum(0)
    word_errors, words, char_errors, chars = totals.tolist()
    return {
      'wer': 100 * word_errors / max(words, 1),
      'cer': 100 * char_errors / max(chars, 1),
      'words': words,
    }


def count(hypotheses: Sequence[Hypothesis]) -> wer.ErrorCounts:
  """Returns the error counts of each utterance."""
  return wer.count_errors(
    [h.reference for h in hypotheses], [h.hypothesis for h in hypotheses]
  )


def summarize(hypotheses: Sequence[Hypothesis]) -> dict[str, Any]:
  """Returns wer, its speaker-clustered ci95, cer (all in percent), words."""
  counts = count(hypotheses)
  interval = significance.rate_interval(
    counts.word_errors_N, counts.words_N, [h.speaker for h in hypotheses]
  )
  return {
    'wer': 100 * counts.wer,
    'ci95': results.percent(interval),
    'cer': 100 * counts.cer,
    'words': int(counts.words_N.sum()),
    'utterances': len(hypotheses),
    'speakers': len({h.speaker for h in hypotheses}),
  }


def relative(found: significance.Comparison) -> dict[str, Any]:
  """Returns how far a system is from another, as results files have it."""
  return {
    'relative': 100 * found.relative,
    'ci95': results.percent(found.interval),
    'p': found.p_bootstrap,
    'p_mapsswe': found.p_mapsswe,
    'resolves': results.finite(100 * found.resolves),
  }


def write_hypotheses(
  path: os.PathLike | str, hypotheses: Sequence[Hypothesis]
) -> None:
  """Writes one JSON line an utterance, in the order of their names."""
  path = pathlib.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  lines = [json.dumps(h._asdict()) for h in sorted(hypotheses)]
  files.write_text(path, ''.join(line + '\n' for line in lines))


def read_hypotheses(path: os.PathLike | str) -> list[Hypothesis]:
  """Returns what `write_hypotheses` wrote."""
  lines = pathlib.Path(path).read_text().splitlines()
  return [Hypothesis(**json.loads(line)) for line in lines]
