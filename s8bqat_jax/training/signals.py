"""What happens at the signals that ask a process to save and end."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def on_sigterm(call: Callable[[], object]) -> Iterator[None]:
  """Calls a function at SIGTERM, instead of ending, while the context lasts.

  Outside the main thread, which alone hears of signals, it does nothing.

  Args:
    call: what to call; it interrupts whatever is running.

  Yields:
    Once.
  """
  with _on(signal.SIGTERM, call):
    yield


@contextlib.contextmanager
def on_stop(call: Callable[[], object]) -> Iterator[None]:
  """As `on_sigterm`, and the same at the first SIGINT (Ctrl-C).

  A second SIGINT does what it did before. Where SIGINT is ignored, as by
  what a shell runs in the background, it goes on being ignored.

  Args:
    call: what to call; it interrupts whatever is running.

  Yields:
    Once.
  """
  before = signal.getsignal(signal.SIGINT)

  def once():
    signal.signal(signal.SIGINT, before)
    call()

  with contextlib.ExitStack() as stack:
    stack.enter_context(on_sigterm(call))
    if before != signal.SIG_IGN:
      stack.enter_context(_on(signal.SIGINT, once))
    yield


@contextlib.contextmanager
def _on(number: int, call: Callable[[], object]) -> Iterator[None]:
  try:
    before = signal.signal(number, lambda *unused: call())
  except ValueError:
    yield
    return
  try:
    yield
  finally:
    signal.signal(number, before)
