"""Evaluations that go with the repository: what figures are worked out from.

From them statistics can be worked out again without training (though not
without the data), and a matrix that one machine cannot finish is finished on
another. A file is named by the hash of all that it depends on, so that what has
changed since never meets it.
"""

from __future__ import annotations

import gzip
import json
import pathlib
import zlib
from collections.abc import Mapping
from typing import Any

from experiments import results
from s8bqat_jax import files


def path_of(
  folder: pathlib.Path, name: str, about: Mapping[str, Any]
) -> pathlib.Path:
  """Returns where an evaluation is kept, or would be.

  Args:
    folder: of evaluations.
    name: for readers.
    about: what the evaluation depends on.
  """
  return folder / f'{name}-{results.config_hash(about)}.json.gz'


def write(path: pathlib.Path, about: Mapping[str, Any], **content: Any) -> None:
  """Writes an evaluation; the same one gives the same bytes.

  Args:
    path: of the file, which ends in `.json.gz`.
    about: what the evaluation depends on, for readers; the machine is added.
    **content: what came out, JSON-able.
  """
  path.parent.mkdir(parents=True, exist_ok=True)
  whole = {'about': about, 'machine': results.machine(), **content}
  text = json.dumps(whole, default=str)
  with files.replacing(path) as partial:
    partial.write_bytes(gzip.compress(text.encode(), mtime=0))


def read(path: pathlib.Path, *names: str) -> list[Any]:
  """Returns what came out at an evaluation.

  Args:
    path: of a file that `write` wrote.
    *names: what to return of its content.

  Raises:
    ValueError: if it is not whole.
  """
  try:
    whole = json.loads(gzip.decompress(path.read_bytes()))
    return [whole[name] for name in names]
  except (OSError, EOFError, zlib.error, KeyError, ValueError) as e:
    raise ValueError(
      f'{path} is no evaluation ({e}): take it from the repository again, or '
      'remove it to train anew'
    ) from e
