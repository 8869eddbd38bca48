import pathlib

import numpy as np
import pytest
import scipy.signal
import soundfile

from s8bqat_jax import data, speech
from s8bqat_jax.data import manifest, speeds


def test_reads_columns_audio_and_durations(make_manifest):
  csv = make_manifest(
    [
      {'path': 'x/a.wav', 'text': 'HELLO', 'speaker': 'p', 'seconds': 0.4},
      {'path': 'x/b.flac', 'text': 'a, b', 'speaker': 'q', 'seconds': 0.7},
    ]
  )
  corpus = data.load(f'manifest:{csv}?case=lower')
  assert corpus.utt_ids_N == ['x/a', 'x/b']
  assert corpus.texts_N == ['hello', 'a, b']
  assert corpus.speakers_N == ['p', 'q']
  np.testing.assert_allclose(corpus.durations_N, [0.4, 0.7])
  want_S, _ = soundfile.read(csv.parent / 'x' / 'a.wav', dtype='int16')
  np.testing.assert_array_equal(corpus.pcm(0), want_S)
  np.testing.assert_array_equal(corpus.pcm(0), want_S)  # remembered
  assert not corpus.pcm(0).flags.writeable


def test_other_rates_are_resampled_and_channels_averaged(tmp_path):
  rate = 8000
  left_S = 0.4 * np.sin(2 * np.pi * 440 * np.arange(rate) / rate)
  soundfile.write(
    tmp_path / 'a.wav', np.stack([left_S, 0.5 * left_S], 1), rate, 'FLOAT'
  )
  (tmp_path / 'm.csv').write_text('path,text\na.wav,x\n')
  corpus = data.load(f'manifest:{tmp_path}/m.csv')
  want_S = scipy.signal.resample_poly(0.75 * left_S, 2, 1)
  got_S = corpus[0].audio_S
  assert got_S.shape == want_S.shape == (16_000,)
  np.testing.assert_allclose(got_S, want_S, atol=1e-4)


def test_the_fingerprint_follows_text_and_audio(make_manifest):
  rows = [{'path': 'a.wav', 'text': 'x', 'seconds': 0.4}]
  first = data.load(f'manifest:{make_manifest(rows)}').fingerprint
  again = data.load(f'manifest:{make_manifest(rows)}').fingerprint
  assert first == again
  rows[0]['text'] = 'y'
  text = data.load(f'manifest:{make_manifest(rows)}').fingerprint
  rows[0]['seconds'] = 0.5
  longer = data.load(f'manifest:{make_manifest(rows)}').fingerprint
  assert len({first, text, longer}) == 3


@pytest.mark.parametrize('options', ['', '?compose=2-3'])
def test_audio_replaced_by_audio_of_its_length_is_heard(make_manifest, options):
  rows = [
    {'path': f'{k}.wav', 'text': 'x', 'speaker': 's', 'seconds': 0.4}
    for k in range(6)
  ]
  spec = f'manifest:{make_manifest(rows)}'

  def heard():
    corpus = data.load(spec + options)
    return corpus.fingerprint, speeds.at_speeds(corpus, (0.9,))(0, 0.9)

  before, loud_S = heard()
  for k in range(6):
    path = pathlib.Path(spec.removeprefix('manifest:')).with_name(f'{k}.wav')
    samples_S, rate = soundfile.read(path)
    soundfile.write(path, np.zeros_like(samples_S), rate)
  after, quiet_S = heard()
  assert after == before and loud_S.any() and not quiet_S.any()


def test_a_promise_cut_short_by_rounding_is_what_is_read(make_manifest):
  rows = [{'path': 'a.wav', 'text': 'x', 'duration_s': 0.5, 'seconds': 0.515}]
  corpus = data.load(f'manifest:{make_manifest(rows)}')
  loader = data.make_loader(
    corpus, speech.CharTokenizer('x'), batch_size=1, train=False
  )
  (batch,) = loader.batches(0, 1)
  assert 8000 <= batch['audio_lengths_B'][0] <= 8032


@pytest.mark.parametrize(
  ('content', 'message'),
  [
    ('', 'the manifest is empty'),
    ('path,text\n', 'the manifest is empty'),
    ('file,text\na.wav,x\n', 'needs a column path; there are file, text'),
    ('path,text\na.wav,\n', 'line 2: the text is empty'),
    ('path,text\na.wav,b,c\n', 'line 2: expected 2 fields'),
    ('path,text\na.wav,x\nb.wav\n', 'line 3: expected 2 fields'),
    ('path,text,utt_id\na.wav,x,1\nb.wav,y,1\n', "utt_id '1' is in line 2"),
    ('path,text\n"a.wav\n",x\n', 'line 3: the path is longer than its line'),
    ('path,text\na.wav,"b\nb.wav,"c\n', 'is a quote not closed'),
    ('path,text\na.wav,"hello\nb.wav,world\n', 'is a quote not closed'),
    ('path,text\na.wav,"' + 'x' * 200_000, 'about line 1: field larger than'),
    ('path,text\nno.wav,x\n', 'line 2: '),
    ('path,text\nno.wav,x\n', '1 of 1 audio files are missing'),
  ],
)
def test_errors_name_the_file_and_the_row(tmp_path, content, message):
  file = tmp_path / 'm.csv'
  file.write_text(content)
  with pytest.raises(ValueError) as e:
    data.load(f'manifest:{file}')
  assert message in str(e.value)
  assert str(file) in str(e.value)


