"""Rows of the language model experiment: what each cell comes to, found once.

What rows are worked out from can go with the repository: metrics, the nats of
every line, the errors in every utterance and what training logged. From that a
matrix that one machine cannot finish is finished on another, and statistics
are worked out again without training (though not without the texts).
"""

from __future__ import annotations

import dataclasses
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments import (
  evaluations,
  lm_matrix,
  lm_rescoring,
  lm_sensitivity,
  lm_stages,
)
from s8bqat_jax import training

# Metrics that are arrays, in files of this machine.
_ARRAYS = 'line_nats', lm_rescoring.ERRORS


@dataclasses.dataclass(frozen=True)
class Rows:
  """The rows of a matrix.

  Attributes:
    models: scores of the float models, {(seed, whether the smaller): scores}.
    rescoring: what else files are scored on, if anything.
    published: folder of rows that need no training any more.
    unpacked: where arrays of these are put.
    publishes: whether to add to them what is worked out here.
  """

  models: Mapping[tuple[int, bool], lm_sensitivity.Sensitivity]
  rescoring: lm_rescoring.Rescoring | None
  published: pathlib.Path
  unpacked: pathlib.Path
  publishes: bool = False

  def model(self, job: lm_matrix.Job) -> lm_sensitivity.Sensitivity:
    """Returns the scores of the float model that a job starts from."""
    return self.models[job.seed, job.cell.smaller]

  def row(self, job: lm_matrix.Job) -> dict[str, Any]:
    """Returns a job's row: trained, scored or read, whatever it takes.

    Its metrics name files of arrays, `line_nats` and `word_errors`, and
    `logged` is what its training logged; `outcome` leaves these out.
    """
    kept = self._published(job)
    if kept.exists() and not self._worked(job):
      return self._read(kept)
    row = self._work(job)
    if self.publishes:
      arrays = {
        name: np.load(row['metrics'][name]).tolist()
        for name in _ARRAYS
        if name in row['metrics']
      }
      about = self._about(job)
      evaluations.write(kept, about, row=_portable(row), arrays=arrays)
    return row

  def done(self, job: lm_matrix.Job) -> bool:
    """Whether a row needs no work worth the name."""
    return self._published(job).exists() or self._worked(job)

  def _worked(self, job: lm_matrix.Job) -> bool:
    """Whether a row's work was done here."""
    found, cell = self.model(job), job.cell
    if not lm_matrix.done(cell, found):
      return False
    if self.rescoring is None:
      return True
    bits = lm_matrix.bits_of(cell, found)
    return self.rescoring.done(found.stages.train(cell.method, bits))

  def _work(self, job: lm_matrix.Job) -> dict[str, Any]:
    """Trains a cell if it is not there, and scores its file."""
    found, (seed, cell) = self.model(job), job
    stages, bits = found.stages, lm_matrix.bits_of(cell, found)
    shipped = stages.train(cell.method, bits)
    metrics = stages.evaluate(shipped)
    if self.rescoring is not None:
      metrics |= self.rescoring.evaluate(shipped)
    row = {
      'system': 'Transformer LM',
      'method': cell.label,
      'bits': lm_matrix.mean_bits(bits, stages.float_params()),
      'point': cell.point,
      'seed': seed,
      'split': 'eval',
      'metrics': metrics,
      'logged': training.read_metrics(shipped.parent),
    }
    if not isinstance(bits, int):
      spent = found.allocation(cell.metric or '', cell.point).bytes
      row['allocation'] = bits
      row['share_of_budget'] = spent / found.budget(cell.point)
    return row

  def _published(self, job: lm_matrix.Job) -> pathlib.Path:
    """Returns where a row is published, or would be."""
    name = re.sub(r'[^\w.-]+', '_', f'{job.cell}-{job.seed}')
    return evaluations.path_of(self.published, name, self._about(job))

  def _read(self, path: pathlib.Path) -> dict[str, Any]:
    row, arrays = evaluations.read(path, 'row', 'arrays')
    folder = self.unpacked / path.name.split('.')[0]
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in arrays.items():
      row['metrics'][name] = str(folder / f'{name}.npy')
      np.save(row['metrics'][name], np.array(array))
    return row

  def _about(self, job: lm_matrix.Job) -> dict[str, Any]:
    """What a row depends on, wherever its texts and its float model are."""
    found, cell = self.model(job), job.cell
    bits: int | lm_stages.Bits = {} if cell.metric else int(cell.point)
    about = found.stages.about(cell.method, bits)
    if cell.metric is not None:
      about['allocation'] = found.about(cell.metric, cell.point)
    if self.rescoring is not None:
      about['rescored'] = self.rescoring.about
    return about


def outcome(row: Mapping[str, Any]) -> dict[str, Any]:
  """Returns what a results file says of a row."""
  return {k: v for k, v in _portable(row).items() if k != 'logged'}


def _portable(row: Mapping[str, Any]) -> dict[str, Any]:
  """A row without files of this machine."""
  metrics = {k: v for k, v in row['metrics'].items() if k not in _ARRAYS}
  return {**row, 'metrics': metrics}
