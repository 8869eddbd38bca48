"""The notebooks run from their first cell to their last, in few steps."""

import pathlib
import re

import pytest

from experiments import notebooks

pytest.importorskip('nbclient')
nbformat = pytest.importorskip('nbformat')

COLABS = pathlib.Path(__file__).parents[2] / 'colabs'


@pytest.fixture
def printed(monkeypatch):
  """Runs a notebook; returns what its cells printed."""
  monkeypatch.setenv('S8BQAT_QUICK', '1')
  monkeypatch.setenv('MPLBACKEND', 'agg')

  def run(name):
    return ''.join(
      output.get('text', '')
      for cell in notebooks.run(COLABS / name, timeout=300).cells
      for output in cell.get('outputs', [])
    )

  return run


@pytest.mark.parametrize(
  'path', sorted(COLABS.glob('*.ipynb')), ids=lambda path: path.stem
)
def test_is_committed_as_it_ran(path):
  notebook = nbformat.read(path, as_version=4)
  assert notebooks.is_current(notebook), 'run: make notebooks'
  code = [cell for cell in notebook.cells if cell.cell_type == 'code']
  assert all(cell.execution_count for cell in code)
  assert not any('execution' in cell.metadata for cell in code)  # times
  outputs = [output for cell in code for output in cell.outputs]
  assert not any(output.output_type == 'error' for output in outputs)
  text = ''.join(output.get('text', '') for output in outputs)
  folders = re.findall(r'(?<![\w.])/(?:home|root|tmp|Users|opt|usr)/', text)
  assert not folders, 'of the machine that it ran on'


def test_outputs_are_of_the_code_that_made_them(tmp_path):
  path = tmp_path / 'small.ipynb'
  cell = nbformat.v4.new_code_cell('print(6 * 7)')
  nbformat.write(nbformat.v4.new_notebook(cells=[cell]), path)
  notebooks.execute(path)
  notebook = nbformat.read(path, as_version=4)
  assert notebook.cells[0].outputs[0].text == '42\n'
  assert notebooks.is_current(notebook)
  notebook.cells[0].source += '  # or so'
  assert not notebooks.is_current(notebook)


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
