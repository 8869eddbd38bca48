import numpy as np
import pytest
import soundfile

from s8bqat_jax import data


@pytest.fixture
def root(tmp_path):
  for speaker, chapter, size in ((84, 121, 2), (174, 5, 1)):
    folder = tmp_path / 'LibriSpeech' / 'dev-clean' / f'{speaker}/{chapter}'
    folder.mkdir(parents=True)
    lines = []
    for k in range(size):
      name = f'{speaker}-{chapter}-{k:04d}'
      audio_S = np.linspace(-0.5, 0.5, 1600 * (k + 1))
      soundfile.write(folder / f'{name}.flac', audio_S, 16_000)
      lines.append(f'{name} GO DOWN {k}\n')
    (folder / f'{speaker}-{chapter}.trans.txt').write_text(''.join(lines))
  return tmp_path


def test_reads_the_layout(root):
  for directory in (root, root / 'LibriSpeech'):
    corpus = data.load(f'librispeech:{directory}:dev-clean?case=lower')
    assert corpus.utt_ids_N == ['174-5-0000', '84-121-0000', '84-121-0001']
    assert corpus.texts_N == ['go down 0', 'go down 0', 'go down 1']
    assert corpus.speakers_N == ['174', '84', '84']
    np.testing.assert_allclose(corpus.durations_N, [0.1, 0.1, 0.2])
    assert len(corpus.pcm(2)) == 3200
  some = data.load(f'librispeech:{root}:dev-clean?speakers=84')
  assert len(some) == 2


def test_what_macs_put_beside_files_is_no_transcript(root):
  chapter = root / 'LibriSpeech/dev-clean/174/5'
  (chapter / '._174-5.trans.txt').write_bytes(b'\0\5\x16\7\xff')
  assert len(data.load(f'librispeech:{root}:dev-clean')) == 3


def test_errors(root):
  with pytest.raises(ValueError, match='no such folder; .* holds LibriSpeech'):
    data.load(f'librispeech:{root}:dev-other')
  with pytest.raises(ValueError, match='not a LibriSpeech subset'):
    data.load(f'librispeech:{root}:LibriSpeech/dev-clean/84/121')
  base = root / 'LibriSpeech' / 'dev-clean'
  (base / '174/5/174-5-0000.flac').unlink()
  with pytest.raises(ValueError, match='174-5.trans.txt, line 1: .*0000.flac'):
    data.load(f'librispeech:{root}:dev-clean')
  (base / '84/121/84-121.trans.txt').write_text('84-121-0000\n')
  with pytest.raises(ValueError, match='line 1: expected "ID TRANSCRIPT"'):
    data.load(f'librispeech:{root}:dev-clean')


def test_an_utterance_that_is_there_twice(root):
  chapter = root / 'LibriSpeech/dev-clean/84/121'
  lines = (chapter / '84-121.trans.txt').read_text()
  (chapter / '84-121.old.trans.txt').write_text(lines)
  with pytest.raises(ValueError, match="'84-121-0000' is in .*old.* and .*1$"):
    data.load(f'librispeech:{root}:dev-clean')


def test_lines_end_at_line_ends_only(root):
  chapter = root / 'LibriSpeech/dev-clean/174/5'
  text = '\ufeff174-5-0000 GO\u2028DOWN\n'
  (chapter / '174-5.trans.txt').write_text(text, encoding='utf-8')
  corpus = data.load(f'librispeech:{root}:dev-clean')
  assert corpus.utt_ids_N[0] == '174-5-0000'
  assert corpus.texts_N[0].split() == ['GO', 'DOWN']
