"""Keeps freed memory in the process, so that steps on a CPU do not fault.

XLA on a CPU allocates the temporary buffers of every call anew. The C library
hands large ones back to the kernel at once, which then clears their pages for
the next call: a third of a small recognizer's training step.
"""

import ctypes
import sys

# Names and numbers of <malloc.h>.
_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4
_LARGEST = 2**31 - 1


def reuse_host_memory() -> bool:
  """Tells the C library to keep what is freed for the next allocation.

  For a process that trains or decodes; its memory stays at its peak. Call it
  before the first step. Elsewhere than on Linux with glibc nothing happens.

  Returns:
    Whether the C library agreed.
  """
  if not sys.platform.startswith('linux'):
    return False
  try:
    mallopt = ctypes.CDLL(None).mallopt
  except (AttributeError, OSError):  # Not glibc.
    return False
  kept = mallopt(_M_TRIM_THRESHOLD, _LARGEST)
  return bool(kept and mallopt(_M_MMAP_MAX, 0))
