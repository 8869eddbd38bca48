"""What a corpus is: columns known up front, samples read one at a time."""

import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol, runtime_checkable

import numpy as np

SAMPLE_RATE = 16_000


class BadUtteranceError(ValueError):
  """Audio that cannot be used; the message names the file and the row."""


@dataclasses.dataclass(frozen=True)
class Utterance:
  """One recording: `audio_S` is float32 in [-1, 1] at 16 kHz."""

  utt_id: str
  audio_S: np.ndarray
  text: str
  speaker: str


@runtime_checkable
class Corpus(Protocol):
  """Anything with these members can be batched, trained on and evaluated.

  `pcm(i)` is the int16 recording; `corpus[i]` is its float view with the
  labels. Both raise `BadUtteranceError` when the audio is unusable. The other
  members are known without reading audio.
  """

  @property
  def spec(self) -> str: ...

  @property
  def fingerprint(self) -> str: ...

  @property
  def sample_rate(self) -> int: ...

  @property
  def utt_ids_N(self) -> Sequence[str]: ...

  @property
  def texts_N(self) -> Sequence[str]: ...

  @property
  def speakers_N(self) -> Sequence[str]: ...

  @property
  def durations_N(self) -> np.ndarray: ...

  def __len__(self) -> int: ...

  def __getitem__(self, index: int) -> Utterance: ...

  def pcm(self, index: int) -> np.ndarray: ...


@dataclasses.dataclass(frozen=True, eq=False)
class Table:
  """The one concrete corpus: columns and a function that reads a recording.

  Attributes:
    spec: The data spec this corpus came from.
    utt_ids_N: Names, unique within the corpus.
    texts_N: Transcripts.
    speakers_N: Speaker names ('' where unknown).
    durations_N: float32 [N], seconds.
    read: `(index) -> int16 [S]` at 16 kHz.
    fingerprint: Hash of the content list, the same on every machine.
    sample_rate: Always 16000.
    edition: What tells audio files from others that replaced them, on this
      machine; see `cache_key`.
    cache: Where what is made of it is kept, as `store.cached` takes it.
  """

  spec: str
  utt_ids_N: Sequence[str]
  texts_N: Sequence[str]
  speakers_N: Sequence[str]
  durations_N: np.ndarray
  read: Callable[[int], np.ndarray]
  fingerprint: str
  sample_rate: int = SAMPLE_RATE
  edition: str = ''
  cache: str | None = None

  def __len__(self) -> int:
    return len(self.texts_N)

  def pcm(self, index: int) -> np.ndarray:
    # Plain sequence semantics: without the check `for u in corpus` would not
    # end, and -1 (the padding row of a batch) would read the last utterance.
    if not 0 <= index < len(self):
      raise IndexError(f'{self.spec}: utterance {index} of {len(self)}')
    return self.read(index)

  def __getitem__(self, index: int) -> Utterance:
    if isinstance(index, slice):
      rows = range(*index.indices(len(self)))
      raise TypeError(
        f'{self.spec}: expected the number of an utterance, got a slice; for '
        f'a part of a corpus use subset(corpus, {rows})'
      )
    audio_S = self.pcm(index).astype(np.float32) / 32768
    return Utterance(
      self.utt_ids_N[index],
      audio_S,
      self.texts_N[index],
      self.speakers_N[index],
    )


def fingerprint(items: Iterable[object]) -> str:
  """Returns a short hash of a content list; equal lists, equal hashes.

  Args:
    items: Objects whose `repr` is their content (strings, numbers, tuples).

  Returns:
    Sixteen hexadecimal digits.
  """
  digest = hashlib.sha256()
  for item in items:
    digest.update(repr(item).encode() + b'\n')
  return digest.hexdigest()[:16]


