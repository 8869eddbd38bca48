"""Text to label ids and back; 0 is blank everywhere, ids start at 1.

Every tokenizer is built from texts (`from_texts`), is rebuilt from a JSON-able
config, and refuses text it cannot spell instead of dropping characters. Texts
are taken as they come: case and punctuation are the corpus's business; only
runs of white space count as one space.
"""

from __future__ import annotations

import base64
import dataclasses
import functools
import io
import zlib
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

_SPACE = ' '
_MARK = '\u2581'  # how sentencepiece spells a space


class Tokenizer(Protocol):
  """What training and decoding ask of a tokenizer."""

  @property
  def vocab_size(self) -> int:
    """Number of labels, blank included."""

  def encode(self, text: str) -> list[int]:
    """Ids of a text; a ValueError names what it cannot spell."""

  def decode(self, ids: Sequence[int]) -> str:
    """The text of ids; blanks are skipped."""

  def to_config(self) -> dict[str, Any]:
    """What `tokenizer_from_config` rebuilds it from."""


@dataclasses.dataclass(frozen=True)
class CharTokenizer:
  """One label per Unicode character, space included."""

  characters: str

  def __post_init__(self):
    _check_distinct(self.characters, 'characters')

  @classmethod
  def from_texts(cls, texts: Iterable[str]) -> CharTokenizer:
    """The sorted characters of the texts."""
    seen = set().union(*(_tidy(text) for text in texts))
    return cls(''.join(sorted(seen)))

  @property
  def vocab_size(self) -> int:
    return len(self.characters) + 1

  @functools.cached_property
  def _ids(self) -> dict[str, int]:
    return {c: i for i, c in enumerate(self.characters, start=1)}

  def encode(self, text: str) -> list[int]:
    return _encode_units(_tidy(text), text, self._ids, 'character')

  def decode(self, ids: Sequence[int]) -> str:
    return ''.join(_decode_units(ids, self.characters))

  def to_config(self) -> dict[str, Any]:
    return {'kind': 'char', 'characters': self.characters}


@dataclasses.dataclass(frozen=True)
class WordTokenizer:
  """One label per word, for small closed vocabularies."""

  words: tuple[str, ...]

  def __post_init__(self):
    _check_distinct(self.words, 'words')

  @classmethod
  def from_texts(cls, texts: Iterable[str]) -> WordTokenizer:
    """The sorted words of the texts."""
    return cls(tuple(sorted(set().union(*(text.split() for text in texts)))))

  @property
  def vocab_size(self) -> int:
    return len(self.words) + 1

  @functools.cached_property
  def _ids(self) -> dict[str, int]:
    return {word: i for i, word in enumerate(self.words, start=1)}

  def encode(self, text: str) -> list[int]:
    return _encode_units(text.split(), text, self._ids, 'word')

  def decode(self, ids: Sequence[int]) -> str:
    return _SPACE.join(_decode_units(ids, self.words))

  def to_config(self) -> dict[str, Any]:
    return {'kind': 'word', 'words': list(self.words)}


