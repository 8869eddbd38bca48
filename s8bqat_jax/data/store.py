"""A folder that keeps a corpus's samples: one int16 file, memory-mapped."""

import contextlib
import json
import os
import pathlib
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent import futures
from typing import Any, NamedTuple

import numpy as np
import tqdm
from absl import logging

from s8bqat_jax import files
from s8bqat_jax.data import corpus as corpus_lib

_SAMPLES = 'samples.int16'
_INDEX = 'index.json'
_CHUNK = 256  # entries held in memory on their way to the disk
_UNFINISHED = '.unfinished-'  # folders of stores that are being written
_ABANDONED_S = 24 * 3600  # since something was last written to one
_LIMIT_GB = 40.0  # of all stores in a cache, unless S8BQAT_CACHE_GB says


class Entry(NamedTuple):
  """One utterance to keep."""

  pcm_S: np.ndarray
  text: str
  speaker: str


class Store(NamedTuple):
  """Utterance i is samples_S[offsets_N1[i] : offsets_N1[i + 1]]."""

  samples_S: np.ndarray
  offsets_N1: np.ndarray
  texts_N: Sequence[str]
  speakers_N: Sequence[str]

  def pcm(self, index: int) -> np.ndarray:
    """Returns the samples of an utterance."""
    return self.samples_S[self.offsets_N1[index] : self.offsets_N1[index + 1]]

  @property
  def durations_N(self) -> np.ndarray:
    """float32 [N], seconds."""
    seconds_N = np.diff(self.offsets_N1) / corpus_lib.SAMPLE_RATE
    return seconds_N.astype(np.float32)


def default_folder() -> pathlib.Path:
  """Returns the user's cache: S8BQAT_CACHE, XDG_CACHE_HOME or ~/.cache."""
  if 'S8BQAT_CACHE' in os.environ:
    return pathlib.Path(os.environ['S8BQAT_CACHE']).expanduser()
  base = os.environ.get('XDG_CACHE_HOME') or '~/.cache'
  return pathlib.Path(base).expanduser() / 's8bqat_jax'


def _limit() -> float:
  """Returns how many bytes of stores a cache keeps."""
  text = os.environ.get('S8BQAT_CACHE_GB', str(_LIMIT_GB))
  try:
    gigabytes = float(text)
  except ValueError:
    gigabytes = -1
  if not gigabytes >= 0:
    raise ValueError(
      f'S8BQAT_CACHE_GB is {text!r}: give how many GB of audio the cache may '
      'keep, for example 40'
    )
  return 1e9 * gigabytes


def make_all(
  make: Callable[[int], Entry], count: int, what: str
) -> Iterator[Entry]:
  """Makes entries 0 .. count - 1 in threads.

  Args:
    make: Makes one; samples that release the interpreter's lock gain most.
    count: How many.
    what: Label of the progress bar.

  Yields:
    The entries, in order.
  """
  with tqdm.tqdm(desc=what, total=count, unit='utt', disable=None) as bar:
    for entry in in_threads(make, count):
      yield entry
      bar.update()


def in_threads(
  make: Callable[[int], Entry], count: int, start: int = 0
) -> Iterator[Entry]:
  """Makes entries start .. start + count - 1 in threads, as they are asked for.

  Args:
    make: As for `make_all`.
    count: How many at most.
    start: First one.

  Yields:
    The entries, in order.
  """
  with futures.ThreadPoolExecutor(os.cpu_count()) as pool:
    for first in range(start, start + count, _CHUNK):
      last = min(first + _CHUNK, start + count)
      yield from pool.map(make, range(first, last))


def collect(entries: Iterable[Entry]) -> Store:
  """Returns the entries as a store in memory."""
  kept = list(entries)
  return Store(
    np.concatenate([np.zeros(0, np.int16), *(e.pcm_S for e in kept)]),
    np.cumsum([0, *(len(e.pcm_S) for e in kept)]),
    [e.text for e in kept],
    [e.speaker for e in kept],
  )


def read(folder: pathlib.Path) -> Store:
  """Opens a folder that `write` made; samples stay on disk.

  Opening counts as use: what was used longest ago leaves a full cache first.

  Args:
    folder: The store.

  Returns:
    Its content.
  """
  index = json.loads((folder / _INDEX).read_text())
  offsets_N1 = np.cumsum([0, *index['lengths']])
  there = (folder / _SAMPLES).stat().st_size
  if there != 2 * offsets_N1[-1]:
    raise ValueError(
      f'{folder / _SAMPLES} has {there} bytes, its index says '
      f'{2 * offsets_N1[-1]}: delete {folder}, it is made again'
    )
  with contextlib.suppress(OSError):  # another user's
    os.utime(folder)
  samples_S = np.zeros(0, np.int16)
  if there:  # what is empty cannot be mapped
    samples_S = np.memmap(folder / _SAMPLES, np.int16, 'r')
  return Store(samples_S, offsets_N1, index['texts'], index['speakers'])


