"""Stages of an experiment, each worked for once.

A stage lives in a folder named by the hash of all that it depends on, and is
done when its `result.json` is there. A rerun therefore goes on where the last
one stopped, and a changed config never meets old files. Whoever works on a
stage holds a lock that ends with the process, so that copies of one command
share its jobs, and `run` takes them in turns.
"""

from __future__ import annotations

import collections
import contextlib
import fcntl
import json
import pathlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Generic, TypeVar

from experiments import results
from s8bqat_jax import files

RESULT = 'result.json'
STAGE = 'stage.json'  # what it depends on
_SPENT = 'seconds.json'  # of all sessions so far
_POLL_SECONDS = 1.0

Job = TypeVar('Job')
Result = TypeVar('Result')


class Interrupted(Exception):
  """Training was asked to stop; its checkpoint is written."""


class Busy(Exception):
  """Another process works on the stage."""


class Turns(Generic[Job]):
  """Jobs in their order; those that were put off come again."""

  def __init__(self, jobs: Iterable[Job]):
    self._left = collections.deque(jobs)
    self._put_off = 0

  def __iter__(self) -> Iterator[Job]:
    while self._left:
      if self._put_off >= len(self._left):
        time.sleep(_POLL_SECONDS)
        self._put_off = 0
      yield self._left.popleft()

  def later(self, job: Job) -> None:
    """Puts a job off, because somebody else works on what it needs."""
    self._left.append(job)
    self._put_off += 1


def run(
  jobs: Iterable[Job],
  work: Callable[[Job], Result],
  *,
  planned: Sequence[Job] | None = None,
  max_hours: float = float('inf'),
  done: Callable[[Job], bool] = lambda job: False,
  failures: tuple[type[Exception], ...] = (FloatingPointError, RuntimeError),
) -> tuple[dict[Job, Result], list[str]]:
  """Works on jobs one after another.

  Those that another process works on are waited for, after all others; one that
  diverges or cannot be costs no other its result.

  Args:
    jobs: what to work on.
    work: (job) -> its result.
    planned: all that results are of, these jobs among them: what another run
      has done by then is read as well. None for the jobs themselves.
    max_hours: none starts after that long,
    done: but for those of which only reading is left.
    failures: what is a job's own failure.

  Returns:
    {job: result}, in the order of the plan, and a line for each of the plan
    that is not there: its name, or why it failed.
  """
  jobs = list(jobs)
  start = time.perf_counter()
  found: dict[Job, Result] = {}
  failed: dict[Job, str] = {}

  def go_through(turns: Turns[Job]) -> None:
    for job in turns:
      late = time.perf_counter() - start > 3600 * max_hours
      if late and not done(job):
        continue
      try:
        found[job] = work(job)
      except Busy:
        turns.later(job)
      except failures as e:
        failed[job] = f'{job}: failed: {e}'
        print(failed[job], flush=True)

  go_through(Turns(jobs))
  if planned is None:
    planned = jobs
  others = (job for job in planned if job not in found and job not in failed)
  go_through(Turns(job for job in others if done(job)))
  return (
    {job: found[job] for job in planned if job in found},
    [failed.get(job, str(job)) for job in planned if job not in found],
  )


def patiently(work: Callable[[], Result]) -> Result:
  """Returns what comes of `work`, once nobody else is at it.

  Args:
    work: what may raise `Busy`.
  """
  while True:
    try:
      return work()
    except Busy:
      time.sleep(_POLL_SECONDS)


def cached(
  folder: pathlib.Path,
  config: Mapping[str, Any],
  work: Callable[[pathlib.Path], dict[str, Any]],
) -> dict[str, Any]:
  """Returns a stage's result, working for it if it is not there.

  Args:
    folder: of the stage; its name should tell configs apart.
    config: what the stage depends on, written beside the result.
    work: (folder) -> JSON-able result.

  Raises:
    Busy: another process is at it.
  """
  path = folder / RESULT
  if path.exists():
    return json.loads(path.read_text())
  folder.mkdir(parents=True, exist_ok=True)
  with _claimed(folder):
    if path.exists():  # Finished between the two looks.
      return json.loads(path.read_text())
    _write(folder / STAGE, config)
    spent = folder / _SPENT
    before = json.loads(spent.read_text()) if spent.exists() else 0.0
    start = time.perf_counter()
    try:
      result = work(folder)
    finally:  # also of a stage that is interrupted, to go on another time
      seconds = before + time.perf_counter() - start
      _write(spent, seconds)
    commit, dirty = results.revision()
    _write(
      path,
      {
        'seconds': seconds,
        'revision': f'{commit}+' if dirty else commit,
        **result,
      },
    )
  return json.loads(path.read_text())


@contextlib.contextmanager
def _claimed(folder: pathlib.Path) -> Iterator[None]:
  with (folder / 'lock').open('w') as f:
    try:
      fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      raise Busy(f'another process works on {folder}') from None
    yield


def _write(path: pathlib.Path, value: Any) -> None:
  files.write_text(path, json.dumps(value, indent=1, default=str))