def test_another_encoding_names_the_file(tmp_path):
  for encoding in ('latin-1', 'utf-16'):
    (tmp_path / 'm.csv').write_text('path,text\na.wav,größer\n', encoding)
    with pytest.raises(ValueError, match='m.csv: not UTF-8 text'):
      data.load(f'manifest:{tmp_path}/m.csv + manifest:{tmp_path}/m.csv')


def test_a_column_of_any_name_can_be_split_by(make_manifest):
  rows = [
    {'path': f'{k}.wav', 'text': 'x', 'row': str(7 + k)} for k in range(3)
  ]
  file = make_manifest(rows)
  corpus = data.load(f'manifest:{file}?split_column=row&split=8')
  assert corpus.utt_ids_N == ['1']


def test_a_file_without_a_header_is_no_audio(tmp_path):
  (tmp_path / 'a.raw').write_bytes(bytes(3200))
  (tmp_path / 'm.csv').write_text('path,text\na.raw,x\n')
  with pytest.raises(ValueError, match='m.csv, line 2: cannot read .*a.raw'):
    data.load(f'manifest:{tmp_path}/m.csv')


def test_a_duration_that_is_none_names_its_row(make_manifest):
  csv = make_manifest([{'path': 'a.wav', 'text': 'x', 'duration_s': '-'}])
  with pytest.raises(ValueError, match="line 2: duration_s='-'"):
    data.load(f'manifest:{csv}')


def test_truncated_audio_names_file_and_row(make_manifest):
  csv = make_manifest(
    [
      {'path': 'a.flac', 'text': 'x', 'duration_s': '2.0', 'seconds': 2.0},
      {'path': 'b.wav', 'text': 'y', 'duration_s': '1.0', 'seconds': 0.4},
      {'path': 'c.wav', 'text': 'z', 'duration_s': '1.0', 'seconds': 1.0},
    ]
  )
  flac = csv.parent / 'a.flac'
  flac.write_bytes(flac.read_bytes()[: flac.stat().st_size // 2])
  (csv.parent / 'c.wav').write_bytes(b'not audio')
  corpus = data.load(f'manifest:{csv}')
  for i, name in enumerate(('a.flac', 'b.wav', 'c.wav')):
    with pytest.raises(data.BadUtteranceError) as e:
      corpus.pcm(i)
    assert f'line {i + 2}' in str(e.value) and name in str(e.value)
  with pytest.raises(data.BadUtteranceError, match='0.400 s of audio, 1.000 s'):
    corpus.pcm(1)


@pytest.mark.parametrize('kind', ['wav', 'ogg', 'opus', 'flac', 'mp3'])
def test_audio_cut_short_is_never_taken_for_whole(make_manifest, kind):
  csv = make_manifest(
    [{'path': 'whole.wav', 'text': 'x', 'duration_s': '', 'seconds': 3.0}]
  )
  noise_S = 0.1 * np.random.default_rng(0).normal(size=48_000)
  path = csv.parent / f'a.{"ogg" if kind == "opus" else kind}'
  form = {'opus': {'format': 'OGG', 'subtype': 'OPUS'}}.get(kind, {})
  soundfile.write(path, noise_S, 16_000, **form)
  whole = path.read_bytes()
  csv.write_text(f'path,text,speaker\n{path.name},x,s\n')
  read = lambda: data.load(f'manifest:{csv}').pcm(0)
  assert len(read()) == pytest.approx(48_000, abs=400)
  for share in (0.3, 0.6, 0.95):
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(data.BadUtteranceError, match=f'line 2.*{path.name}'):
      read()


@pytest.mark.parametrize('length', [0xFFFF_FFFF, 0x7FFF_F024, 32_036])
def test_a_wav_whose_length_means_nothing(make_manifest, length):
  csv = make_manifest([{'path': 'a.wav', 'text': 'x', 'seconds': 1.0}])
  path = csv.parent / 'a.wav'
  content = bytearray(path.read_bytes())
  place = content.index(b'data') + 4
  content[place : place + 4] = length.to_bytes(4, 'little')
  path.write_bytes(content)
  assert len(data.load(f'manifest:{csv}').pcm(0)) == 16_000


def test_durations_from_headers_are_kept(make_manifest, monkeypatch):
  csv = make_manifest([{'path': 'a.wav', 'text': 'x', 'seconds': 0.25}])
  first = data.load(f'manifest:{csv}')

  def unexpected(*_):
    raise AssertionError('the header was read again')

  monkeypatch.setattr(manifest.audio, 'duration', unexpected)
  second = data.load(f'manifest:{csv}')
  np.testing.assert_array_equal(first.durations_N, second.durations_N)


def test_a_header_that_cannot_be_read_is_an_error_at_the_start(make_manifest):
  csv = make_manifest([{'path': 'a.wav', 'text': 'x'}])
  (csv.parent / 'a.wav').write_bytes(b'RIFF')
  with pytest.raises(ValueError, match='line 2: cannot read .*a.wav'):
    data.load(f'manifest:{csv}')
