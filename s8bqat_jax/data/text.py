"""Plain text for language models: corpora, vocabularies, token streams.

  corpus = load_text('text:wikitext2/train.txt')
  tokenizer = subword_vocabulary(corpus, 4096)
  stream = encode(tokenizer, corpus)

A line is a sentence and ends with token 0. `text_windows` cuts streams for
training and scores them.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import pathlib
import re
import string
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from s8bqat_jax import files
from s8bqat_jax.data import corpus as corpus_lib
from s8bqat_jax.data import options as option_lib
from s8bqat_jax.data import spec as spec_lib
from s8bqat_jax.data import tfds
from s8bqat_jax.speech import tokenizers

END = 0
UNKNOWN = '<unk>'
# Sentencepiece keeps `<unk>` to itself and learns no pieces for it, so that
# subwords spell it as this character instead.
_UNKNOWN_CHARACTER = '\u2047'
# But for the marks around `<unk>`.
_PUNCTUATION = re.sub('[<>]', '', string.punctuation) + '“”‘’–—…'
_CLITICS = '(?:s|t|d|m|ll|re|ve)'
# scheme -> option -> what it means.
SCHEMES: Mapping[str, Mapping[str, str]] = {
  'text': {
    'part': 'dev, eval or all: every other article, by its headings',
    'form': 'written, or spoken: sentences as a recognizer writes them',
  },
  'ptb': {},
  'tfds': {
    'dir': 'folder of the prepared sets',
    'field': 'feature that holds the text (default: text)',
  },
}
# Of WikiText: ` = Title = `, and not the section titles ` = = Section = = `.
_HEADING = re.compile(r'\s*= [^=](?:.*[^=])? =\s*')


@dataclasses.dataclass(frozen=True)
class TextCorpus:
  """Lines of text.

  Attributes:
    lines: sentences, or paragraphs.
    spec: where they come from.
    fingerprint: of the lines.
    articles: the number of each line's article; empty where there are none.
  """

  lines: tuple[str, ...]
  spec: str
  fingerprint: str
  articles: tuple[int, ...] = ()

  @functools.cached_property
  def words(self) -> int:
    """Words, the end of each line counted as one."""
    return sum(len(line.split()) + 1 for line in self.lines)


class TokenStream(NamedTuple):
  """A corpus as one sequence of tokens."""

  ids_N: np.ndarray  # int32; token 0 ends each line
  words: int  # what perplexity is per
  unknown: int  # words that the vocabulary could not spell


def load_text(spec: str) -> TextCorpus:
  """Opens a text corpus.

  Args:
    spec: one of
      `text:PATH?part=dev&form=spoken`: a file of one sentence per line; `part`
        (dev, eval or all) takes every other article of a file with WikiText
        headings; `form=spoken` makes a line of every sentence, as a recognizer
        would write it: lower case, no punctuation, `<unk>` for a word with
        other characters than letters and apostrophes.
      `ptb:DIRECTORY:SPLIT`: the Penn Treebank's `ptb.SPLIT.txt`.
      `tfds:NAME:SPLIT?dir=...&field=text`: a prepared set of TensorFlow
        Datasets.

  Returns:
    The corpus.
  """
  parsed = spec_lib.parse(spec, tuple(SCHEMES))
  parsed.check_options(SCHEMES[parsed.scheme])
  try:
    read = {'text': _read, 'ptb': _read_ptb, 'tfds': _read_tfds}[parsed.scheme]
    lines, articles = read(parsed.rest, parsed.options)
  except ValueError as e:
    raise ValueError(f'data spec {spec!r}: {e}') from e
  if not any(line.split() for line in lines):
    raise ValueError(f'data spec {spec!r}: the corpus is empty')
  mark = corpus_lib.fingerprint(lines)
  return TextCorpus(tuple(lines), spec, mark, tuple(articles))


def _read_file(path: pathlib.Path) -> list[str]:
  try:
    text = files.read_text(path)
  except FileNotFoundError:
    raise FileNotFoundError(f'no text file {path}') from None
  # Not splitlines: form feeds and the like are no line ends.
  return text.removesuffix('\n').split('\n') if text else []


def _read(rest: str, options: Mapping[str, str]) -> tuple[list[str], list[int]]:
  """Lines, and the article of each."""
  if not rest:
    raise ValueError('expected text:PATH, e.g. text:wikitext2/train.txt')
  lines = _read_file(pathlib.Path(rest).expanduser())
  part = option_lib.choice(options, 'part', ('all', 'dev', 'eval'), 'all')
  form = option_lib.choice(options, 'form', ('written', 'spoken'), 'written')
  if part != 'all':
    lines = split_articles(lines)[part == 'eval']
  articles = article_of_lines(lines)
  if form == 'written':
    return lines, articles
  found = [(s, n) for line, n in zip(lines, articles) for s in spoken(line)]
  return [sentence for sentence, _ in found], [number for _, number in found]


def spoken(line: str) -> Iterator[str]:
  """Yields the sentences of a line, as a recognizer would write them.

  Args:
    line: of a text, its words and marks apart as in WikiText or not.
  """
  if line.lstrip().startswith('='):
    return  # a heading
  # WikiText's marks within words and numbers, and its clitics.
  plain = line.lower().replace(' @-@ ', ' ')
  plain = re.sub(r' @[,.]@ ', '', plain)
  plain = re.sub(rf" '(?={_CLITICS}(?:\s|$))", "'", plain)
  # Where marks are words of their own, those of abbreviations end no sentence.
  apart = re.search(r'\s[.?!](?:\s|$)', plain)
  ends = r'(?:^|\s)[.?!]+(?=\s|$)' if apart else r'[.?!]+(?=\s|$)'
  for sentence in re.split(ends, plain):
    bare = [word.strip(_PUNCTUATION) for word in sentence.split()]
    written = [
      word if re.fullmatch(r"[a-z]+(?:'[a-z]+)*", word) else UNKNOWN
      for word in bare
      if any(map(str.isalnum, word))
    ]
    if set(written) - {UNKNOWN}:
      # Of several unknown words in a row one is left.
      pairs = zip(written, ['', *written])
      yield ' '.join(w for w, before in pairs if w != UNKNOWN or w != before)


def _read_ptb(
  rest: str, options: Mapping[str, str]
) -> tuple[list[str], list[int]]:
  del options
  directory, colon, split = rest.rpartition(':')
  if not colon:
    raise ValueError('expected ptb:DIRECTORY:SPLIT, e.g. ptb:penn:valid')
  path = pathlib.Path(directory).expanduser() / f'ptb.{split}.txt'
  return _read_file(path), []


def _read_tfds(
  rest: str, options: Mapping[str, str]
) -> tuple[list[str], list[int]]:
  name, colon, split = rest.partition(':')
  if not colon:
    raise ValueError('expected tfds:NAME:SPLIT, e.g. tfds:lm1b:train')
  directory = options.get('dir', '~/tensorflow_datasets')
  folder = tfds.find(pathlib.Path(directory).expanduser(), name)
  if folder is None:
    raise ValueError(
      f'{name} is not prepared in {directory}; prepare it with TensorFlow '
      "Datasets (file_format='array_record'), or name its folder with dir="
    )
  prepared = tfds.open_split(folder, split)
  field = options.get('field', 'text')
  if field not in prepared.features:
    raise ValueError(
      f'{folder}: no feature {field!r}; there are '
      f'{", ".join(prepared.features)}; choose one with field='
    )
  from array_record.python import array_record_data_source
  from tensorflow_datasets.core import example_parser
  from tensorflow_datasets.core.features import feature

  parser = example_parser.ExampleParserNp(
    {field: feature.TensorInfo((), np.object_)}
  )
  source = array_record_data_source.ArrayRecordDataSource(
    [str(shard) for shard in prepared.shards]
  )
  lines: list[str] = []
  for i in range(len(source)):
    text = parser.parse_example(source[i])[field].decode()
    lines.extend(text.removesuffix('\n').split('\n'))
  return lines, []


def article_of_lines(lines: Sequence[str]) -> list[int]:
  """Numbers the articles of a file and says which one each line belongs to.

  Args:
    lines: with headings of the form ` = Title = `. What comes before the
      first heading belongs to the first article.

  Returns:
    A number from 0 on for each line.
  """
  headings = np.cumsum([bool(_HEADING.fullmatch(line)) for line in lines])
  return np.maximum(headings - 1, 0).tolist()


def split_articles(lines: list[str]) -> tuple[list[str], list[str]]:
  """Splits lines by article: even ones (dev) and odd ones (eval).

  Args:
    lines: as for `article_of_lines`.

  Returns:
    The two halves.
  """
  numbers = article_of_lines(lines)
  headings = sum(bool(_HEADING.fullmatch(line)) for line in lines)
  if headings < 2:
    raise ValueError(
      f'{headings} article headings (" = Title = ") found; at least 2 are '
      'needed to split by article'
    )
  even, odd = (
    [line for line, number in zip(lines, numbers) if number % 2 == half]
    for half in (0, 1)
  )
  return even, odd


def word_vocabulary(
  corpus: TextCorpus, size: int | None = None
) -> tokenizers.WordTokenizer:
  """The most frequent words of a corpus, `<unk>` among them.

  Args:
    corpus: the training text.
    size: of the vocabulary, token 0 included; None takes every word.

  Returns:
    The tokenizer; ties in frequency are broken alphabetically.
  """
  counts = collections.Counter(w for line in corpus.lines for w in line.split())
  counts.pop(UNKNOWN, None)
  if size is not None and size < 3:
    raise ValueError(f'size={size}: token 0, {UNKNOWN} and a word need 3')
  words = sorted(counts, key=lambda word: (-counts[word], word))
  kept = words if size is None else words[: size - 2]
  return tokenizers.WordTokenizer((UNKNOWN, *kept))


def subword_vocabulary(
  corpus: TextCorpus, size: int
) -> tokenizers.SubwordTokenizer:
  """Sentencepiece units of a corpus.

  Args:
    corpus: the training text.
    size: of the vocabulary, token 0 included.

  Returns:
    The tokenizer. It spells `<unk>` as U+2047.
  """
  lines = [_respell(line) for line in corpus.lines]
  # One more line, in case the corpus itself has no unknown word.
  return tokenizers.SubwordTokenizer.from_texts(
    (*lines, _UNKNOWN_CHARACTER), vocab_size=size
  )


def encode(tokenizer: tokenizers.Tokenizer, corpus: TextCorpus) -> TokenStream:
  """Encodes a corpus; words that can't be spelled become `<unk>`.

  Args:
    tokenizer: whose vocabulary has `<unk>`, if it is ever needed.
    corpus: the text.

  Returns:
    The stream.
  """
  unknown = 0
  subword = isinstance(tokenizer, tokenizers.SubwordTokenizer)
  unknown_word = _UNKNOWN_CHARACTER if subword else UNKNOWN

  @functools.cache
  def known(word: str) -> bool:
    try:
      tokenizer.encode(word)
    except ValueError:
      return False
    return True

  ids: list[int] = []
  for line in corpus.lines:
    line = _respell(line) if subword else line
    try:
      ids.extend(tokenizer.encode(line))
    except ValueError:
      words = [w if known(w) else unknown_word for w in line.split()]
      unknown += sum(not known(w) for w in line.split())
      ids.extend(tokenizer.encode(' '.join(words)))
    ids.append(END)
  return TokenStream(np.array(ids, np.int32), corpus.words, unknown)


def _respell(line: str) -> str:
  return line.replace(UNKNOWN, _UNKNOWN_CHARACTER)
