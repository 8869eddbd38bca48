"""Files that are there whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import pathlib
import secrets
from collections.abc import Iterator

_NO_ROOM = errno.ENOSPC, errno.EDQUOT, errno.EFBIG


@contextlib.contextmanager
def replacing(path: os.PathLike | str) -> Iterator[pathlib.Path]:
  """Yields where to write a file, which then takes the place of `path`.

  If writing it fails, `path` is what it was and nothing else is left.

  Args:
    path: a file of this machine, there already or not; its folder is there.
  """
  target = pathlib.Path(path)
  # Beside it, to be on the same disk; of this writer, since others may write
  # the same file, on other machines too; with its ending, by which writers of
  # pictures choose a format.
  partial = target.with_name(
    f'{target.stem}.{secrets.token_hex(4)}.partial{target.suffix}'
  )
  try:
    with naming(target):
      yield partial
      os.replace(partial, target)
  finally:
    partial.unlink(missing_ok=True)


@contextlib.contextmanager
def naming(path: os.PathLike | str) -> Iterator[None]:
  """Lets a full disk say which file there was no room for.

  Args:
    path: what is written.
  """
  try:
    yield
  except OSError as e:
    if e.errno in _NO_ROOM and e.filename is None:
      e.filename = str(path)
    raise


def read_text(path: os.PathLike | str) -> str:
  """Returns a text in UTF-8, without the mark that some programs put first.

  Args:
    path: the file.

  Raises:
    ValueError: if it is in another encoding; names the file.
  """
  try:
    return pathlib.Path(path).read_text(encoding='utf-8-sig')
  except UnicodeDecodeError as e:
    raise ValueError(f'{path}: not UTF-8 text: {e}; save it as UTF-8') from e


def write_text(path: os.PathLike | str, text: str) -> None:
  """Writes a text file whole or not at all.

  Args:
    path: as for `replacing`.
    text: what it will hold.
  """
  with replacing(path) as partial:
    partial.write_text(text, encoding='utf-8')
