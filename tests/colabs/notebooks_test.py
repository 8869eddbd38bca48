"""The notebooks run from their first cell to their last, in few steps."""

import pathlib

import pytest

nbclient = pytest.importorskip('nbclient')
nbformat = pytest.importorskip('nbformat')

COLABS = pathlib.Path(__file__).parents[2] / 'colabs'


@pytest.fixture
def printed(monkeypatch):
  """Runs a notebook; returns what its cells printed."""
  monkeypatch.setenv('S8BQAT_QUICK', '1')
  monkeypatch.setenv('MPLBACKEND', 'agg')

  def run(name):
    notebook = nbformat.read(COLABS / name, as_version=4)
    nbformat.validate(notebook)
    nbclient.NotebookClient(
      notebook,
      timeout=300,
      kernel_name='python3',
      resources={'metadata': {'path': str(COLABS)}},
    ).execute()
    return ''.join(
      output.get('text', '')
      for cell in notebook.cells
      for output in cell.get('outputs', [])
    )

  return run


def test_s8bqat(printed):
  pytest.importorskip('espeakng_loader')
  text = printed('s8bqat.ipynb')
  assert 'WER' in text and 'bytes at 2 bits' in text
  assert 'powers of two' in text


def test_mixed_precision(printed):
  text = printed('mixed_precision.ipynb')
  assert 'ADMM, bits by trace' in text and 'rounded, 2 bits' in text
  assert 'in budget:' in text
  for metric in ('trace', 'kl', 'search'):
    assert f'{metric:7} rank correlation' in text
