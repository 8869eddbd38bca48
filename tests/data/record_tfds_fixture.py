"""Records fixtures/librispeech_tfds.tar.gz; run by hand where TensorFlow is.

The TFDS catalog's own LibriSpeech builder prepares six short tones that lie
where its download would: one set with decoded audio, one with FLAC bytes.

  pip install tensorflow-cpu tensorflow-datasets importlib_resources
  python tests/data/record_tfds_fixture.py
"""

import pathlib
import tarfile
import tempfile

import numpy as np
import soundfile
import tensorflow_datasets as tfds
from etils import epath
from tensorflow_datasets.core.features import audio_feature

_OUT = pathlib.Path(__file__).parent / 'fixtures' / 'librispeech_tfds.tar.gz'


def _download(root: pathlib.Path) -> dict[str, epath.Path]:
  """What the builder finds where its archives are unpacked."""
  splits = {}
  for split, speakers in (('dev_clean', (84, 174)), ('test_clean', (61,))):
    base = root / split / 'LibriSpeech'
    base.mkdir(parents=True)
    (base / 'SPEAKERS.TXT').write_text(
      ''.join(f'{s} | M | {split} | 1.0 | nobody\n' for s in speakers)
    )
    (base / 'CHAPTERS.TXT').write_text(
      ''.join(f'{s}1 | {s} | 1 | {split} | 1 | 1 | t | p\n' for s in speakers)
    )
    for s in speakers:
      folder = base / split / str(s) / f'{s}1'
      folder.mkdir(parents=True)
      lines = []
      for k, word in enumerate(('ONE', 'TWO')):
        size = 1200 + 400 * k + s
        tone_S = (8000 * np.sin(np.arange(size) * 0.02 * (k + 1))).astype('i2')
        soundfile.write(folder / f'{s}-{s}1-000{k}.flac', tone_S, 16_000)
        lines.append(f'{s}-{s}1-000{k} SPEAKER {word} HERE\n')
      (folder / f'{s}-{s}1.trans.txt').write_text(''.join(lines))
    splits[split] = epath.Path(root / split)
  return splits


def main() -> None:
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    splits = _download(folder / 'downloads')
    tfds.download.DownloadManager.download_and_extract = lambda *_: splits
    # pydub calls ffmpeg; soundfile decodes FLAC as well.
    audio_feature._pydub_load_audio = lambda f, *_: soundfile.read(
      f, dtype='int16'
    )[0]
    for config, file_format in (
      ('default', 'array_record'),
      ('lazy_decode', 'array_record'),
      ('default', 'tfrecord'),
    ):
      data_dir = folder / 'prepared' / file_format
      tfds.builder(
        f'librispeech/{config}', data_dir=data_dir, file_format=file_format
      ).download_and_prepare()
    _OUT.parent.mkdir(exist_ok=True)
    with tarfile.open(_OUT, 'w:gz') as archive:
      archive.add(folder / 'prepared', arcname='.')


if __name__ == '__main__':
  main()
