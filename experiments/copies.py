"""Copies of a command, each on processor cores of its own.

A model of a few hundred thousand weights keeps one core busy and hardly two.
Experiments whose stages are locked (stage_cache.py) train as many at a time as
there are copies.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Sequence

from s8bqat_jax import training


def run(command: Sequence[str], count: int) -> bool:
  """Runs copies of `python -m command` side by side and waits for them.

  A copy that fails says so itself; what it leaves undone is the caller's.
  SIGTERM is handed on, and an exception (Ctrl-C) ends the copies too.

  Args:
    command: module and arguments.
    count: how many copies.

  Returns:
    Whether they ended of themselves, and not because of SIGTERM.
  """
  cores = available_cores()
  copies: list[subprocess.Popen[bytes]] = []
  stopped = False

  def stop() -> None:
    nonlocal stopped
    stopped = True
    for copy in copies:
      if copy.poll() is None:
        copy.terminate()

  with training.on_sigterm(stop):
    try:
      for i in range(count):
        if stopped:
          break
        # A line of the terminal for each copy's progress bar.
        env = {**os.environ, 'TQDM_POSITION': str(i)}
        copy = subprocess.Popen([sys.executable, '-m', *command], env=env)
        copies.append(copy)
        if len(cores) >= count and hasattr(os, 'sched_setaffinity'):
          # Before it has imported anything that starts threads.
          with contextlib.suppress(ProcessLookupError):
            os.sched_setaffinity(copy.pid, cores[i::count])
      for copy in copies:
        copy.wait()
    except BaseException:
      stop()
      for copy in copies:
        copy.wait()  # It saves first.
      raise
  return not stopped


def available_cores() -> list[int]:
  """Returns the processor cores that this process may use."""
  if hasattr(os, 'sched_getaffinity'):
    return sorted(os.sched_getaffinity(0))
  return list(range(os.cpu_count() or 1))