@dataclasses.dataclass(frozen=True)
class SubwordTokenizer:
  """Sentencepiece units; needs the `[subword]` extra.

  Attributes:
    model: the serialized sentencepiece model. Its id 0 is unknown, which
      `encode` refuses, so the ids of pieces start at 1 and 0 is free for blank.
  """

  model: bytes

  @classmethod
  def from_texts(
    cls, texts: Iterable[str], vocab_size: int
  ) -> SubwordTokenizer:
    """Trains unigram pieces that cover every character of the texts.

    Args:
      texts: training transcripts.
      vocab_size: labels wanted, blank included. Few texts may support fewer.

    Returns:
      The tokenizer.

    References:
      T. Kudo, Subword Regularization, ACL 2018.
    """
    texts = [tidy for text in texts if (tidy := _tidy(text))]
    if not texts:
      raise ValueError('no texts to train subwords on: all are empty')
    model = io.BytesIO()
    spm = _sentencepiece()
    # Longer lines would be left out without a word. The limit is named only
    # where it is in the way, since a model keeps what it was trained with.
    longest = max(len(text.encode()) for text in texts)
    limit = {} if longest < 4192 else {'max_sentence_length': longest + 1}
    try:
      spm.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=model,
        vocab_size=vocab_size,
        hard_vocab_limit=False,
        character_coverage=1.0,
        normalization_rule_name='identity',
        bos_id=-1,
        eos_id=-1,
        pad_id=-1,
        unk_id=0,
        num_threads=1,  # the same pieces on every machine
        minloglevel=2,
        **limit,
      )
    except RuntimeError as error:
      raise ValueError(
        f'vocab_size={vocab_size} does not fit these texts, which have '
        f'{len(set().union(*texts))} distinct characters: {error}'
      ) from error
    return cls(model.getvalue())

  @functools.cached_property
  def _processor(self):
    return _sentencepiece().SentencePieceProcessor(model_proto=self.model)

  @property
  def vocab_size(self) -> int:
    return self._processor.get_piece_size()

  def encode(self, text: str) -> list[int]:
    if _MARK in text:  # Sentencepiece would read it as a space.
      raise _unknown('character', _MARK, text)
    ids = self._processor.encode(_tidy(text))
    if 0 in ids:
      pieces = self._processor.encode_as_pieces(_tidy(text))
      raise _unknown('character', pieces[ids.index(0)], text)
    return ids

  def decode(self, ids: Sequence[int]) -> str:
    ids = [int(i) for i in ids if i != 0]
    _check_range(ids, self.vocab_size)
    return self._processor.decode(ids)

  def to_config(self) -> dict[str, Any]:
    # It ships with a network of a few hundred kB: bytes count.
    model = base64.b85encode(zlib.compress(self.model, 9)).decode('ascii')
    return {'kind': 'subword', 'deflated': model}


def tokenizer_from_config(config: dict[str, Any]) -> Tokenizer:
  """Rebuilds a tokenizer.

  Args:
    config: from `Tokenizer.to_config`, possibly through JSON.

  Returns:
    A tokenizer equal to the one that wrote the config.
  """
  kind = config.get('kind')
  if kind == 'char':
    return CharTokenizer(config['characters'])
  if kind == 'word':
    return WordTokenizer(tuple(config['words']))
  if kind == 'subword':
    if 'deflated' not in config:
      raise ValueError(
        'this subword tokenizer has no field `deflated`: it was written by '
        'another version; train it, or write its file, again'
      )
    model = zlib.decompress(base64.b85decode(config['deflated']))
    return SubwordTokenizer(model)
  raise ValueError(
    f"tokenizer kind {kind!r} is none of 'char', 'word', 'subword'"
  )


def _tidy(text: str) -> str:
  return _SPACE.join(text.split())


def _encode_units(units, text, ids, what):
  for unit in units:
    if unit not in ids:
      raise _unknown(what, unit, text)
  return [ids[unit] for unit in units]


def _decode_units(ids, units):
  ids = [int(i) for i in ids if i != 0]
  _check_range(ids, len(units) + 1)
  return [units[i - 1] for i in ids]


def _check_range(ids, vocab_size):
  for i in ids:
    if not 0 < i < vocab_size:
      raise ValueError(f'label {i} is outside the vocabulary of {vocab_size}')


def _check_distinct(units, what):
  if not units:
    raise ValueError(f'no {what}: a tokenizer needs at least one')
  if len(set(units)) != len(units):
    twice = sorted({u for u in units if units.count(u) > 1})
    raise ValueError(f'{what} occur twice: {twice}')


def _unknown(what, unit, text):
  return ValueError(
    f'{what} {unit!r} of the text {text!r} is not in the vocabulary: add it '
    'to the training texts, or normalize the transcript'
  )


def _sentencepiece():
  try:
    import sentencepiece
  except ImportError as error:
    raise ImportError(
      'subwords need sentencepiece: pip install "s8bqat_jax[subword]"'
    ) from error
  return sentencepiece
