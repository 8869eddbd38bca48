"""Runs a command of `experiments` as users do."""

import json
import os
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[2]


def printed(*args: str) -> str:
  """Returns what `python -m ARGS` prints; it must succeed."""
  return _python('-m', *args)


def results(folder: pathlib.Path, module: str, *args: str) -> dict:
  """Returns the one results file that `python -m MODULE ARGS` writes.

  Args:
    folder: where it writes it instead of beside the published ones.
    module: of `experiments`, whose name is that of its flags' owner.
    *args: its flags.
  """
  code = (
    'import pathlib, runpy, sys\n'
    'from experiments import results\n'
    f'results.FOLDER = pathlib.Path({str(folder)!r})\n'
    f'sys.argv = [{module!r}, *sys.argv[1:]]\n'
    f'runpy.run_module({module!r}, run_name="__main__")\n'
  )
  _python('-c', code, *args)
  (path,) = folder.glob('*.json')
  return json.loads(path.read_text())


def refused(*args: str) -> str:
  """Returns what `python -m ARGS` complains of; it must fail."""
  done = _run('-m', *args)
  assert done.returncode != 0, done.stdout
  return done.stderr


def _python(*args: str) -> str:
  done = _run(*args)
  assert done.returncode == 0, done.stderr
  return done.stdout


def _run(*args: str) -> subprocess.CompletedProcess[str]:
  # One device, as most machines have.
  flags = re.sub(r'(device_count)=\d+', r'\1=1', os.environ['XLA_FLAGS'])
  return subprocess.run(
    [sys.executable, *args],
    cwd=ROOT,
    env={**os.environ, 'XLA_FLAGS': flags},
    capture_output=True,
    text=True,
    timeout=300,
  )
