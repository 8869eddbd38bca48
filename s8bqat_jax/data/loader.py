"""From a corpus and a tokenizer to batches, read ahead in a thread."""

import dataclasses
import itertools
import queue
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

import numpy as np
from absl import logging

from s8bqat_jax.data import batching, speeds, waveform
from s8bqat_jax.data import corpus as corpus_lib
from s8bqat_jax.data import perturb as perturb_lib

Batch = dict[str, np.ndarray]


class Tokenizer(Protocol):
  """The part of a tokenizer that batching needs."""

  def encode(self, text: str) -> list[int]: ...


@dataclasses.dataclass
class Skipped:
  """Utterances that training did without, and why; grows while reading.

  Attributes:
    reasons: By utterance.
    unusable: How many of them for their audio, which reading found out.
  """

  reasons: dict[str, str] = dataclasses.field(default_factory=dict)
  unusable: int = 0

  def add(self, utt_id: str, reason: str) -> None:
    """Counts an utterance of unusable audio, once."""
    if utt_id not in self.reasons:
      self.reasons[utt_id] = reason
      self.unusable += 1
      logging.warning('skipped %s: %s', utt_id, reason)

  def go_on(self, reasons: Mapping[str, str]) -> None:
    """Takes over what an interrupted training had left out."""
    self.unusable += len(reasons.keys() - self.reasons.keys())
    self.reasons.update(reasons)

  def __len__(self) -> int:
    return len(self.reasons)


def encode_texts(
  corpus: corpus_lib.Corpus, tokenizer: Tokenizer
) -> list[list[int]]:
  """Encodes every transcript; a character without a label is an error.

  Args:
    corpus: Whose transcripts.
    tokenizer: Anything with `encode`.

  Returns:
    Labels of each utterance.
  """
  labels_N = []
  for utt_id, text in zip(corpus.utt_ids_N, corpus.texts_N):
    try:
      labels_N.append(list(tokenizer.encode(text)))
    except ValueError as e:
      raise ValueError(f'{corpus.spec}: {utt_id}: {e}') from e
  return labels_N


@dataclasses.dataclass(frozen=True, eq=False)
class Loader:
  """Batches of a corpus by global step.

  `loader.batches(start)` is the same sequence whatever came before, so a run
  that was interrupted after step k - 1 goes on with `batches(k)`.

  Attributes:
    corpus: What is read.
    labels_N: Labels of each utterance.
    plan: Who is in which batch.
    perturb: What is drawn for each utterance, None for nothing.
    at_speed: `(index, speed) -> int16 [S]`, how audio is read under `perturb`.
    strict: True raises on unusable audio (evaluation, where every utterance
      counts); False leaves it out and reports it in `skipped`.
    max_skipped: Share of the corpus whose audio may be unusable before that is
      an error.
    process_index: This process.
    process_count: Processes that share each global batch.
    prefetch: Batches read ahead; 0 reads in the caller's thread.
    skipped: Utterances left out so far.
  """

  corpus: corpus_lib.Corpus
  labels_N: Sequence[Sequence[int]]
  plan: batching.Plan
  perturb: perturb_lib.Perturbation | None = None
  at_speed: speeds.AtSpeed | None = None
  strict: bool = False
  max_skipped: float = 0.1
  process_index: int = 0
  process_count: int = 1
  prefetch: int = 4
  skipped: Skipped = dataclasses.field(default_factory=Skipped)

  @property
  def steps_per_epoch(self) -> int:
    """Batches of an epoch."""
    return self.plan.steps_per_epoch

  def make(self, planned: batching.PlannedBatch) -> Batch:
    """Reads one planned batch (this process's rows).

    Args:
      planned: Of the plan.

    Returns:
      `audio_BxS` int16, `audio_lengths_B`, `labels_BxU` and `label_lengths_B`
      int32, `indices_B` int32 (-1: padding) and `weights_B` float32; with
      `perturb` also what `waveform.perturbed` needs.
    """
    rows_B = batching.shard(planned, self.process_index, self.process_count)
    size, bucket = len(rows_B), planned.bucket
    batch = empty_batch(size, bucket, self.perturb)
    for row, index in enumerate(rows_B.tolist()):
      if index < 0:
        continue
      draw = None
      if self.perturb is not None:
        draw = self.perturb.draw(self.plan.seed, planned.epoch, index)
        waveform.set_draw(batch, row, draw)
      pcm_S = self._read(index, draw, planned)
      if pcm_S is None:
        continue
      labels = self.labels_N[index]
      batch['audio_BxS'][row, : len(pcm_S)] = pcm_S
      batch['audio_lengths_B'][row] = len(pcm_S)
      batch['labels_BxU'][row, : len(labels)] = labels
      batch['label_lengths_B'][row] = len(labels)
      batch['indices_B'][row] = index
      batch['weights_B'][row] = 1
    return batch

  def _read(
    self,
    index: int,
    draw: perturb_lib.Draw | None,
    planned: batching.PlannedBatch,
  ) -> np.ndarray | None:
    try:
      if draw is None or self.at_speed is None:
        pcm_S = self.corpus.pcm(index)
      else:
        pcm_S = self.at_speed(index, draw.speed)
      if len(pcm_S) > planned.bucket.samples:
        raise corpus_lib.BadUtteranceError(
          f'{self.corpus.utt_ids_N[index]}: {len(pcm_S)} samples, expected at '
          f'most {planned.bucket.samples} from its duration of '
          f'{self.corpus.durations_N[index]:.3f} s'
        )
      return pcm_S
    except corpus_lib.BadUtteranceError as e:
      if self.strict:
        raise
      self.skipped.add(self.corpus.utt_ids_N[index], str(e))
      unusable = self.skipped.unusable
      if unusable > max(1.0, self.max_skipped * len(self.corpus)):
        raise ValueError(
          f'{self.corpus.spec}: {unusable} of {len(self.corpus)} utterances '
          f'are unusable, the last: {e}'
        ) from e
      return None

  def batches(self, start: int = 0, stop: int | None = None) -> Iterator[Batch]:
    """Yields the batches of global steps start .. stop - 1.

    Args:
      start: First global step.
      stop: End; None never ends. `steps_per_epoch` makes one pass.

    Yields:
      As `make`.
    """
    # Not `map`, which takes a StopIteration of a reader for the end.
    made = (self.make(p) for p in self.plan.batches(start, stop))
    return read_ahead(made, self.prefetch) if self.prefetch else made


