"""Where a training keeps things: folders of this machine."""

from __future__ import annotations

import os
import pathlib
import re


def local(path: os.PathLike | str) -> pathlib.Path:
  """Returns a path of this machine's file system.

  Args:
    path: a file or folder. As a plain path `gs://bucket/run` would be a folder
      `gs:` beside the others.

  Raises:
    ValueError: if it is the address of a remote one.
  """
  # One slash: pathlib merges two.
  if re.match(r'[A-Za-z][A-Za-z0-9+.-]+:/', os.fspath(path)):
    raise ValueError(
      f'{path}: remote paths are not supported: mount it and give the folder '
      'where it is mounted, or train in a local folder and copy that'
    )
  return pathlib.Path(path)
