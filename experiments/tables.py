"""Writes the tables of README, BUILD_NOTES and TABLES from results files.

  python -m experiments.tables

A table stands between two comments, the first of which says where it comes
from and which columns it shows, each with an optional format:

  <!-- table demo: method; parameters(,); wer(.2f) -->
  ...
  <!-- end -->

`where key=value` before the colon keeps the rows with that value;
`demo.comparisons` makes rows of a file's comparisons. A test holds the
documents equal to what this command would write. A comment that opens no such
table, and a table without an end, are errors: no text is ever lost.
"""

from __future__ import annotations

import pathlib
import re
from collections.abc import Callable

from absl import app

from experiments import results, usage
from s8bqat_jax import files

_ROOT = pathlib.Path(__file__).parents[1]
DOCUMENTS = (
  _ROOT / 'README.md',
  _ROOT / 'BUILD_NOTES.md',
  results.FOLDER / 'TABLES.md',
)
_OPEN, _CLOSE = '<!-- table ', '<!-- end -->'
_HEAD = re.compile(
  r'(?P<name>\w+)(?:\.(?P<part>\w+))?(?: where (?P<where>.+?))?: '
  r'(?P<columns>.+?) -->\n'
)
_COLUMN = re.compile(r'\s*(?P<key>[\w /]+?)\s*(?:\((?P<format>[^)]*)\))?\s*')


def render(
  text: str, read: Callable[[str], dict] = results.read, name: str = 'text'
) -> str:
  """Returns `text` with every table made anew.

  Args:
    text: a document.
    read: (name of a results file) -> its content.
    name: how errors name the document.

  Raises:
    ValueError: naming the table whose head or end is not as above, that has no
      rows, or none with a column.
  """
  before, *blocks = text.split(_OPEN)
  made = [before]
  for block in blocks:
    head = _HEAD.match(block)
    old, close, after = block.partition(_CLOSE)
    if head is None or not close or head.end() > len(old):
      raise ValueError(
        f'{name}: table {block.splitlines()[0]!r}: expected "NAME: COLUMN; '
        f'COLUMN -->", the table in lines of its own, and {_CLOSE}'
      )
    table = _table(head, read, f'{name}: table {head["name"]}')
    made += [_OPEN, head[0], table, '\n', _CLOSE, after]
  return ''.join(made)


def _table(head: re.Match, read: Callable[[str], dict], where: str) -> str:
  rows = read(head['name'])[head['part'] or 'rows']
  if head['where']:
    key, _, value = head['where'].partition('=')
    rows = [row for row in rows if str(row.get(key.strip())) == value.strip()]
    if not rows:
      raise ValueError(f'{where}: no row where {head["where"]}')
  columns = {}
  for text in head['columns'].split(';'):
    column = _COLUMN.fullmatch(text)
    if column is None:
      raise ValueError(f'{where}: {text!r} is not a column')
    columns[column['key']] = column['format'] or ''
  for key in columns:
    if not any(key in row or key in row.get('metrics', {}) for row in rows):
      raise ValueError(f'{where}: no row has a column {key!r}')
  return results.table(rows, columns)


def main(argv):
  usage.no_arguments(argv)
  for path in DOCUMENTS:
    text = render(files.read_text(path), name=path.name)
    files.write_text(path, text)


if __name__ == '__main__':
  app.run(main)