def read_ahead(items: Iterator[Batch], depth: int) -> Iterator[Batch]:
  """Runs an iterator in a thread, `depth` items ahead.

  Args:
    items: Consumed in the thread.
    depth: How many may wait.

  Yields:
    The items, in order. An exception of the iterator is raised here; closing
    the generator ends the thread.
  """
  ready: queue.Queue = queue.Queue(depth)
  closed = threading.Event()

  def put(entry) -> bool:
    while not closed.is_set():
      try:
        ready.put(entry, timeout=0.1)
        return True
      except queue.Full:
        continue
    return False

  def work():
    try:
      for item in items:
        if not put((item, None)):
          return
      put((None, None))
    except BaseException as e:  # goes to the reader, whatever it is
      put((None, e))

  threading.Thread(target=work, name='read-ahead', daemon=True).start()
  try:
    while True:
      item, error = ready.get()
      if error is not None:
        raise error
      if item is None:
        return
      yield item
  finally:
    closed.set()


def empty_batch(
  size: int,
  bucket: batching.Bucket,
  perturb: perturb_lib.Perturbation | None = None,
) -> Batch:
  """Returns a batch of rows that hold nothing yet.

  Args:
    size: Rows.
    bucket: Longest audio and labels.
    perturb: As for `make_loader`.
  """
  batch: Batch = {
    'audio_BxS': np.zeros((size, bucket.samples), np.int16),
    'audio_lengths_B': np.zeros(size, np.int32),
    'labels_BxU': np.zeros((size, bucket.labels), np.int32),
    'label_lengths_B': np.zeros(size, np.int32),
    'indices_B': np.full(size, -1, np.int32),
    'weights_B': np.zeros(size, np.float32),
  }
  if perturb is not None:
    batch |= waveform.no_draws(size, noisy=perturb.snr_db is not None)
  return batch


