"""Evaluations that go with the repository."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments import evaluations, results, scoring

_TEXTS = st.text(max_size=8)


@given(rows=st.lists(st.lists(_TEXTS, max_size=4), max_size=5))
def test_what_came_out_comes_back(rows, tmp_path_factory):
  path = tmp_path_factory.mktemp('kept') / 'x' / 'a.json.gz'
  evaluations.write(path, {'seed': 1}, metrics={'wer': 0.1}, rows=rows)
  assert evaluations.read(path, 'rows', 'metrics') == [rows, {'wer': 0.1}]
  before = path.read_bytes()
  evaluations.write(path, {'seed': 1}, metrics={'wer': 0.1}, rows=rows)
  assert path.read_bytes() == before


@pytest.mark.parametrize(
  'spoil',
  [
    lambda b: b[: len(b) // 2],
    lambda b: b'',
    lambda b: b'{}',
    lambda b: b[:30] + bytes([b[30] ^ 255]) + b[31:],
  ],
)
def test_a_file_that_is_not_whole(spoil, tmp_path):
  path = tmp_path / 'a.json.gz'
  evaluations.write(path, {}, metrics={'wer': 0.1})
  path.write_bytes(spoil(path.read_bytes()))
  with pytest.raises(ValueError, match=r'a.json.gz is no evaluation .*again'):
    evaluations.read(path, 'metrics')


FOLDERS = sorted((results.FOLDER / 'evaluations').glob('s8bqat_*'))


@pytest.mark.parametrize('folder', FOLDERS, ids=[p.name for p in FOLDERS])
def test_published_figures_are_those_of_what_was_recognized(folder):
  paths = sorted(folder.iterdir())
  kept = 'metrics', 'hypotheses'
  metrics, hypotheses = evaluations.read(paths[0], *kept)
  hypotheses = [scoring.Hypothesis(*fields) for fields in hypotheses]
  assert scoring.summarize(hypotheses)['wer'] == pytest.approx(metrics['wer'])
  for path in paths:
    metrics, hypotheses = evaluations.read(path, *kept)
    assert metrics['utterances'] == len(hypotheses)
