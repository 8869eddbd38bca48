"""What happens at SIGTERM, which asks a process to save and end."""

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
  try:
    before = signal.signal(signal.SIGTERM, lambda *unused: call())
  except ValueError:
    yield
    return
  try:
    yield
  finally:
    signal.signal(signal.SIGTERM, before)
