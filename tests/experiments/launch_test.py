"""Which jobs of a matrix a command line means, and whether they start."""

from typing import NamedTuple

import pytest
from absl import app, flags

from experiments import launch


class _Job(NamedTuple):
  cell: str
  part: str
  seed: int


_PLANNED = [
  _Job(cell, part, seed)
  for seed in (0, 1)
  for cell in ('float', 'float continued', 'admm, 3')
  for part in 'ab'
]


def _asked(only='', parts=(), seeds=()):
  narrow = {'parts': ('part', parts), 'seeds': ('seed', seeds)}
  return launch.asked(_PLANNED, only, narrow)


def test_a_cell_is_chosen_by_its_name_or_part_of_it():
  cells = ['float', 'float continued', 'admm, 3', 'admm, bits by kl, 3']
  assert launch.chosen(cells, 'float') == {'float'}
  assert launch.chosen(cells, 'floa') == {'float', 'float continued'}
  assert launch.chosen(cells, ', 3') == {'admm, 3', 'admm, bits by kl, 3'}
  assert launch.chosen(cells, '') == set(cells)
  assert launch.chosen(cells, 'lsq') == set()


def test_all_is_asked_for_unless_something_is_said():
  assert _asked() == _PLANNED


def test_lists_narrow_by_fields_as_they_read_on_the_command_line():
  assert _asked('float', parts=['b'], seeds=['1']) == [_Job('float', 'b', 1)]
  assert {job.seed for job in _asked(seeds=['0', '1'])} == {0, 1}
  assert {job.part for job in _asked('admm', seeds=['0'])} == {'a', 'b'}


def test_what_no_job_has_is_refused():
  with pytest.raises(app.UsageError, match="--seeds: '7' is not one of 0, 1"):
    _asked(seeds=['7'])
  with pytest.raises(
    app.UsageError, match='--only=lsq --parts=a: no such job; .* float, float c'
  ):
    _asked('lsq', parts=['a'])


def _flags(*line):
  """The flags of a command that was started with this line."""
  values = flags.FlagValues()
  with pytest.MonkeyPatch.context() as patch:
    for kind in ('string', 'list', 'float', 'bool'):
      define = getattr(flags, f'DEFINE_{kind}')
      patch.setattr(
        flags,
        f'DEFINE_{kind}',
        lambda *a, define=define: define(*a, flag_values=values),
      )
    found = launch.define('runs/here', parts='part', seeds='seed')
  values(['command', *line])
  return found


def test_the_command_line_is_read(tmp_path):
  found = _flags(f'--runs={tmp_path}', '--seeds=1', '--float_runs=a,b')
  assert {job.seed for job in found.asked(_PLANNED)} == {1}
  assert found.root() == tmp_path
  assert [str(f) for f in found.float_folders()] == ['a', 'b']
  assert found.hours.value == float('inf')
  assert _flags().runs.value == 'runs/here'


def test_hours_are_worked_out_only_where_they_may_be_spent(capsys):
  assert _flags().goes_on('2 of 3 jobs', lambda: 1.5)
  assert capsys.readouterr().out == '2 of 3 jobs; about 1.50 h to go\n'
  assert not _flags('--estimate_only').goes_on('all', lambda: 0.25)
  assert 'all; about 0.25 h to go' in capsys.readouterr().out
  report = _flags('--max_hours=0')
  assert report.goes_on('all', lambda: pytest.fail('timed for nothing'))
  assert capsys.readouterr().out == ''
