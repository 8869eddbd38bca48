"""What synthesized voices read; each text belongs to one split."""

import hashlib
import pathlib
import re
from collections.abc import Callable, Collection, Iterable

import numpy as np

from s8bqat_jax import files
from s8bqat_jax.data import grammar, text

KINDS = ('digits', 'commands', 'grammar', 'text')
_LENGTHS = range(2, 21)  # words of a sentence that is read


def split_of(sentence: str) -> str:
  """Returns the split that owns a text: a tenth each for dev and eval.

  Args:
    sentence: What is read.
  """
  digest = hashlib.sha256(sentence.encode()).digest()
  return {0: 'dev', 1: 'eval'}.get(digest[0] % 10, 'train')


def sentences(lines: Iterable[str]) -> list[str]:
  """Returns the speakable sentences of some text, lower case, no repeats.

  Args:
    lines: Plain text. Sentences end at a full stop, question or exclamation
      mark or a line's end; those with anything but letters, apostrophes and
      punctuation, and those of more than 20 words, are left out.
  """
  found: dict[str, None] = {}
  for line in lines:
    for sentence in re.split(r'[.?!]+', line.lower().replace(" '", "'")):
      plain = re.sub(r'[,;:"()\-]', ' ', sentence)
      words = plain.split()
      if len(words) in _LENGTHS and re.fullmatch(r"[a-z' ]+", ' '.join(words)):
        found[' '.join(words)] = None
  return list(found)


def read_sentences(path: pathlib.Path) -> list[str]:
  """Returns the `sentences` of a text file; none at all is an error."""
  found = sentences(_lines(path))
  if not found:
    raise ValueError(
      f'file={path}: holds no sentence of 2 to 20 words in the letters a-z'
    )
  return found


def whole_sentences(path: pathlib.Path) -> list[str]:
  """Returns the lines of a text file's spoken form that can be read aloud.

  Those are what a language model of that form knows; `sentences` also reads
  what is left of a sentence before an abbreviation.

  Args:
    path: Of the file; sentences of 2 to 20 words without `<unk>` are taken.
  """
  every = dict.fromkeys(s for line in _lines(path) for s in text.spoken(line))
  return [
    s for s in every if text.UNKNOWN not in s and len(s.split()) in _LENGTHS
  ]


def _lines(path: pathlib.Path) -> list[str]:
  if not path.is_file():
    raise ValueError(f'file={path}: no such file')
  return files.read_text(path).splitlines()


def owned(
  file: str | None,
  splits: Collection[str],
  read: Callable[[pathlib.Path], list[str]] = read_sentences,
) -> list[str]:
  """Returns the sentences of a text file that belong to some splits.

  Args:
    file: The text file.
    splits: Whose sentences; see `split_of`.
    read: (path) -> all of them.
  """
  if file is None:
    raise ValueError('espeak:text needs file=PATH, the sentences to read')
  found = read(pathlib.Path(file).expanduser())
  own = [sentence for sentence in found if split_of(sentence) in splits]
  if not own:
    raise ValueError(
      f'file={file}: no sentence falls to split={",".join(splits)}'
    )
  return own


def text_maker(
  kind: str, split: str, file: str | None
) -> Callable[[np.random.Generator], str]:
  """Returns what draws the text of an utterance.

  Args:
    kind: One of `KINDS`.
    split: Texts of another split are never drawn, except command words.
    file: For `text`.
  """
  if kind == 'commands':
    words = grammar.COMMANDS.split('|')
    return lambda rng: ' '.join(rng.choice(words, rng.integers(1, 5)))
  if kind == 'text':
    own = owned(file, (split,))
    return lambda rng: own[int(rng.integers(len(own)))]
  digits = grammar.DIGITS.split()

  def draw(rng: np.random.Generator) -> str:
    while True:
      if kind == 'digits':
        text = ' '.join(rng.choice(digits, rng.integers(3, 8)))
      else:
        text = grammar.generate(rng)
      if split_of(text) == split:
        return text

  return draw
