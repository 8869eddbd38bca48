"""Metrics as they come: one JSON line a record, and TensorBoard beside it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping

import tensorboardX

from s8bqat_jax import files
from s8bqat_jax.training import paths

_FILE = 'metrics.jsonl'


class MetricWriter:
  """Appends records to `metrics.jsonl` and to TensorBoard under a directory.

  A resumed run drops the records past the step it resumes from, so that the
  file reads as if nothing had happened.
  """

  def __init__(self, directory: os.PathLike | str, start_step: int = 0):
    directory = paths.local(directory)
    directory.mkdir(parents=True, exist_ok=True)
    self.path = directory / _FILE
    kept = [r for r in read_metrics(directory) if r['step'] <= start_step]
    files.write_text(self.path, ''.join(json.dumps(r) + '\n' for r in kept))
    self._file = self.path.open('a')
    self._board = tensorboardX.SummaryWriter(
      str(directory / 'tensorboard'), purge_step=start_step + 1
    )

  def write(self, step: int, values: Mapping[str, float]) -> None:
    """Records `values` at `step`."""
    record = {'step': step, **{k: float(v) for k, v in values.items()}}
    with files.naming(self.path):
      self._file.write(json.dumps(record) + '\n')
      self._file.flush()
    for name, value in values.items():
      self._board.add_scalar(name, float(value), step)

  def close(self) -> None:
    """Flushes and closes both."""
    self._file.close()
    self._board.close()


def read_metrics(directory: os.PathLike | str) -> list[dict[str, float]]:
  """Returns what was written; an incomplete last line is skipped.

  Args:
    directory: of a `MetricWriter`; there need be nothing.
  """
  path = paths.local(directory) / _FILE
  records = []
  for line in path.read_text().splitlines() if path.exists() else []:
    try:
      records.append(json.loads(line))
    except json.JSONDecodeError:
      continue
  return records
