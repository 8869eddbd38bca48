"""A folder that keeps a corpus's samples: one int16 file, memory-mapped."""

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

_SAMPLES = 'samples.int16'
_INDEX = 'index.json'
_CHUNK = 256  # entries held in memory on their way to the disk
_UNFINISHED = '.unfinished-'  # folders of stores that are being written
_ABANDONED_S = 24 * 3600  # since something was last written to one


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


def default_folder() -> pathlib.Path:
  """Returns the user's cache: S8BQAT_CACHE, XDG_CACHE_HOME or ~/.cache."""
  if 'S8BQAT_CACHE' in os.environ:
    return pathlib.Path(os.environ['S8BQAT_CACHE']).expanduser()
  base = os.environ.get('XDG_CACHE_HOME') or '~/.cache'
  return pathlib.Path(base).expanduser() / 's8bqat_jax'


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
  with (
    futures.ThreadPoolExecutor(os.cpu_count()) as pool,
    tqdm.tqdm(desc=what, total=count, disable=None) as bar,
  ):
    for first in range(0, count, _CHUNK):
      for entry in pool.map(make, range(first, min(first + _CHUNK, count))):
        yield entry
        bar.update()


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


def cached(
  name: str, cache: str | None, make: Callable[[], Iterable[Entry]]
) -> Store:
  """Reads a store from the cache, made there first if it is not.

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
  if not (base / name).is_dir():
    write(base / name, make())
  return read(base / name)


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
  if file.is_file():
    return json.loads(file.read_text())
  value = make()
  try:
    base.mkdir(parents=True, exist_ok=True)
    files.write_text(file, json.dumps(value))
  except OSError as e:  # it can be found out again
    logging.warning('cannot keep %s: %s', file, e)
  return value
