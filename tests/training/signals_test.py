"""SIGTERM calls a function while a context lasts, and only then."""

import os
import signal
import threading

import pytest

from s8bqat_jax import training


def _terminate():
  os.kill(os.getpid(), signal.SIGTERM)


def test_sigterm_calls_the_innermost_and_the_outer_again_after_it():
  calls = []
  with training.on_sigterm(lambda: calls.append('outer')):
    with training.on_sigterm(lambda: calls.append('inner')):
      _terminate()
      _terminate()
    _terminate()
  assert calls == ['inner', 'inner', 'outer']


def test_what_was_there_before_comes_back_after_an_error():
  before = signal.getsignal(signal.SIGTERM)
  with pytest.raises(RuntimeError), training.on_sigterm(lambda: None):
    assert signal.getsignal(signal.SIGTERM) != before
    raise RuntimeError
  assert signal.getsignal(signal.SIGTERM) == before


def test_another_thread_leaves_signals_alone():
  before = signal.getsignal(signal.SIGTERM)
  entered = []

  def run():
    with training.on_sigterm(lambda: None):
      entered.append(signal.getsignal(signal.SIGTERM))

  thread = threading.Thread(target=run)
  thread.start()
  thread.join()
  assert entered == [before]