def make_loader(
  corpus: corpus_lib.Corpus,
  tokenizer: Tokenizer,
  *,
  batch_size: int,
  num_buckets: int = 4,
  sort_within: int = 1,
  seed: int = 0,
  train: bool = True,
  perturb: perturb_lib.Perturbation | None = None,
  samples_per_label: int = 0,
  min_samples: int = 0,
  process_index: int = 0,
  process_count: int = 1,
  prefetch: int = 4,
  cache: str | None = None,
) -> Loader:
  """Plans a corpus: everything that can be wrong up front is found here.

  Args:
    corpus: What to read.
    tokenizer: Anything with `encode`.
    batch_size: Rows of a global batch.
    num_buckets: Shapes at most.
    sort_within: Batches that are sorted by labels together: see `Plan`.
    seed: Of shuffling and augmentation.
    train: Shuffle and skip bad audio; otherwise read each utterance once per
      epoch, in a fixed order, and raise on bad audio.
    perturb: What may happen to the waveforms, None for nothing.
    samples_per_label: Audio that a label needs (CTC: hop x time reduction). In
      training a longer transcript is skipped and reported, since its loss
      would drown all others; 0 checks nothing.
    min_samples: Audio that a frame of the encoder needs. In training shorter
      recordings are skipped and reported: nothing can be learned from them,
      and the loss of any label without a frame is infinite.
    process_index: This process.
    process_count: Processes that share each global batch.
    prefetch: Batches read ahead; 0 reads in the caller's thread.
    cache: Folder of the copies at other speeds that `perturb` asks for, `none`
      to change speeds when reading, None for that of the corpus.

  Returns:
    The loader.
  """
  if not len(corpus):
    raise ValueError(f'{corpus.spec}: there are no utterances to read')
  shortest, longest = (1.0, 1.0) if perturb is None else perturb.stretch
  labels_N = encode_texts(corpus, tokenizer)
  label_lengths_N = np.array([len(l) for l in labels_N])
  unfit = {}
  if train:
    # What is there after the fastest reading.
    samples_N = np.asarray(corpus.durations_N) * corpus.sample_rate * shortest
    unfit = _crowded(corpus, labels_N, samples_per_label, samples_N)
    unfit |= _too_short(corpus, min_samples, samples_N)
  skipped = Skipped()
  if unfit:
    skipped.reasons |= {corpus.utt_ids_N[i]: unfit[i] for i in unfit}
    name, reason = next(iter(skipped.reasons.items()))
    logging.warning(
      'skipped %d of %d utterances, the first: %s: %s',
      len(unfit),
      len(corpus),
      name,
      reason,
    )
  if len(unfit) == len(corpus):
    raise ValueError(
      f'{corpus.spec}: none of {len(unfit)} utterances can be trained on, '
      f'the first: {next(iter(skipped.reasons.values()))}'
    )
  kept_N = np.setdiff1d(np.arange(len(corpus)), list(unfit))
  buckets = batching.make_buckets(
    np.asarray(corpus.durations_N)[kept_N],
    label_lengths_N[kept_N],
    batch_size=batch_size,
    num_buckets=num_buckets,
    stretch=longest,
  )
  plan = batching.make_plan(
    corpus.durations_N,
    label_lengths_N,
    buckets,
    seed=seed,
    shuffle=train,
    sort_within=sort_within,
    stretch=longest,
    leave_out=list(unfit),
  )
  at_speed = None
  if perturb is not None:
    at_speed = speeds.at_speeds(corpus, perturb.speeds, cache)
  return Loader(
    corpus,
    labels_N,
    plan,
    perturb=perturb,
    at_speed=at_speed,
    strict=not train,
    process_index=process_index,
    process_count=process_count,
    prefetch=prefetch,
    skipped=skipped,
  )


def _too_short(
  corpus: corpus_lib.Corpus, min_samples: int, samples_N: np.ndarray
) -> dict[int, str]:
  """Which utterances give an encoder no frame, and why."""
  return {
    i: f'{corpus.durations_N[i]:.3f} s of audio hold no frame of the encoder, '
    f'which needs {min_samples} samples'
    for i in np.flatnonzero(samples_N < min_samples).tolist()
  }


def _crowded(
  corpus: corpus_lib.Corpus,
  labels_N: Sequence[Sequence[int]],
  samples_per_label: int,
  samples_N: np.ndarray,
) -> dict[int, str]:
  """Which utterances' labels CTC cannot fit into their audio, and why.

  Args:
    corpus: whose audio.
    labels_N: of each utterance.
    samples_per_label: that a label needs.
    samples_N: how long audio may shrink to.
  """
  found = {}
  for i, labels in enumerate(labels_N):
    # CTC wants a frame between equal neighbors too; one more for the window
    # that the last frame needs.
    repeats = sum(a == b for a, b in itertools.pairwise(labels))
    if (len(labels) + repeats + 1) * samples_per_label > samples_N[i]:
      found[i] = (
        f'{len(labels)} labels do not fit {corpus.durations_N[i]:.2f} s '
        f'of audio at {samples_per_label} samples a label'
      )
  return found
