"""Copies of a command share the cores and hear of SIGTERM."""

import os
import pathlib
import signal
import threading
import time

import pytest

from experiments import copies

_MODULE = """
import os, pathlib, signal, sys, time
folder, seconds = pathlib.Path(sys.argv[1]), float(sys.argv[2])
def stop(*unused):
  (folder / f'stopped-{os.getpid()}').touch()
  sys.exit(1)
signal.signal(signal.SIGTERM, stop)
time.sleep(0.2)  # The cores are set just after the start.
cores = getattr(os, 'sched_getaffinity', lambda _: set())(0)
line = os.environ['TQDM_POSITION']
partial = folder / f'.{line}'
partial.write_text(' '.join(map(str, sorted(cores))))
partial.rename(folder / f'started-{line}')
time.sleep(seconds)
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
  (tmp_path / 'a_copied_module.py').write_text(_MODULE)
  monkeypatch.setenv('PYTHONPATH', str(tmp_path))
  return 'a_copied_module'


def _started(folder: pathlib.Path) -> list[pathlib.Path]:
  return sorted(folder.glob('started-*'))


def test_copies_have_cores_and_lines_of_their_own(module, tmp_path):
  assert copies.run([module, str(tmp_path), '0'], 2)
  names = [path.name for path in _started(tmp_path)]
  assert names == ['started-0', 'started-1']
  cores = [set(path.read_text().split()) for path in _started(tmp_path)]
  if hasattr(os, 'sched_getaffinity') and len(copies.available_cores()) > 1:
    assert cores[0] and cores[1] and not cores[0] & cores[1]


def test_sigterm_is_handed_on(module, tmp_path):
  def send():
    while len(_started(tmp_path)) < 2:
      time.sleep(0.05)
    os.kill(os.getpid(), signal.SIGTERM)

  threading.Thread(target=send, daemon=True).start()
  assert not copies.run([module, str(tmp_path), '60'], 2)
  assert len(list(tmp_path.glob('stopped-*'))) == 2


def test_a_copy_that_fails_is_not_an_error_of_ours(tmp_path, capfd):
  assert copies.run(['no_such_module_anywhere'], 1)
  assert 'no_such_module_anywhere' in capfd.readouterr().err
