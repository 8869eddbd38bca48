"""Tokenizers: round trips, blank, clear refusals."""

import functools
import io
import json

import hypothesis
import hypothesis.strategies as st
import pytest

from s8bqat_jax.speech import tokenizers

_TEXTS = [
  'seven nine two',
  "don't  stop\tnow",
  'ثلاثة خمسة',
  'the cat sat on the mat and the dog sat on the cat',
  'a b c d e f g h i j k l m n o p q r s t u v w x y z',
]


@functools.cache
def _make(kind):
  if kind == 'char':
    return tokenizers.CharTokenizer.from_texts(_TEXTS)
  if kind == 'word':
    return tokenizers.WordTokenizer.from_texts(_TEXTS)
  pytest.importorskip('sentencepiece')
  return tokenizers.SubwordTokenizer.from_texts(_TEXTS, vocab_size=60)


_ALL = pytest.mark.parametrize('kind', ['char', 'word', 'subword'])


@_ALL
def test_round_trip_and_blank(kind):
  tokenizer = _make(kind)
  for text in _TEXTS:
    ids = tokenizer.encode(text)
    assert all(0 < i < tokenizer.vocab_size for i in ids)
    assert tokenizer.decode(ids) == ' '.join(text.split())
    with_blanks = [x for i in ids for x in (0, i)] + [0]
    assert tokenizer.decode(with_blanks) == ' '.join(text.split())
  assert tokenizer.encode('') == tokenizer.encode(' \n') == []
  assert tokenizer.decode([]) == ''


@_ALL
@hypothesis.given(
  words=st.lists(st.sampled_from(' '.join(_TEXTS).split()), max_size=8)
)
@hypothesis.settings(max_examples=50)
def test_any_sentence_of_known_words_round_trips(kind, words):
  text = ' '.join(words)
  assert _make(kind).decode(_make(kind).encode(text)) == text


@hypothesis.given(st.text(min_size=1))
def test_characters_of_any_text_round_trip(text):
  hypothesis.assume(text.split())
  tokenizer = tokenizers.CharTokenizer.from_texts([text])
  assert tokenizer.decode(tokenizer.encode(text)) == ' '.join(text.split())


@_ALL
def test_config_round_trip_through_json(kind):
  tokenizer = _make(kind)
  config = json.loads(json.dumps(tokenizer.to_config()))
  again = tokenizers.tokenizer_from_config(config)
  assert again == tokenizer
  assert again.encode(_TEXTS[0]) == tokenizer.encode(_TEXTS[0])


@pytest.mark.parametrize(
  ['kind', 'unit'], [('char', '7'), ('word', 'route7'), ('subword', '7')]
)
def test_unknown_is_an_error_that_names_it(kind, unit):
  with pytest.raises(ValueError) as error:
    _make(kind).encode('two route7 nine')
  assert repr(unit) in str(error.value)
  assert "'two route7 nine'" in str(error.value)


def test_the_mark_of_a_space_is_no_space():
  with pytest.raises(ValueError, match='\u2581'):
    _make('subword').encode('two\u2581nine')


@_ALL
@pytest.mark.parametrize('bad', [-1, 10**6])
def test_label_outside_the_vocabulary(kind, bad):
  with pytest.raises(ValueError, match=f'label {bad}'):
    _make(kind).decode([1, bad])


def test_nothing_to_learn_from():
  for make in [
    lambda: tokenizers.CharTokenizer.from_texts([]),
    lambda: tokenizers.WordTokenizer.from_texts(['', ' ']),
    lambda: tokenizers.SubwordTokenizer.from_texts([' '], 10),
  ]:
    with pytest.raises(ValueError, match='no (characters|words|texts)'):
      make()


def test_subwords_that_cannot_fit():
  pytest.importorskip('sentencepiece')
  with pytest.raises(ValueError, match='vocab_size=5'):
    tokenizers.SubwordTokenizer.from_texts(_TEXTS, vocab_size=5)


def test_duplicates_and_unknown_kinds():
  with pytest.raises(ValueError, match="twice: .'a'"):
    tokenizers.CharTokenizer('aba')
  with pytest.raises(ValueError, match="'bpe'"):
    tokenizers.tokenizer_from_config({'kind': 'bpe'})


def test_an_option_that_changes_nothing_changes_no_vocabulary():
  """A model keeps the options it was trained with, and models are compared."""
  spm = pytest.importorskip('sentencepiece')
  texts = ['one two', 'two three three', 'one one']
  model = io.BytesIO()
  spm.SentencePieceTrainer.train(
    sentence_iterator=iter(texts),
    model_writer=model,
    vocab_size=12,
    hard_vocab_limit=False,
    character_coverage=1.0,
    normalization_rule_name='identity',
    bos_id=-1,
    eos_id=-1,
    pad_id=-1,
    unk_id=0,
    num_threads=1,
    minloglevel=2,
  )
  ours = tokenizers.SubwordTokenizer.from_texts(texts, 12)
  assert ours == tokenizers.SubwordTokenizer(model.getvalue())


def test_pieces_spell_a_line_as_long_as_a_document():
  pytest.importorskip('sentencepiece')
  texts = ['ab ' * 1500 + 'z', 'ab ab', 'ba b a']
  tokenizer = tokenizers.SubwordTokenizer.from_texts(texts, 10)
  assert tokenizer.decode(tokenizer.encode('z ab')) == 'z ab'
