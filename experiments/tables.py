"""Writes the tables of README.md and BUILD_NOTES.md from results files.

  python -m experiments.tables

A table stands between two comments, the first of which says where it comes
from and which columns it shows, each with an optional format:

  <!-- table demo: method; parameters(,); wer(.2f) -->
  ...
  <!-- end -->

`where key=value` before the colon keeps the rows with that value;
`demo.comparisons` makes rows of a file's comparisons. A test holds the
documents equal to what this command would write.
"""

from __future__ import annotations

import os
import pathlib
import re
from collections.abc import Callable

from absl import app

from experiments import results

_ROOT = pathlib.Path(__file__).parents[1]
DOCUMENTS = (_ROOT / 'README.md', _ROOT / 'BUILD_NOTES.md')
_BLOCK = re.compile(
  r'(?P<open><!-- table (?P<name>\w+)(?:\.(?P<part>\w+))?'
  r'(?: where (?P<where>[^:]+))?: '
  r'(?P<columns>.+?) -->\n).*?(?P<close><!-- end -->)',
  re.DOTALL,
)
_COLUMN = re.compile(
  r'\s*(?P<key>[\w /]+?)\s*(?:\((?P<format>[^)]*)\))?\s*(?:$|;)'
)


def render(
  text: str, read: Callable[[str], dict] = results.read, name: str = 'text'
) -> str:
  """Returns `text` with every table made anew.

  Args:
    text: a document.
    read: (name of a results file) -> its content.
    name: how errors name the document.

  Raises:
    ValueError: if a column is in none of the rows.
  """

  def table(match):
    rows = read(match['name'])[match['part'] or 'rows']
    if match['where']:
      key, value = match['where'].split('=')
      rows = [row for row in rows if str(row.get(key.strip())) == value.strip()]
    columns = {
      m['key']: m['format'] or '' for m in _COLUMN.finditer(match['columns'])
    }
    for key in columns:
      if not any(key in row or key in row.get('metrics', {}) for row in rows):
        raise ValueError(
          f'{name}: table {match["name"]}: no row has a column {key!r}'
        )
    return match['open'] + results.table(rows, columns) + '\n' + match['close']

  return _BLOCK.sub(table, text)


def main(argv):
  del argv
  for path in DOCUMENTS:
    text = render(path.read_text(), name=path.name)
    partial = path.with_suffix('.partial')
    partial.write_text(text)
    os.replace(partial, path)


if __name__ == '__main__':
  app.run(main)
