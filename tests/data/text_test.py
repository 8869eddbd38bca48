"""Text corpora, vocabularies, windows and perplexity per word."""

import os
import pathlib

import numpy as np
import pytest

from s8bqat_jax.data import corpus as corpus_lib
from s8bqat_jax.data import text as lib
from s8bqat_jax.data import tfds
from s8bqat_jax.speech import tokenizers

ROOT = pathlib.Path(__file__).parents[2]
DATA = pathlib.Path(os.environ.get('S8BQAT_DATA', ROOT.parent / 'shared/data'))
# WikiText's lines end with a space.
WIKI = """

 = First =

 a b c
 = = Section = =
 d
 = Second title =
 e f
 = Third =
 g <unk>
""".replace('\n', ' \n').removeprefix(' \n')


@pytest.fixture
def wiki(tmp_path):
  path = tmp_path / 'wiki.txt'
  path.write_text(WIKI)
  return path


def _corpus(*lines):
  return lib.TextCorpus(lines, 'test', 'test')


class TestLoad:
  def test_counts_words_and_line_ends(self, wiki):
    corpus = lib.load_text(f'text:{wiki}')
    assert len(corpus.lines) == 10
    # wc -w, and the ten lines.
    assert corpus.words == len(WIKI.split()) + 10

  def test_articles_are_split_and_none_is_lost(self, wiki):
    dev = lib.load_text(f'text:{wiki}?part=dev')
    held = lib.load_text(f'text:{wiki}?part=eval')
    assert ' = = Section = = ' in dev.lines and ' g <unk> ' in dev.lines
    assert held.lines == (' = Second title = ', ' e f ')
    whole = lib.load_text(f'text:{wiki}')
    assert dev.words + held.words == whole.words
    assert len({c.fingerprint for c in (dev, held, whole)}) == 3

  def test_short_titles_and_byte_order_marks(self, tmp_path):
    text = '\ufeff = Q = \na1\n = Bb = \nb1\n = Ccc = \nc1\n'
    (tmp_path / 'x.txt').write_text(text, encoding='utf-8')
    dev = lib.load_text(f'text:{tmp_path}/x.txt?part=dev')
    assert dev.lines == (' = Q = ', 'a1', ' = Ccc = ', 'c1')

  def test_spoken_form_is_what_a_recognizer_writes(self, tmp_path):
    path = tmp_path / 'plain.txt'
    path.write_text(
      ' = One = \n'
      ' Yes , he did . " No " , she said !\n'
      " in 1920 , the <unk> @-@ old dog 's Media.Vision fell ( Senjō ) \n"
      ' 7 , 8 . \n'
      " In the U.S. they didn 't pay £ 1 @,@ 000 to ' the owners ' . So "
      "1.5 m ? It 's a dogs ' life at 70 @.@ 5 ° ! \n"
      ' = Two = \n'
      ' Yes , he did . \n'
    )
    corpus = lib.load_text(f'text:{path}?form=spoken')
    assert corpus.lines == (
      'yes he did',
      'no she said',
      "in <unk> the <unk> old dog's <unk> fell <unk>",
      "in the <unk> they didn't pay <unk> to the owners",
      'so <unk> m',
      "it's a dogs life at <unk>",
      'yes he did',
    )
    assert len(set(corpus.articles[:6])) == 1
    assert corpus.articles[6] != corpus.articles[0]

  def test_penn_treebank_by_path(self, tmp_path):
    (tmp_path / 'ptb.valid.txt').write_text(" no it was n't\n black <unk>\n")
    corpus = lib.load_text(f'ptb:{tmp_path}:valid')
    assert corpus.words == 8

  def test_tfds_text_set(self, tmp_path):
    _prepare_tfds(tmp_path, ['first line', 'second\nthird'])
    corpus = lib.load_text(f'tfds:tiny_text:train?dir={tmp_path}')
    assert sorted(corpus.lines) == ['first line', 'second', 'third']
    with pytest.raises(ValueError, match="no feature 'body'.*text"):
      lib.load_text(f'tfds:tiny_text:train?dir={tmp_path}&field=body')
    with pytest.raises(ValueError, match='no split'):
      lib.load_text(f'tfds:tiny_text:test?dir={tmp_path}')

  @pytest.mark.parametrize(
    'spec, message',
    [
      ('wiki.txt', 'a scheme of ptb, text, tfds'),
      ('text:', 'expected text:PATH'),
      ('text:a.txt?split=dev', "no option 'split'"),
      ('text:a.txt?fom=spoken', "no option 'fom'. Did you mean 'form'"),
      ('text:a.txt?part=dev&part=eval', 'given twice'),
      ('text:a.txt?part', 'option=value'),
      ('ptb:folder:train?part=dev', 'no option'),
      ('ptb:folder', 'expected ptb:DIRECTORY:SPLIT'),
      ('tfds:lm1b', 'expected tfds:NAME:SPLIT'),
      ('tfds:lm1b:train?dir=nowhere', 'not prepared in nowhere'),
    ],
  )
  def test_bad_spec(self, spec, message):
    with pytest.raises(ValueError, match=message):
      lib.load_text(spec)

  def test_bad_files(self, tmp_path):
    with pytest.raises(FileNotFoundError, match='no text file .*missing.txt'):
      lib.load_text(f'text:{tmp_path}/missing.txt')
    for content in (b'', b'\n \n'):
      (tmp_path / 'empty.txt').write_bytes(content)
      with pytest.raises(ValueError, match='the corpus is empty'):
        lib.load_text(f'text:{tmp_path}/empty.txt')
    (tmp_path / 'latin.txt').write_bytes(b'caf\xe9\n')
    with pytest.raises(ValueError, match='latin.txt: not UTF-8'):
      lib.load_text(f'text:{tmp_path}/latin.txt')
    (tmp_path / 'plain.txt').write_text('one\ntwo\n')
    with pytest.raises(ValueError, match='0 article headings'):
      lib.load_text(f'text:{tmp_path}/plain.txt?part=dev')
    with pytest.raises(ValueError, match='part='):
      lib.load_text(f'text:{tmp_path}/plain.txt?part=test')


