"""Results files are whole or absent, and tables show what they hold."""

import json

import pytest

from experiments import results


def test_write_and_read(tmp_path):
  rows = [{'system': 'x', 'metrics': {'wer': 1.5, 'words': 1200}}]
  path = results.write('probe', rows, folder=tmp_path, not_run=['big'])
  stored = json.loads(path.read_text())
  assert stored == results.read('probe', tmp_path)
  assert stored['rows'] == rows and stored['not_run'] == ['big']
  assert stored['machine']['jax'] and 'revision' in stored
  assert [p.name for p in tmp_path.iterdir()] == ['probe.json']


def test_a_nan_leaves_the_old_file(tmp_path):
  results.write('probe', [{'a': 1.0}], folder=tmp_path)
  with pytest.raises(ValueError):
    results.write('probe', [{'a': float('nan')}], folder=tmp_path)
  assert results.read('probe', tmp_path)['rows'] == [{'a': 1.0}]


@pytest.mark.parametrize(
  'shared', [['--only=x', '--seeds=0'], ['--only', 'x'], ['--publish']]
)
def test_what_shares_the_work_is_not_what_was_done(monkeypatch, shared):
  words = ['run.py', '--config=a.py', *shared, '--matrix', 'curve']
  monkeypatch.setattr('sys.argv', words)
  kept = results.command(without=results.SHARING)
  assert kept.endswith(' --config=a.py --matrix curve')
  assert shared[0] in results.command()


def test_no_folder_of_a_machine_is_kept(monkeypatch):
  words = '--data=/home/me/corpora', 'a/b.py', '/tmp/x/model.file', '--m=a/b:1'
  monkeypatch.setattr('sys.argv', ['run.py', *words])
  assert results.command().endswith(
    ' --data=.../corpora a/b.py .../model.file --m=a/b:1'
  )


def test_an_unreadable_file_costs_no_new_one(tmp_path):
  (tmp_path / 'probe.json').write_text('<<<<<<< HEAD')
  results.write('probe', [{'a': 1}], folder=tmp_path)
  assert results.read('probe', tmp_path)['rows'] == [{'a': 1}]


def test_fewer_rows_than_before_are_said(tmp_path, capsys):
  for rows in ([{'a': 1}, {'a': 2}], [{'a': 1}, {'a': 2}], [{'a': 1}]):
    results.write('probe', rows, folder=tmp_path)
  said = capsys.readouterr().out.strip()
  assert said.count('\n') == 0 and 'had 2 rows and now gets 1' in said


def test_table():
  rows = [
    {'method': 'float', 'metrics': {'wer': 4.123, 'words': 12345}},
    {
      'method': 'int8',
      'metrics': {'wer': 5.0, 'ci95': [4.5, 5.5]},
      's': [1, 2],
    },
  ]
  columns = {'method': '', 'wer': '.1f', 'words': ',', 'ci95': '.1f', 's': ''}
  assert results.table(rows, columns).splitlines() == [
    '| method | wer | words  | ci95       | s    |',
    '|--------|-----|--------|------------|------|',
    '| float  | 4.1 | 12,345 |            |      |',
    '| int8   | 5.0 |        | 4.5 .. 5.5 | 1, 2 |',
  ]


def test_config_hash_ignores_order():
  assert results.config_hash({'a': 1, 'b': [2]}) == results.config_hash(
    {'b': [2], 'a': 1}
  )
  assert results.config_hash({'a': 1}) != results.config_hash({'a': 2})
