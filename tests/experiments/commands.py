"""Runs a command of `experiments` as users do."""

import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[2]


def printed(*args: str) -> str:
  """Returns what `python -m ARGS` prints; it must succeed."""
  done = subprocess.run(
    [sys.executable, '-m', *args],
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=300,
  )
  assert done.returncode == 0, done.stderr
  return done.stdout
