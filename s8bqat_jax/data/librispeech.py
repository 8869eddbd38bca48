"""`librispeech:DIR:SUBSET`: the layout of LibriSpeech and its relatives.

DIR/SUBSET/SPEAKER/CHAPTER/ holds SPEAKER-CHAPTER-NNNN.flac and one
SPEAKER-CHAPTER.trans.txt with a line `SPEAKER-CHAPTER-NNNN TRANSCRIPT` each.
"""

import pathlib
from collections.abc import Mapping

from s8bqat_jax import files
from s8bqat_jax.data import corpus as corpus_lib
from s8bqat_jax.data import manifest

OPTIONS = manifest.OPTIONS


def read_transcripts(folder: pathlib.Path) -> dict[str, list[str]]:
  """Reads every `.trans.txt` below a folder.

  Args:
    folder: A subset, e.g. LibriSpeech/dev-clean.

  Returns:
    Columns as of a manifest, paths relative to `folder`, in name order.
  """
  columns: dict[str, list[str]] = {
    name: [] for name in ('path', 'text', 'utt_id', 'speaker', manifest.ROW)
  }
  for file in sorted(folder.glob('*/*/[!.]*.trans.txt')):
    chapter = file.parent.relative_to(folder)
    text = files.read_text(file)
    # Not `splitlines`: other separators of Unicode end no line here.
    lines = text.removesuffix('\n').split('\n')
    for number, line in enumerate(lines, 1):
      utt_id, _, text = line.strip().partition(' ')
      if not text:
        raise ValueError(
          f'{file}, line {number}: expected "ID TRANSCRIPT", got {line!r}'
        )
      columns['path'].append(f'{chapter.as_posix()}/{utt_id}.flac')
      columns['text'].append(text.strip())
      columns['utt_id'].append(utt_id)
      columns['speaker'].append(chapter.parts[0])
      columns[manifest.ROW].append(f'{file.relative_to(folder)}, line {number}')
  if not columns['path']:
    raise ValueError(
      f'{folder}: no SPEAKER/CHAPTER/*.trans.txt here: not a LibriSpeech subset'
    )
  return columns


def load(rest: str, options: Mapping[str, str], spec: str) -> corpus_lib.Corpus:
  """Opens `librispeech:DIR:SUBSET`.

  Args:
    rest: `DIR:SUBSET`; DIR may hold a folder LibriSpeech that holds SUBSET.
    options: As for a manifest.
    spec: The spec asked for.

  Returns:
    The corpus. Durations are read from the headers once, then cached.
  """
  directory, colon, subset = rest.rpartition(':')
  if not colon or not directory or not subset:
    raise ValueError(
      f'librispeech:{rest}: expected librispeech:DIR:SUBSET, e.g. '
      'librispeech:/data/LibriSpeech:dev-clean'
    )
  root = pathlib.Path(directory).expanduser()
  for folder in (root / subset, root / 'LibriSpeech' / subset):
    if folder.is_dir():
      return manifest.from_files(
        read_transcripts(folder), folder, options, spec, str(folder)
      )
  there = sorted(f.name for f in root.iterdir()) if root.is_dir() else []
  raise ValueError(
    f'{root / subset}: no such folder'
    + (f'; {root} holds {", ".join(there)}' if there else '')
  )
