"""Plain text for language models: corpora, vocabularies, windows, perplexity.

  corpus = load_text('text:wikitext2/train.txt')
  tokenizer = subword_vocabulary(corpus, 4096)
  stream = encode(tokenizer, corpus)
  batches = TrainBatches(stream.ids_N, batch_size=16, length=128)
  perplexity, nll = score(nll_fn, stream, length=256, context=128)

A line is a sentence and ends with token 0. Perplexity is per *word*, line ends
counted as words as is usual for WikiText and the Penn Treebank, whatever the
units of the vocabulary: figures of different subwords can be compared. (Words
outside a `word:SIZE` vocabulary are scored as `<unk>`, which is cheap.)
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import itertools
import math
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from s8bqat_jax.data import corpus as corpus_lib
from s8bqat_jax.data import espeak_texts, tfds
from s8bqat_jax.data import options as option_lib
from s8bqat_jax.speech import tokenizers

END = 0
UNKNOWN = '<unk>'
# Sentencepiece keeps `<unk>` to itself and learns no pieces for it, so that
# subwords spell it as this character instead.
_UNKNOWN_CHARACTER = '\u2047'
SCHEMES = ('text', 'ptb', 'tfds')
_OPTIONS = {
  'text': ('part', 'form'),
  'ptb': (),
  'tfds': ('dir', 'field'),
}
# Of WikiText: ` = Title = `, and not the section titles ` = = Section = = `.
_HEADING = re.compile(r'\s*= [^=].*[^=] =\s*')


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


class Window(NamedTuple):
  """Windows of a stream to be scored."""

  tokens_BxT1: np.ndarray  # int32; the model sees [:, :-1], predicts [:, 1:]
  weights_BxT: np.ndarray  # float32; 1 where a prediction counts


def load_text(spec: str) -> TextCorpus:
  """Opens a text corpus.

  Args:
    spec: one of
      `text:PATH?part=dev&form=spoken`: a file of one sentence per line; `part`
        (dev, eval or all) takes every other article of a file with WikiText
        headings; `form=spoken` makes lines of its sentences as they are
        spoken, lower case without punctuation, as `espeak:text` reads them.
      `ptb:DIRECTORY:SPLIT`: the Penn Treebank's `ptb.SPLIT.txt`.
      `tfds:NAME:SPLIT?dir=...&field=text`: a prepared set of TensorFlow
        Datasets.

  Returns:
    The corpus.
  """
  body, _, query = spec.partition('?')
  scheme, _, rest = body.partition(':')
  if scheme not in SCHEMES or not rest:
    raise ValueError(
      f'text spec {spec!r}: expected text:PATH, ptb:DIRECTORY:SPLIT or '
      'tfds:NAME:SPLIT'
    )
  options = dict(item.partition('=')[::2] for item in query.split('&') if item)
  for name in options:
    if name not in _OPTIONS[scheme]:
      raise ValueError(
        f'text spec {spec!r}: {scheme}: has no option {name!r}; its options '
        f'are {", ".join(_OPTIONS[scheme]) or "none"}'
      )
  try:
    read = {'text': _read, 'ptb': _read_ptb, 'tfds': _read_tfds}[scheme]
    lines, articles = read(rest, options)
  except ValueError as e:
    raise ValueError(f'text spec {spec!r}: {e}') from e
  if not any(line.split() for line in lines):
    raise ValueError(f'text spec {spec!r}: the corpus is empty')
  mark = corpus_lib.fingerprint(lines)
  return TextCorpus(tuple(lines), spec, mark, tuple(articles))


def _read_file(path: pathlib.Path) -> list[str]:
  try:
    text = path.read_text(encoding='utf-8')
  except FileNotFoundError:
    raise FileNotFoundError(f'no text file {path}') from None
  except UnicodeDecodeError as e:
    raise ValueError(f'{path}: not UTF-8 text: {e}') from e
  # Not splitlines: form feeds and the like are no line ends.
  return text.removesuffix('\n').split('\n') if text else []


def _read(rest: str, options: Mapping[str, str]) -> tuple[list[str], list[int]]:
  """Lines, and the article of each."""
  lines = _read_file(pathlib.Path(rest).expanduser())
  part = option_lib.choice(options, 'part', ('all', 'dev', 'eval'), 'all')
  form = option_lib.choice(options, 'form', ('written', 'spoken'), 'written')
  if part != 'all':
    lines = split_articles(lines)[part == 'eval']
  articles = article_of_lines(lines)
  if form == 'written':
    return lines, articles
  # A sentence that two articles have belongs to the first.
  spoken: dict[str, int] = {}
  for number, of_article in itertools.groupby(
    zip(lines, articles), key=lambda line: line[1]
  ):
    for sentence in espeak_texts.sentences(line for line, _ in of_article):
      spoken.setdefault(sentence, number)
  return list(spoken), list(spoken.values())


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


class TrainBatches:
  """Endless training batches: a pure function of (seed, step).

  An epoch is the stream cut into windows from a random offset, in random
  order; every token but the few at the ends is predicted once.
  """

  def __init__(
    self, ids_N: np.ndarray, batch_size: int, length: int, seed: int = 0
  ):
    """Plans the batches.

    Args:
      ids_N: `TokenStream.ids_N`.
      batch_size: windows per batch.
      length: predictions per window.
      seed: of offsets and orders.
    """
    # One window is given up to the random offset.
    self._windows = len(ids_N) // length - 1
    self.steps_per_epoch = self._windows // batch_size
    if self.steps_per_epoch < 1:
      raise ValueError(
        f'{len(ids_N)} tokens are too few for one batch of {batch_size} '
        f'windows of {length}; at least {(batch_size + 1) * length} are needed'
      )
    self._ids_N, self._seed = ids_N, seed
    self._batch_size, self._length = batch_size, length

  def __call__(self, step: int) -> np.ndarray:
    """Returns tokens_BxT1, int32: inputs [:, :-1], targets [:, 1:]."""
    epoch, position = divmod(step, self.steps_per_epoch)
    offset, order = self._epoch(epoch)
    first = position * self._batch_size
    rows = order[first : first + self._batch_size]
    starts_B = offset + rows * self._length
    return self._ids_N[starts_B[:, None] + np.arange(self._length + 1)]

  @functools.lru_cache(maxsize=2)  # noqa: B019
  def _epoch(self, epoch: int) -> tuple[int, np.ndarray]:
    rng = np.random.default_rng((self._seed, epoch))
    return int(rng.integers(self._length)), rng.permutation(self._windows)


def windows(
  ids_N: np.ndarray, length: int, context: int, batch_size: int
) -> Iterator[Window]:
  """Windows in which every token of a stream is predicted exactly once.

  Args:
    ids_N: `TokenStream.ids_N`. An end of line is put before the first token.
    length: tokens that the model sees at once.
    context: of these, how many are shared with the window before: each
      prediction has at least this much context (less at the start).
    batch_size: windows per batch; the last batch is padded with weight 0.

  Yields:
    Windows of the same shape.
  """
  if not 0 <= context < length:
    raise ValueError(f'context={context}: expected 0..{length - 1}')
  ids_N = np.concatenate([[END], ids_N]).astype(np.int32)
  stride, total = length - context, len(ids_N) - 1
  # The first window counts all its predictions, later ones their last stride.
  count = 1 + max(0, math.ceil((total - length) / stride))
  for first in range(0, count, batch_size):
    tokens_BxT1 = np.full((batch_size, length + 1), END, np.int32)
    weights_BxT = np.zeros((batch_size, length), np.float32)
    for row, number in enumerate(range(first, min(first + batch_size, count))):
      start = number * stride
      piece = ids_N[start : start + length + 1]
      tokens_BxT1[row, : len(piece)] = piece
      weights_BxT[row, context if number else 0 : len(piece) - 1] = 1
    yield Window(tokens_BxT1, weights_BxT)


def perplexity(nll: float, words: int) -> float:
  """Perplexity per word of a total negative log-likelihood in nats.

  Args:
    nll: sum over all tokens, whatever the units.
    words: `TokenStream.words` or `TextCorpus.words`.

  Returns:
    exp(nll / words); infinity where that overflows.
  """
  if words < 1:
    raise ValueError('perplexity of no words: the corpus is empty')
  rate = float(nll) / words
  return math.exp(rate) if rate < 700 else math.inf


def token_nats(
  nll_fn: Callable[[np.ndarray], Any],
  stream: TokenStream,
  *,
  length: int = 256,
  context: int = 128,
  batch_size: int = 16,
) -> np.ndarray:
  """Scores a stream with sliding windows.

  Args:
    nll_fn: (tokens_BxT1) -> nll_BxT of each next token, in nats.
    stream: the text.
    length: see `windows`.
    context: see `windows`.
    batch_size: see `windows`.

  Returns:
    nll_N, float64, of every token of the stream.
  """
  found = []
  for window in windows(stream.ids_N, length, context, batch_size):
    nll_BxT = np.asarray(nll_fn(window.tokens_BxT1), np.float64)
    found.append(nll_BxT[window.weights_BxT > 0])
  nll_N = np.concatenate(found)
  if np.isnan(nll_N).any():
    raise FloatingPointError('the model gives NaN as log-likelihood')
  return nll_N


def score(
  nll_fn: Callable[[np.ndarray], Any], stream: TokenStream, **options: Any
) -> tuple[float, float]:
  """Scores a stream as a whole.

  Args:
    nll_fn: (tokens_BxT1) -> nll_BxT of each next token, in nats.
    stream: the text.
    **options: of `token_nats`.

  Returns:
    Perplexity per word, and the negative log-likelihood of the whole stream.
  """
  total = float(token_nats(nll_fn, stream, **options).sum())
  return perplexity(total, stream.words), total