def cache_key(corpus: Corpus) -> str:
  """Returns a name for what is made of a corpus's audio and kept.

  It changes with the files, where the fingerprint, for which recordings of
  equal length are equal, may not.

  Args:
    corpus: Whose audio.
  """
  edition = _edition(corpus)
  if not edition:
    return corpus.fingerprint
  return fingerprint([corpus.fingerprint, edition])


def _edition(corpus: Corpus) -> str:
  """That of a Table; a corpus of another kind has none."""
  return getattr(corpus, 'edition', '')


def cache_of(corpus: Corpus) -> str | None:
  """Where what is made of a corpus is kept: what its spec says, if it does."""
  return getattr(corpus, 'cache', None)


def _rows(
  corpus: Corpus, indices: Sequence[int] | Sequence[bool] | np.ndarray
) -> list[int]:
  """Returns row numbers that are there, from numbers or a mask."""
  chosen = np.asarray(indices if len(indices) else np.zeros(0, int))
  if chosen.ndim != 1 or chosen.dtype.kind not in 'biu':
    raise ValueError(
      f'{corpus.spec}: {chosen.dtype} {chosen.shape} do not choose rows: '
      'expected a list of row numbers, or a boolean for each utterance'
    )
  if chosen.dtype == bool:
    if len(chosen) != len(corpus):
      raise ValueError(
        f'{corpus.spec}: mask of {len(chosen)} booleans, expected one for each '
        f'of {len(corpus)} utterances'
      )
    chosen = np.flatnonzero(chosen)
  for row in chosen[(chosen < 0) | (chosen >= len(corpus))][:1]:
    raise ValueError(
      f'{corpus.spec}: row {row} is not there: expected 0..{len(corpus) - 1}'
    )
  return chosen.tolist()


def subset(
  corpus: Corpus,
  indices: Sequence[int] | Sequence[bool] | np.ndarray,
  spec: str = '',
) -> Table:
  """Returns the rows `indices` of a corpus, in that order.

  Args:
    corpus: Where the rows come from.
    indices: Rows to keep, or a boolean for each row.
    spec: Name of the result; by default the corpus's spec and the count.

  Returns:
    A corpus of the chosen utterances that reads through `corpus`.
  """
  rows = _rows(corpus, indices)
  return Table(
    spec=spec or f'{corpus.spec} [{len(rows)} of {len(corpus)}]',
    utt_ids_N=[corpus.utt_ids_N[i] for i in rows],
    texts_N=[corpus.texts_N[i] for i in rows],
    speakers_N=[corpus.speakers_N[i] for i in rows],
    durations_N=np.asarray(corpus.durations_N, np.float32)[rows],
    read=lambda i: corpus.pcm(rows[i]),
    fingerprint=fingerprint([corpus.fingerprint, tuple(rows)]),
    edition=_edition(corpus),
    cache=cache_of(corpus),
  )


def concat(corpora: Sequence[Corpus]) -> Table:
  """Returns the corpora one after the other; names get a prefix `0/`, `1/`...

  Args:
    corpora: At least one corpus.

  Returns:
    A corpus of all their utterances.
  """
  if not corpora:
    raise ValueError('concat needs at least one corpus, got none')
  starts = np.cumsum([0, *map(len, corpora)])

  def read(index: int) -> np.ndarray:
    part = int(np.searchsorted(starts, index, side='right')) - 1
    return corpora[part].pcm(index - int(starts[part]))

  return Table(
    spec=' + '.join(c.spec for c in corpora),
    utt_ids_N=[f'{k}/{u}' for k, c in enumerate(corpora) for u in c.utt_ids_N],
    texts_N=[t for c in corpora for t in c.texts_N],
    speakers_N=[s for c in corpora for s in c.speakers_N],
    durations_N=np.concatenate([c.durations_N for c in corpora]),
    read=read,
    fingerprint=fingerprint([c.fingerprint for c in corpora]),
    edition=''.join(map(_edition, corpora)),
    cache=next(filter(None, map(cache_of, corpora)), None),
  )
