import itertools

import numpy as np
import pytest

from s8bqat_jax import data
from s8bqat_jax.data import espeak, espeak_texts

pytest.importorskip('espeakng_loader')


def _samples(corpus):
  return [corpus.pcm(i) for i in range(len(corpus))]


def test_splits_share_no_variant_no_accent_and_no_sentence():
  variants = [set(espeak.variants_of(s)) for s in ('train', 'dev', 'eval')]
  assert [len(v) for v in variants] == [82, 6, 14]
  assert len(set().union(*variants)) == 102
  assert not set(espeak.accents_of('train')) & set(espeak.accents_of('eval'))
  assert len(espeak.accents_of('train')) == 7
  texts = {}
  for split in ('train', 'dev', 'eval'):
    draw = espeak_texts.text_maker('grammar', split, None)
    rng = np.random.default_rng(0)
    texts[split] = {draw(rng) for _ in range(300)}
  for a, b in itertools.combinations(texts.values(), 2):
    assert not a & b


def test_an_utterance_depends_on_its_index_alone():
  task = espeak.Synthesis('digits', 'train', 0, (0, 20))
  together = list(task.utterances(0, 12))
  for i in (11, 0, 7):
    (alone,) = task.utterances(i, 1)
    np.testing.assert_array_equal(alone.pcm_S, together[i].pcm_S)
    assert alone[1:] == together[i][1:]


def test_cache_and_memory_agree_and_the_cache_is_used(monkeypatch):
  spec = 'espeak:digits?split=dev&utterances=6&snr=5-15'
  made = data.load(spec)
  memory = data.load(f'{spec}&cache=none')

  def unexpected(*_):
    raise AssertionError('synthesized again')

  monkeypatch.setattr(espeak.Synthesis, 'utterances', unexpected)
  read = data.load(spec)
  for other in (memory, read):
    assert other.texts_N == made.texts_N
    assert other.fingerprint == made.fingerprint
    np.testing.assert_array_equal(other.durations_N, made.durations_N)
    for a, b in zip(_samples(made), _samples(other)):
      np.testing.assert_array_equal(a, b)


def test_seed_split_and_noise_change_the_corpus():
  base = 'espeak:digits?utterances=3&cache=none'
  corpora = [
    data.load(base + more)
    for more in ('', '&seed=1', '&split=dev', '&snr=0-10', '&snr=clean')
  ]
  assert len({c.fingerprint for c in corpora}) == 4
  clean, other, dev, noisy, again = corpora
  assert clean.fingerprint == again.fingerprint
  assert clean.texts_N != other.texts_N
  assert set(dev.speakers_N) <= {
    f'{espeak.HELD_OUT_ACCENT}+{v}' for v in espeak.variants_of('dev')
  }
  assert clean.texts_N == noisy.texts_N
  for a, b in zip(_samples(clean), _samples(noisy)):
    # The pauses around the words are where the noise is seen.
    assert len(a) == len(b)
    assert not a[:700].any() and b[:700].any()


def test_utterances_are_a_prefix_and_hours_are_reached():
  few = data.load('espeak:digits?utterances=3&cache=none')
  hours = data.load('espeak:digits?hours=0.01&cache=none')
  total = hours.durations_N.sum()
  assert 36 <= total < 36 + hours.durations_N[-1] + 1e-3
  assert hours.texts_N[:3] == few.texts_N
  np.testing.assert_array_equal(hours.pcm(2), few.pcm(2))


def test_digits_are_three_to_seven_words():
  corpus = data.load('espeak:digits?utterances=40&cache=none')
  digits = set('zero one two three four five six seven eight nine'.split())
  sizes = {len(t.split()) for t in corpus.texts_N}
  assert sizes <= set(range(3, 8)) and len(sizes) > 2
  assert {w for t in corpus.texts_N for w in t.split()} <= digits
  assert len(set(corpus.speakers_N)) > 30
  for pcm_S, duration in zip(_samples(corpus), corpus.durations_N):
    assert len(pcm_S) == round(duration * 16_000)
    assert 300 < np.abs(pcm_S.astype(int)).max() <= 32767


def test_other_kinds():
  commands = data.load('espeak:commands?utterances=4&cache=none')
  assert all(1 <= len(t.split()) <= 8 for t in commands.texts_N)
  sentences = data.load('espeak:grammar?utterances=4&cache=none')
  assert all(len(t.split()) > 1 for t in sentences.texts_N)


def test_text_reads_the_sentences_of_a_file(tmp_path):
  file = tmp_path / 'book.txt'
  lines = [f'The {w} house, it stands here.' for w in 'abcdefghijklmnopqrst']
  file.write_text('\n'.join([*lines, 'In 1990 it was new.', 'Yes.']))
  sentences = espeak_texts.read_sentences(file)
  assert sentences == [
    f'the {w} house it stands here' for w in 'abcdefghijklmnopqrst'
  ]
  corpus = data.load(f'espeak:text?file={file}&utterances=3&cache=none')
  assert set(corpus.texts_N) <= set(sentences)
  before = corpus.fingerprint
  file.write_text('\n'.join([*lines, 'One more line.']))
  after = data.load(f'espeak:text?file={file}&utterances=3&cache=none')
  assert after.fingerprint != before


def test_sentences_are_read_in_turn(tmp_path):
  file = tmp_path / 'book.txt'
  lines = [f'The U.S. {w} house .' for w in 'abcd']  # not to be read aloud
  people = 'abcdefghijklmnopqrstuvwxyz'
  lines += [f'The {w} has a house .' for w in people]
  file.write_text('\n'.join(lines))
  sentences = [f'the {w} has a house' for w in people]
  assert espeak_texts.whole_sentences(file) == sentences
  held_out = [s for s in sentences if espeak_texts.split_of(s) != 'dev']
  spec = f'espeak:text?file={file}&cache=none&split=eval'
  count = len(held_out) + 2
  corpus = data.load(f'{spec}&texts=train,eval&utterances={count}')
  assert corpus.texts_N == [*held_out, *held_out[:2]]
  assert len(set(corpus.speakers_N)) > 1
  others = data.load(f'{spec}&texts=eval&utterances={count}')
  assert set(others.texts_N) < set(held_out)
  drawn = data.load(f'{spec}&utterances={count}')
  fingerprints = {c.fingerprint for c in (corpus, others, drawn)}
  assert len(fingerprints) == 3


@pytest.mark.parametrize(
  ('spec', 'message'),
  [
    ('espeak:digit', 'expected one of digits, commands'),
    ('espeak:digits?hours=1&utterances=1', 'not both'),
    ('espeak:digits?file=x', 'for espeak:text'),
    ('espeak:digits?texts=dev', 'texts= is for espeak:text'),
    ('espeak:text?file=x&texts=dev,test', 'expected some of train, dev, eval'),
    ('espeak:text', 'needs file=PATH'),
    ('espeak:text?file=/no/such', 'no such file'),
    ('espeak:digits?split=test', 'train, dev, eval'),
    ('espeak:digits?hours=0', 'positive'),
    ('espeak:digits?snr=loud', 'LO-HI'),
  ],
)
def test_errors(spec, message):
  with pytest.raises(ValueError) as e:
    data.load(spec)
  assert message in str(e.value)


def test_a_file_without_sentences_is_an_error(tmp_path):
  (tmp_path / 'a.txt').write_text('1 2 3\n')
  with pytest.raises(ValueError, match='holds no sentence'):
    data.load(f'espeak:text?file={tmp_path}/a.txt')
