"""Runs the notebooks, whole, and keeps what they print and draw.

  python -m experiments.notebooks colabs/*.ipynb

A notebook remembers which code its outputs are of (`sources_hash`); a test says
when they are of other code. Nothing is written of one that fails.
"""

from __future__ import annotations

import os
import pathlib
from typing import Any

from absl import app

from experiments import results
from s8bqat_jax import files

_HASH = 'outputs_of'


def sources_hash(notebook: dict) -> str:
  """Returns a hash of a notebook's code."""
  sources = [
    ''.join(cell['source'])
    for cell in notebook['cells']
    if cell['cell_type'] == 'code'
  ]
  return results.config_hash({'sources': sources})


def is_current(notebook: dict) -> bool:
  """Whether a notebook's outputs are those of its code."""
  return notebook['metadata'].get(_HASH) == sources_hash(notebook)


def run(path: pathlib.Path, timeout: int | None = None) -> Any:
  """Returns a notebook with what its cells printed and drew.

  Args:
    path: of the notebook, whose folder it runs in.
    timeout: of a cell, in seconds.
  """
  import nbclient  # of the test extra
  import nbformat

  notebook = nbformat.read(path, as_version=4)
  nbformat.validate(notebook)
  nbclient.NotebookClient(
    notebook,
    timeout=timeout,
    kernel_name='python3',
    record_timing=False,
    resources={'metadata': {'path': str(path.parent)}},
  ).execute()
  return notebook


def execute(path: pathlib.Path) -> None:
  """Runs a notebook and writes it with its outputs."""
  import nbformat  # of the test extra

  notebook = run(path)
  notebook.metadata[_HASH] = sources_hash(notebook)
  # What differs each time, and from machine to machine.
  notebook.metadata.language_info = {'name': 'python'}
  for cell in notebook.cells:
    cell.metadata.pop('execution', None)
  files.write_text(path, nbformat.writes(notebook) + '\n')


def main(argv):
  if not argv[1:]:
    raise app.UsageError('name the notebooks, such as colabs/*.ipynb')
  os.environ.pop('S8BQAT_QUICK', None)  # what tests set, for few steps
  for path in map(pathlib.Path, argv[1:]):
    print(f'running {path}', flush=True)
    execute(path)


if __name__ == '__main__':
  app.run(main)
