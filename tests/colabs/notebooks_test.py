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


@pytest.mark.parametrize(
  'path', sorted(COLABS.glob('*.ipynb')), ids=lambda path: path.stem
)
def test_is_committed_as_it_ran(path):
  cells = nbformat.read(path, as_version=4).cells
  code = [cell for cell in cells if cell.cell_type == 'code']
  assert [cell.execution_count for cell in code] == [
    *range(1, len(code) + 1)
  ], 'run: make notebooks'
  outputs = [output for cell in code for output in cell.outputs]
  assert not any(output.output_type == 'error' for output in outputs)
  # Of nothing but this repository: no folder of the machine it ran on.
  text = ''.join(output.get('text', '') for output in outputs)
  assert 'site-packages' not in text and str(pathlib.Path.home()) not in text


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


def test_your_model(printed):
  pytest.importorskip('espeakng_loader')
  text = printed('your_model.ipynb')
  assert 'no floating-point value; no accumulator can overflow' in text
  assert 'in integers alone' in text and 'Ethos-U55' in text
  assert '100% of its outputs equal ours' in text or 'not installed' in text
