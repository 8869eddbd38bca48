"""Small corpora on disk; nothing is cached outside the test's folder."""

import csv
import pathlib

import numpy as np
import pytest
import soundfile


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> pathlib.Path:
  folder = tmp_path / 'cache'
  monkeypatch.setenv('S8BQAT_CACHE', str(folder))
  return folder


def tone(seconds: float, rate: int, hertz: float = 200.0) -> np.ndarray:
  """A tone between two silences, as a recorded word is."""
  time_S = np.arange(round(seconds * rate)) / rate
  loud_S = (time_S > 0.2 * seconds) & (time_S < 0.7 * seconds)
  return 0.3 * np.sin(2 * np.pi * hertz * time_S) * loud_S


@pytest.fixture
def make_manifest(tmp_path):
  """Writes audio and a CSV: `make(rows, rate)` -> path of the CSV.

  A row is a dict of columns; `seconds` is how long its audio gets (not a
  column) and `path` its file.
  """

  def make(rows, rate=16_000, name='metadata.csv') -> pathlib.Path:
    columns = [c for c in rows[0] if c != 'seconds']
    with (tmp_path / name).open('w', newline='') as f:
      writer = csv.DictWriter(f, columns, extrasaction='ignore')
      writer.writeheader()
      for k, row in enumerate(rows):
        writer.writerow(row)
        file = tmp_path / row['path']
        file.parent.mkdir(parents=True, exist_ok=True)
        seconds = row.get('seconds', 0.5)
        soundfile.write(file, tone(seconds, rate, 150 + 10 * k), rate)
    return tmp_path / name

  return make


@pytest.fixture
def words_manifest(make_manifest):
  """Eight speakers, each of whom says five words three times."""
  return make_manifest(
    [
      {
        'path': f'{s}/{w}_{k}.wav',
        'speaker': s,
        'text': w,
        'age': str(5 + 10 * n),
        'seconds': 0.3 + 0.02 * k,
      }
      for n, s in enumerate('abcdefgh')
      for w in ('zero', 'one', 'two', 'go', 'stop')
      for k in range(3)
    ]
  )