def write(folder: pathlib.Path, entries: Iterable[Entry]) -> None:
  """Writes a store beside `folder` and renames it: whole or not at all.

  Args:
    folder: Where it goes; when another process finished first, its copy (equal
      by construction) stays.
    entries: The utterances, streamed to disk as they come.
  """
  try:
    folder.parent.mkdir(parents=True, exist_ok=True)
    _sweep(folder.parent)
    unfinished = pathlib.Path(
      tempfile.mkdtemp(prefix=f'{_UNFINISHED}{folder.name}-', dir=folder.parent)
    )
  except OSError as e:
    raise OSError(
      e.errno, f'cannot make {folder}: {e.strerror}; choose another with cache='
    ) from e
  try:
    # A folder from mkdtemp is its owner's alone; one within it has the
    # permissions that the umask allows, for others who share the cache.
    partial = unfinished / folder.name
    partial.mkdir()
    index: dict[str, list] = {'lengths': [], 'texts': [], 'speakers': []}
    with (partial / _SAMPLES).open('wb') as f:
      for entry in entries:
        f.write(entry.pcm_S.astype('<i2', copy=False).data)
        index['lengths'].append(len(entry.pcm_S))
        index['texts'].append(entry.text)
        index['speakers'].append(entry.speaker)
    (partial / _INDEX).write_text(json.dumps(index))
    try:
      os.replace(partial, folder)
    except OSError:
      if not (folder / _INDEX).is_file():
        raise
  except OSError as e:
    raise OSError(
      e.errno,
      f'cannot write the cache {folder}: {e.strerror}; make room there, choose '
      'another folder with cache=DIR or S8BQAT_CACHE, or use cache=none',
    ) from e
  finally:
    shutil.rmtree(unfinished, ignore_errors=True)


def _sweep(base: pathlib.Path) -> None:
  """Removes what killed processes left unfinished in a cache."""
  for folder in base.glob(f'{_UNFINISHED}*'):
    try:
      last = max(p.stat().st_mtime for p in (folder, *folder.rglob('*')))
    except OSError:  # just finished, or another user's
      continue
    if last < time.time() - _ABANDONED_S:
      shutil.rmtree(folder, ignore_errors=True)


def _trim(base: pathlib.Path, limit: float, keep: str) -> None:
  """Removes what was used longest ago from a cache that is over its limit.

  Who has a store open reads on: its samples are mapped.

  Args:
    base: The cache; only stores in it count.
    limit: How many bytes may stay.
    keep: Name of one that stays.
  """
  stores = []
  for folder in base.glob('[!.]*'):
    with contextlib.suppress(OSError):  # no store, or gone meanwhile
      size = sum((folder / f).stat().st_size for f in (_INDEX, _SAMPLES))
      stores.append((folder.stat().st_mtime, size, folder))
  total = sum(size for _, size, _ in stores)
  for _, size, folder in sorted(stores):
    if total <= limit:
      break
    if folder.name == keep:
      continue
    gone = folder.with_name(f'{_UNFINISHED}{folder.name}-{os.getpid()}')
    try:
      os.replace(folder, gone)  # whole, or not there
    except OSError:  # another user's, or gone meanwhile
      continue
    shutil.rmtree(gone, ignore_errors=True)
    total -= size
    logging.info(
      'removed %s from the cache (%.1f GB, S8BQAT_CACHE_GB)', folder, size / 1e9
    )


def cached(
  name: str, cache: str | None, make: Callable[[], Iterable[Entry]]
) -> Store:
  """Reads a store from the cache, made there first if it is not.

  A cache keeps S8BQAT_CACHE_GB of stores (40 unless it says); what was used
  longest ago leaves to make room.

  Args:
    name: Says what is in it; other content, other name.
    cache: Folder of the cache, `none` for memory, None for the user's.
    make: Makes the entries.

  Returns:
    The store.
  """
  if cache == 'none':
    return collect(make())
  base = pathlib.Path(cache).expanduser() if cache else default_folder()
  try:
    return read(base / name)
  except (FileNotFoundError, NotADirectoryError):
    limit = _limit()
    write(base / name, make())
  # Open before others leave, and before another process may remove it.
  made = read(base / name)
  _trim(base, limit, keep=name)
  return made


def cached_json(name: str, cache: str | None, make: Callable[[], Any]) -> Any:
  """As `cached`, for something small that took long to find out.

  Args:
    name: Says what it is; other content, other name.
    cache: As for `cached`.
    make: Makes a value that JSON can hold.

  Returns:
    The value.
  """
  if cache == 'none':
    return make()
  base = pathlib.Path(cache).expanduser() if cache else default_folder()
  file = base / f'{name}.json'
  with contextlib.suppress(OSError, json.JSONDecodeError):
    return json.loads(file.read_text())  # unless the power went before the disk
  value = make()
  try:
    base.mkdir(parents=True, exist_ok=True)
    files.write_text(file, json.dumps(value))
  except OSError as e:  # it can be found out again
    logging.warning('cannot keep %s: %s', file, e)
  return value
