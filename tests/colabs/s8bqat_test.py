"""The notebook runs from its first cell to its last, in few steps."""

import pathlib

import pytest

nbclient = pytest.importorskip('nbclient')
nbformat = pytest.importorskip('nbformat')
pytest.importorskip('espeakng_loader')

ROOT = pathlib.Path(__file__).parents[2]


def test_the_notebook_runs(monkeypatch):
  monkeypatch.setenv('S8BQAT_QUICK', '1')
  monkeypatch.setenv('MPLBACKEND', 'agg')
  notebook = nbformat.read(ROOT / 'colabs' / 's8bqat.ipynb', as_version=4)
  nbformat.validate(notebook)
  nbclient.NotebookClient(
    notebook,
    timeout=300,
    kernel_name='python3',
    resources={'metadata': {'path': str(ROOT / 'colabs')}},
  ).execute()
  text = ''.join(
    output.get('text', '')
    for cell in notebook.cells
    for output in cell.get('outputs', [])
  )
  assert 'WER' in text and 'bytes at 2 bits' in text
  assert 'powers of two' in text