def _prepare_tfds(directory, texts):
  """A set of TensorFlow Datasets with a text feature (and silent audio)."""
  count = len(texts)
  table = corpus_lib.Table(
    'test',
    [str(i) for i in range(count)],
    texts,
    [''] * count,
    np.ones(count, np.float32),
    lambda i: np.zeros(4, np.int16),
    'test',
  )
  tfds.prepare({'train': table}, 'tiny_text', directory)


class TestVocabulary:
  def test_most_frequent_words(self):
    corpus = _corpus('b b a c c', 'a <unk> d')
    tokenizer = lib.word_vocabulary(corpus, 5)
    assert tokenizer.words == (lib.UNKNOWN, 'a', 'b', 'c')
    assert tokenizer.vocab_size == 5
    assert lib.word_vocabulary(corpus).vocab_size == 6
    with pytest.raises(ValueError, match='size=2'):
      lib.word_vocabulary(corpus, 2)

  def test_unknown_words_are_counted(self):
    tokenizer = lib.word_vocabulary(_corpus('a b'))
    stream = lib.encode(tokenizer, _corpus('a x b x', '', 'b'))
    assert tokenizer.words == (lib.UNKNOWN, 'a', 'b')
    assert stream.ids_N.tolist() == [2, 1, 3, 1, 0, 0, 3, 0]
    assert stream.words == 8 and stream.unknown == 2

  def test_subwords_round_trip_and_spell_unk(self):
    pytest.importorskip('sentencepiece')
    lines = [f'the cat {i} sat on mat {i * 7}' for i in range(30)]
    tokenizer = lib.subword_vocabulary(_corpus(*lines), 40)
    stream = lib.encode(tokenizer, _corpus('the cat 3', 'mat <unk> \u0416 sat'))
    assert stream.unknown == 1
    ends = np.flatnonzero(stream.ids_N == lib.END)
    decoded = [
      tokenizer.decode(part.tolist()) for part in np.split(stream.ids_N, ends)
    ]
    assert decoded[:2] == ['the cat 3', 'mat \u2047 \u2047 sat']

  def test_no_unk_in_the_vocabulary_is_an_error(self):
    tokenizer = tokenizers.WordTokenizer(('a',))
    with pytest.raises(ValueError, match="word '<unk>'"):
      lib.encode(tokenizer, _corpus('a b'))


@pytest.mark.skipif(
  not (DATA / 'wikitext2/valid.txt').exists(), reason='no WikiText-2 here'
)
def test_wikitext2_has_its_published_size():
  valid = lib.load_text(f'text:{DATA}/wikitext2/valid.txt')
  assert valid.words == 217_646
  dev = lib.load_text(f'text:{DATA}/wikitext2/valid.txt?part=dev')
  held = lib.load_text(f'text:{DATA}/wikitext2/valid.txt?part=eval')
  assert dev.words + held.words == valid.words
  assert sum(bool(lib._HEADING.fullmatch(x)) for x in valid.lines) == 60
