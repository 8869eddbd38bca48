"""`manifest:PATH.csv`: a table of recordings beside the CSV.

Columns `path` (relative to the CSV) and `text`; optional `speaker`, `utt_id`,
`duration_s` and any that the options of a split name.
"""

import csv
import functools
import io
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent import futures

import numpy as np

from s8bqat_jax import files
from s8bqat_jax.data import audio, compose, select, store
from s8bqat_jax.data import corpus as corpus_lib

OPTIONS = select.OPTIONS | compose.OPTIONS

ROW = '<row>'  # where an entry is, for errors
# Decoded recordings stay in memory as int16 up to this size.
_CACHE_BYTES = 2**30


def read_csv(path: pathlib.Path) -> dict[str, list[str]]:
  """Reads a manifest and checks what can be checked without the audio.

  Args:
    path: The CSV.

  Returns:
    Its columns, `utt_id` added (the path without suffix) when absent, and
    `ROW`, where each entry is.
  """
  if not path.is_file():
    raise ValueError(f'{path}: no such file')
  reader = csv.DictReader(io.StringIO(files.read_text(path)), strict=True)
  try:
    names = list(reader.fieldnames or [])
    lines = [(reader.line_num, line) for line in reader]
  except csv.Error as e:
    raise ValueError(
      f'{path}, about line {reader.line_num}: {e}; is a quote not closed, or '
      'not doubled within quotes?'
    ) from e
  if not lines:
    raise ValueError(f'{path}: the manifest is empty (no row after the header)')
  missing = [n for n in ('path', 'text') if n not in names]
  if missing:
    raise ValueError(
      f'{path}: needs a column {" and ".join(missing)}; there are '
      f'{", ".join(names)}'
    )
  for number, line in lines:
    if None in line or None in line.values():
      raise ValueError(
        f'{path}, line {number}: expected {len(names)} fields (quote a text '
        'that holds a comma)'
      )
    for name in ('path', 'text'):
      if not line[name].strip():
        raise ValueError(f'{path}, line {number}: the {name} is empty')
      if '\n' in line[name]:
        raise ValueError(
          f'{path}, line {number}: the {name} is longer than its line; is a '
          'quote not closed?'
        )
  columns = {n: [line[n] for _, line in lines] for n in names}
  columns[ROW] = [f'line {number}' for number, _ in lines]
  if 'utt_id' not in columns:
    columns['utt_id'] = [
      pathlib.PurePosixPath(p).with_suffix('').as_posix()
      for p in columns['path']
    ]
  return columns


def _check_unique(columns: Mapping[str, Sequence[str]], source: str) -> None:
  """Names the two rows of an utterance that is there twice."""
  seen: dict[str, str] = {}
  for utt_id, row in zip(columns['utt_id'], columns[ROW]):
    if utt_id in seen:
      raise ValueError(
        f'{source}: utt_id {utt_id!r} is in {seen[utt_id]} and {row}'
      )
    seen[utt_id] = row


def _check_durations(wheres: Sequence[str], values: Sequence[str]) -> None:
  """Names the row whose duration is none."""
  for where, value in zip(wheres, values):
    try:
      good = 0 < float(value) < float('inf')
    except ValueError:
      good = False
    if not good:
      raise ValueError(
        f'{where}: duration_s={value!r}: expected seconds; without the column '
        'durations are read from the audio files'
      )


def _header_durations(
  paths: Sequence[pathlib.Path], wheres: Sequence[str]
) -> list[float]:
  with futures.ThreadPoolExecutor() as pool:
    return list(pool.map(audio.duration, paths, wheres))


def _remember(
  read: Callable[[int], np.ndarray], seconds: float
) -> Callable[[int], np.ndarray]:
  """Keeps what was decoded, when all of it fits in `_CACHE_BYTES`."""
  if 2 * corpus_lib.SAMPLE_RATE * seconds > _CACHE_BYTES:
    return read

  @functools.cache
  def remembering(index: int) -> np.ndarray:
    pcm_S = read(index)
    pcm_S.flags.writeable = False
    return pcm_S

  return remembering


def make_table(
  chosen: Mapping[str, Sequence[str]],
  seconds: Sequence[float],
  read: Callable[[int], np.ndarray],
  options: Mapping[str, str],
  spec: str,
  content: Iterable[object],
  edition: str = '',
) -> corpus_lib.Table:
  """Makes a corpus of columns and a reader; the scheme modules share it.

  Args:
    chosen: `text`, `utt_id` and, where known, `speaker` of the selected rows.
    seconds: Their durations.
    read: Decodes one of them.
    options: For the case of the transcripts, and for composition.
    spec: The spec asked for.
    content: What the audio is, for the fingerprint.
    edition: Of the audio's files; see `corpus.cache_key`.

  Returns:
    The rows, or strings composed of them.
  """
  texts = [select.change_case(t, options) for t in chosen['text']]
  speakers = list(chosen.get('speaker', [''] * len(texts)))
  durations_N = np.asarray(seconds, np.float32)
  table = corpus_lib.Table(
    spec=spec,
    utt_ids_N=chosen['utt_id'],
    texts_N=texts,
    speakers_N=speakers,
    durations_N=durations_N,
    read=_remember(read, float(durations_N.sum())),
    fingerprint=corpus_lib.fingerprint(
      [*zip(chosen['utt_id'], texts, speakers), *content]
    ),
    edition=edition,
    cache=options.get('cache'),
  )
  return compose.apply(table, options)


def from_files(
  columns: Mapping[str, Sequence[str]],
  root: pathlib.Path,
  options: Mapping[str, str],
  spec: str,
  source: str,
) -> corpus_lib.Table:
  """Makes a corpus of a table of audio files.

  Args:
    columns: `path`, `text`, `utt_id`, `ROW`; optional `speaker`, `duration_s`
      and columns that the options name.
    root: What the paths are relative to.
    options: Selection (`select.OPTIONS`) and composition (`compose.OPTIONS`).
    spec: The spec asked for.
    source: File that errors name.

  Returns:
    The selected rows, or strings composed of them.
  """
  _check_unique(columns, source)
  chosen = select.table(columns, options)
  paths = [root / p for p in chosen['path']]
  wheres = [f'{source}, {r}' for r in chosen[ROW]]
  sizes, times = [], []
  absent = []
  for file, where in zip(paths, wheres):
    try:
      status = file.stat()
      sizes.append(status.st_size)
      times.append(status.st_mtime_ns)
    except OSError:
      absent.append(f'{where}: {file}')
  if absent:
    shown = '\n  '.join(absent[:5])
    raise ValueError(
      f'{len(absent)} of {len(paths)} audio files are missing:\n  {shown}'
    )
  if 'duration_s' in chosen:
    _check_durations(wheres, chosen['duration_s'])
    seconds = [float(v) for v in chosen['duration_s']]
  else:
    # Opening every file takes minutes for a large corpus: worth keeping.
    seconds = store.cached_json(
      f'durations-{corpus_lib.fingerprint(zip(paths, sizes, times))}',
      options.get('cache'),
      lambda: _header_durations(paths, wheres),
    )
  return make_table(
    chosen,
    seconds,
    lambda i: audio.read(paths[i], wheres[i], seconds[i]),
    options,
    spec,
    zip(chosen['path'], sizes),
    corpus_lib.fingerprint(times),
  )


def load(rest: str, options: Mapping[str, str], spec: str) -> corpus_lib.Corpus:
  """Opens `manifest:rest`; see `from_files`."""
  path = pathlib.Path(rest).expanduser()
  return from_files(read_csv(path), path.parent, options, spec, str(path))
