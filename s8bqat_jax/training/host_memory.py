"""Keeps freed memory in the process, so that steps on a CPU do not fault.

XLA on a CPU allocates the temporary buffers of every call anew. The C library
hands large ones back to the kernel at once, which then clears their pages for
the next call: a third of a small recognizer's training step.

Threads other than the first, XLA's among them, allocate from arenas of 64 MB
each, and what is larger they map and unmap whatever the other settings say.
So there must be one arena for all of them.
"""

import ctypes
import sys

# Numbers of <malloc.h>, and the values they get.
_SETTINGS = (
  (-1, 2**31 - 1),  # M_TRIM_THRESHOLD
  (-4, 0),  # M_MMAP_MAX
  (-8, 1),  # M_ARENA_MAX
)


def reuse_host_memory() -> bool:
  """Tells the C library to keep what is freed for the next allocation.

  For a process that trains or decodes; its memory stays at its peak. Call it
  before anything runs in JAX: a thread keeps the arena that it has. Elsewhere
  than on Linux with glibc nothing happens.

  Returns:
    Whether the C library agreed.
  """
  if not sys.platform.startswith('linux'):
    return False
  try:
    mallopt = ctypes.CDLL(None).mallopt
  except (AttributeError, OSError):  # Not glibc.
    return False
  return all(mallopt(name, value) for name, value in _SETTINGS)
