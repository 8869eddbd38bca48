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


@pytest.fixture
def default_sigint():
  before = signal.signal(signal.SIGINT, signal.default_int_handler)
  yield
  signal.signal(signal.SIGINT, before)


def test_a_stop_is_a_sigterm_or_the_first_sigint(default_sigint):
  calls = []
  with training.on_stop(lambda: calls.append(True)):
    _terminate()
    signal.raise_signal(signal.SIGINT)
    assert len(calls) == 2
    with pytest.raises(KeyboardInterrupt):
      signal.raise_signal(signal.SIGINT)
    _terminate()
  assert len(calls) == 3
  assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_what_ignores_sigint_goes_on_ignoring_it(default_sigint):
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  calls = []
  with training.on_stop(lambda: calls.append(True)):
    signal.raise_signal(signal.SIGINT)
  assert not calls
