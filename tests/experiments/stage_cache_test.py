"""Stages are worked for once, by one process at a time."""

import subprocess
import sys

import pytest

from experiments import stage_cache
from experiments.stage_cache import Busy, Turns, cached


def test_a_stage_is_worked_for_once(tmp_path):
  calls = []

  def work(folder):
    calls.append(folder)
    return {'answer': 42}

  first = cached(tmp_path / 'a', {'of': 1}, work)
  assert cached(tmp_path / 'a', {'of': 1}, work) == first
  assert first['answer'] == 42 and calls == [tmp_path / 'a']


def test_a_stage_that_failed_is_not_done_and_not_busy(tmp_path):
  def fail(folder):
    raise RuntimeError('no')

  with pytest.raises(RuntimeError, match='no'):
    cached(tmp_path / 'a', {}, fail)
  assert cached(tmp_path / 'a', {}, lambda _: {'x': 1})['x'] == 1


def test_the_seconds_of_a_stage_are_those_of_all_its_sessions(
  tmp_path, monkeypatch
):
  clock = iter([0.0, 100.0, 1000.0, 1010.0])
  monkeypatch.setattr(stage_cache.time, 'perf_counter', lambda: next(clock))

  def interrupted(folder):
    raise stage_cache.Interrupted

  with pytest.raises(stage_cache.Interrupted):
    cached(tmp_path / 'a', {}, interrupted)
  assert cached(tmp_path / 'a', {}, lambda _: {})['seconds'] == 110


def test_a_stage_that_somebody_works_on_is_busy(tmp_path):
  def work(folder):
    with pytest.raises(Busy, match=str(tmp_path / 'a')):
      cached(folder, {}, lambda _: {'x': 'of another'})
    return {'x': 'mine'}

  assert cached(tmp_path / 'a', {}, work)['x'] == 'mine'
  assert cached(tmp_path / 'a', {}, lambda _: {})['x'] == 'mine'


_HOLD = """
import pathlib, sys, time
from experiments import stage_cache

def work(folder):
  print('held', flush=True)
  time.sleep(60)

stage_cache.cached(pathlib.Path(sys.argv[1]), {}, work)
"""


def test_the_claim_of_a_killed_process_ends_with_it(tmp_path):
  command = [sys.executable, '-c', _HOLD, str(tmp_path / 'a')]
  with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
    assert other.stdout.readline() == 'held\n'
    with pytest.raises(Busy):
      cached(tmp_path / 'a', {}, lambda _: {})
    other.kill()
  assert cached(tmp_path / 'a', {}, lambda _: {'x': 1})['x'] == 1


def test_what_is_put_off_comes_after_all_others(monkeypatch):
  slept = []
  monkeypatch.setattr(stage_cache.time, 'sleep', slept.append)
  busy = {'b': 2, 'd': 1}  # how often each is found busy
  order = []
  turns = Turns('abcde')
  for job in turns:
    if busy.get(job, 0):
      busy[job] -= 1
      turns.later(job)
      continue
    order.append(job)
  assert order == list('acedb')
  # Only when all that is left was found busy.
  assert len(slept) == 2


def test_no_jobs_take_no_turns():
  assert list(Turns([])) == []


def test_results_are_of_all_that_is_planned():
  """Jobs of others are read if they are done; what is not there is listed."""
  worked = []

  def work(job):
    worked.append(job)
    if job == 'fails':
      raise RuntimeError('for a reason')
    return job.upper()

  found, not_run = stage_cache.run(
    ['c', 'fails'],
    work,
    planned=['a', 'b', 'c', 'fails', 'd'],
    done=lambda job: job in 'ad',
  )
  assert worked == ['c', 'fails', 'a', 'd']
  assert list(found.items()) == [('a', 'A'), ('c', 'C'), ('d', 'D')]
  assert not_run == ['b', 'fails: failed: for a reason']
  # After the hours only reading is left.
  found, not_run = stage_cache.run(
    ['b', 'a'], work, max_hours=-1, done=lambda job: job == 'a'
  )
  assert found == {'a': 'A'} and not_run == ['b']
