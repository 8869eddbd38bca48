"""Batches of few fixed shapes, planned before any audio is read.

The plan is a pure function of lengths, seed and epoch. A position is one
integer, the global step: step // steps_per_epoch is the epoch, and starting
there gives the batches an uninterrupted run would have seen.
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from s8bqat_jax.data import corpus as corpus_lib

# Lengths are rounded up to a tenth of a second and to four labels.
_SAMPLE_MULTIPLE = corpus_lib.SAMPLE_RATE // 10
_LABEL_MULTIPLE = 4


class Bucket(NamedTuple):
  """A batch shape: audio [batch_size, samples], labels [batch_size, labels]."""

  samples: int
  labels: int
  batch_size: int


class PlannedBatch(NamedTuple):
  """What one step reads; -1 marks a padding row."""

  step: int
  epoch: int
  bucket: Bucket
  indices_B: np.ndarray


def _round_up(value: int, multiple: int) -> int:
  return -(-value // multiple) * multiple


def _cuts(samples_N: np.ndarray, num_buckets: int) -> list[int]:
  """Ascending bucket lengths that pad the fewest samples (exact, by DP)."""
  lengths_L, counts_L = np.unique(samples_N, return_counts=True)
  if len(lengths_L) > 200:  # candidates enough; the DP is quadratic in them
    candidates = np.quantile(samples_N, np.linspace(0, 1, 200), method='higher')
    lengths_L = np.unique(candidates)
    which = np.searchsorted(lengths_L, samples_N)
    counts_L = np.bincount(which, minlength=len(lengths_L))
  size = len(lengths_L)
  below_L = np.concatenate([[0], np.cumsum(counts_L)])
  # cost_L[j]: samples held when lengths 0 .. j-1 are in k buckets.
  cost_L = np.where(np.arange(size + 1) == 0, 0.0, np.inf)
  choices = []
  for _ in range(min(num_buckets, size)):
    # The last bucket holds lengths i .. j-1, each padded to lengths_L[j-1].
    held_LxL = (below_L[None, 1:] - below_L[:-1, None]) * lengths_L[None, :]
    total_LxL = cost_L[:-1, None] + np.where(held_LxL > 0, held_LxL, np.inf)
    best_L = total_LxL.argmin(axis=0)
    choices.append(best_L)
    cost_L = np.concatenate([[np.inf], total_LxL.min(axis=0)])
  ends, j = [], size
  for best_L in reversed(choices):
    ends.append(int(lengths_L[j - 1]))
    j = int(best_L[j - 1])
  return ends[::-1]


def make_buckets(
  durations_N: np.ndarray,
  label_lengths_N: np.ndarray,
  *,
  batch_size: int,
  num_buckets: int = 4,
  stretch: float = 1.0,
) -> tuple[Bucket, ...]:
  """Chooses the shapes that waste the least padding.

  Args:
    durations_N: Seconds of each utterance.
    label_lengths_N: Labels of each.
    batch_size: Rows of a (global) batch.
    num_buckets: Shapes at most; each is compiled once.
    stretch: Factor by which augmentation lengthens audio at most.

  Returns:
    Buckets by ascending length.
  """
  if not len(durations_N):
    raise ValueError('there is no utterance to batch')
  if batch_size < 1 or num_buckets < 1:
    raise ValueError(
      f'batch_size={batch_size}, num_buckets={num_buckets}: expected 1 or more'
    )
  samples_N = _samples(durations_N, stretch)
  ends = _cuts(samples_N, num_buckets)
  which_N = np.searchsorted(ends, samples_N)
  return tuple(
    Bucket(
      end,
      _round_up(
        max(1, int(label_lengths_N[which_N == k].max())), _LABEL_MULTIPLE
      ),
      batch_size,
    )
    for k, end in enumerate(ends)
  )


def _samples(durations_N: np.ndarray, stretch: float) -> np.ndarray:
  """Samples an utterance may take, rounded up to a bucket's granularity."""
  # A manifest's durations are rounded, hence the two milliseconds.
  samples_N = (np.asarray(durations_N, np.float64) * stretch + 0.002) * (
    corpus_lib.SAMPLE_RATE
  )
  return -(-samples_N.astype(np.int64) // _SAMPLE_MULTIPLE) * _SAMPLE_MULTIPLE


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
  """Which utterances each global step reads.

  Attributes:
    buckets: The shapes, ascending.
    bucket_N: Each utterance's bucket; -1 leaves it out of every epoch.
    label_lengths_N: Labels of each.
    seed: Of the shuffling.
    shuffle: False reads the utterances by bucket and index, as evaluation does.
    sort_within: Batches of a shuffled bucket that are sorted by labels
      together, so that those of a batch are about as many: the transducer loss
      pays for the longest transcript of a batch.
  """

  buckets: tuple[Bucket, ...]
  bucket_N: np.ndarray
  label_lengths_N: np.ndarray
  seed: int = 0
  shuffle: bool = True
  sort_within: int = 1

  @functools.cached_property
  def steps_per_epoch(self) -> int:
    """Batches of an epoch; the same in every epoch."""
    return sum(
      -(-int((self.bucket_N == k).sum()) // bucket.batch_size)
      for k, bucket in enumerate(self.buckets)
    )

  def epoch(self, epoch: int) -> list[PlannedBatch]:
    """Returns an epoch's batches; each utterance is in exactly one.

    Args:
      epoch: Counted from 0.
    """
    rng = np.random.default_rng([self.seed, epoch])
    batches = []
    for k, bucket in enumerate(self.buckets):
      members_M = np.flatnonzero(self.bucket_N == k).astype(np.int32)
      size = bucket.batch_size
      if self.shuffle:
        rng.shuffle(members_M)
        members_M = self._sorted(members_M, self.sort_within * size)
      padded_M = np.full(_round_up(len(members_M), size), -1, np.int32)
      padded_M[: len(members_M)] = members_M
      batches += [(bucket, rows_B) for rows_B in padded_M.reshape(-1, size)]
    order = np.arange(len(batches))
    if self.shuffle:
      rng.shuffle(order)
    first = epoch * len(batches)
    return [
      PlannedBatch(first + j, epoch, *batches[i]) for j, i in enumerate(order)
    ]

  def _sorted(self, members_M: np.ndarray, together: int) -> np.ndarray:
    if self.sort_within > 1:
      run_M = np.arange(len(members_M)) // together
      order_M = np.lexsort((self.label_lengths_N[members_M], run_M))
      members_M = members_M[order_M]
    return members_M

  def batches(
    self, start: int = 0, stop: int | None = None
  ) -> Iterator[PlannedBatch]:
    """Yields the planned batches of global steps start .. stop - 1.

    Args:
      start: First global step.
      stop: End; None never ends.
    """
    per_epoch = self.steps_per_epoch
    step = start
    while per_epoch and (stop is None or step < stop):
      for batch in self.epoch(step // per_epoch)[step % per_epoch :]:
        if batch.step == stop:
          return
        yield batch
        step += 1


def make_plan(
  durations_N: np.ndarray,
  label_lengths_N: np.ndarray,
  buckets: Sequence[Bucket],
  *,
  seed: int = 0,
  shuffle: bool = True,
  sort_within: int = 1,
  stretch: float = 1.0,
  leave_out: Sequence[int] = (),
) -> Plan:
  """Puts every utterance in the smallest bucket that holds it.

  Args:
    durations_N: Seconds of each utterance.
    label_lengths_N: Labels of each.
    buckets: The shapes, e.g. of `make_buckets`.
    seed: Of the shuffling.
    shuffle: See `Plan`.
    sort_within: And there.
    stretch: As for `make_buckets`.
    leave_out: Utterances that no epoch reads.

  Returns:
    The plan.
  """
  if sort_within < 1:
    raise ValueError(f'sort_within={sort_within}: expected 1 or more')
  ordered = tuple(sorted(buckets))
  label_lengths_N = np.asarray(label_lengths_N)
  samples_N = _samples(durations_N, stretch)
  fits_NxK = np.stack(
    [(samples_N <= b.samples) & (label_lengths_N <= b.labels) for b in ordered],
    axis=1,
  )
  leave_out_N = np.zeros(len(samples_N), bool)
  leave_out_N[list(leave_out)] = True
  lost_L = np.flatnonzero(~fits_NxK.any(axis=1) & ~leave_out_N)
  if len(lost_L):
    i = int(lost_L[0])
    raise ValueError(
      f'{len(lost_L)} utterances fit no bucket; number {i} has '
      f'{durations_N[i]:.2f} s and {label_lengths_N[i]} labels, the largest '
      f'bucket takes {ordered[-1].samples / corpus_lib.SAMPLE_RATE:.2f} s '
      f'(stretched {stretch:.2f}-fold) and {ordered[-1].labels} labels'
    )
  bucket_N = np.where(leave_out_N, -1, fits_NxK.argmax(axis=1))
  return Plan(
    ordered,
    bucket_N.astype(np.int32),
    label_lengths_N,
    seed,
    shuffle,
    sort_within,
  )


def shard(
  batch: PlannedBatch, process_index: int, process_count: int
) -> np.ndarray:
  """Returns this process's rows of a global batch.

  Args:
    batch: Of the plan, the same on every process.
    process_index: Which process this is.
    process_count: How many there are; must divide the batch size.

  Returns:
    Its indices, a contiguous piece as `jax.make_array_from_process_local_data`
    expects.
  """
  size = batch.bucket.batch_size
  if not 0 <= process_index < process_count:
    raise ValueError(
      f'process_index={process_index} of {process_count} processes: expected '
      f'0..{process_count - 1}'
    )
  if size % process_count:
    raise ValueError(
      f'batch size {size} is not divisible by the {process_count} processes'
    )
  rows = size // process_count
  return batch.indices_B[process_index * rows : (process_index + 1) * rows]
