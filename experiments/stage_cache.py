"""Stages of an experiment, each worked for once.

A stage lives in a folder named by the hash of all that it depends on, and is
done when its `result.json` is there. A rerun therefore goes on where the last
one stopped, and a changed config never meets old files.
"""

from __future__ import annotations

import json
import os
import pathlib
import time
from collections.abc import Callable, Mapping
from typing import Any

from experiments import results

RESULT = 'result.json'


class Interrupted(Exception):
  """Training was asked to stop; its checkpoint is written."""


def cached(
  folder: pathlib.Path,
  config: Mapping[str, Any],
  work: Callable[[pathlib.Path], dict[str, Any]],
) -> dict[str, Any]:
  """Returns a stage's result, working for it if it is not there.

  Args:
    folder: of the stage; its name should tell configs apart.
    config: what the stage depends on, written beside the result.
    work: (folder) -> JSON-able result.
  """
  path = folder / RESULT
  if not path.exists():
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / 'stage.json', config)
    start = time.perf_counter()
    result = work(folder)
    commit, dirty = results.revision()
    _write(
      path,
      {
        'seconds': time.perf_counter() - start,
        'revision': f'{commit}+' if dirty else commit,
        **result,
      },
    )
  return json.loads(path.read_text())


def _write(path: pathlib.Path, value: Any) -> None:
  # Two processes may work on the parts of one matrix.
  partial = path.with_suffix(f'.{os.getpid()}.partial')
  partial.write_text(json.dumps(value, indent=1, default=str))
  os.replace(partial, path)
