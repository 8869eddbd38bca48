"""No figure in the documents is typed by hand."""

import json

import pytest

from experiments import results, tables
from s8bqat_jax import files

_ROWS = {
  'rows': [
    {'method': 'float', 'metrics': {'wer': 4.0, 'words': 1500}},
    {'method': 'int8', 'metrics': {'wer': 5.0, 'words': 1500}},
  ]
}


@pytest.mark.parametrize('path', tables.DOCUMENTS, ids=lambda p: p.name)
def test_documents_are_what_the_command_writes(path):
  text = files.read_text(path)
  assert text == tables.render(text, name=path.name)


@pytest.mark.parametrize(
  'path', sorted(results.FOLDER.glob('*.json')), ids=lambda p: p.stem
)
def test_a_results_file_has_the_name_of_its_content(path):
  assert json.loads(path.read_text())['name'] == path.stem


def test_render():
  text = (
    'before\n<!-- table x: method; words(,); wer(.1f) -->\nold\n'
    '<!-- end -->\nafter'
  )
  once = tables.render(text, lambda name: _ROWS)
  assert '| float  | 1,500 | 4.0 |' in once and 'old' not in once
  assert once.startswith('before') and once.endswith('after')
  assert tables.render(once, lambda name: _ROWS) == once


def test_comparisons_are_rows_too():
  text = '<!-- table x.comparisons: a; relative(.1f) -->\n<!-- end -->'
  content = {**_ROWS, 'comparisons': [{'a': 'float', 'relative': 0.25}]}
  assert '| float | 0.2' in tables.render(text, lambda name: content)


@pytest.mark.parametrize(
  'text, message',
  [
    (
      '<!-- table x: wer -->\nlost?\n<!-- table x: method -->\n<!-- end -->',
      "table 'x: wer",
    ),
    ('<!-- table x: wer -->\n', 'expected "NAME: COLUMN'),
    ('<!-- table x wer -->\n<!-- end -->', 'expected "NAME: COLUMN'),
    ('<!-- table x: b-c -->\n<!-- end -->', "' ?b-c' is not a column"),
    ('<!-- table x where bits=9: wer -->\n<!-- end -->', 'no row where bits=9'),
  ],
)
def test_a_table_that_cannot_be_read_costs_no_text(text, message):
  with pytest.raises(ValueError, match=message):
    tables.render(text, lambda name: _ROWS)


def test_where_and_unknown_columns():
  text = '<!-- table x where method=int8: method; wer -->\n<!-- end -->'
  rendered = tables.render(text, lambda name: _ROWS)
  assert 'int8' in rendered and 'float' not in rendered
  with pytest.raises(ValueError, match="notes: table x: no row.*'bytes'"):
    tables.render(
      '<!-- table x: bytes -->\n<!-- end -->', lambda name: _ROWS, 'notes'
    )
