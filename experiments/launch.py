"""Flags of commands with a matrix: which of its jobs, where, how long."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

from absl import app, flags

from experiments import results, usage


class _OfCell(Protocol):
  @property
  def cell(self) -> Any: ...


Job = TypeVar('Job', bound=_OfCell)


@dataclasses.dataclass(frozen=True)
class Flags:
  """The flags of one command; `narrow` are lists, {field of its jobs: flag}."""

  runs: flags.FlagHolder[str]
  float_runs: flags.FlagHolder[Sequence[str]]
  only: flags.FlagHolder[str]
  narrow: Mapping[str, flags.FlagHolder[Sequence[str]]]
  hours: flags.FlagHolder[float]
  estimate: flags.FlagHolder[bool]

  def root(self) -> pathlib.Path:
    """Returns where stages are kept."""
    return pathlib.Path(self.runs.value)

  def float_folders(self) -> tuple[pathlib.Path, ...]:
    """Returns where float models may be found."""
    return tuple(map(pathlib.Path, self.float_runs.value))

  def asked(self, planned: Sequence[Job]) -> list[Job]:
    """Returns the jobs that the command line asks for; see `asked`."""
    narrow = {f.name: (field, f.value) for field, f in self.narrow.items()}
    return asked(planned, self.only.value, narrow)

  def goes_on(self, of_all: str, hours: Callable[[], float]) -> bool:
    """Says how long it will take; whether to start on it.

    Args:
      of_all: how many jobs, of how many.
      hours: works out how many are to go; asked only where they may be spent.
    """
    if self.estimate.value or self.hours.value > 0:
      print(f'{of_all}; about {hours():.2f} h to go')
    return not self.estimate.value


def define(runs: str, **fields: str) -> Flags:
  """Defines the flags of a command.

  Args:
    runs: where it keeps stages if it is not told.
    **fields: of jobs that a list narrows them by, {flag: field}.
  """
  return Flags(
    flags.DEFINE_string('runs', runs, 'Where stages are kept.'),
    flags.DEFINE_list(
      'float_runs',
      [str(results.MODELS / 'float')],
      'Where float models may be found, beside --runs.',
    ),
    flags.DEFINE_string(
      'only', '', 'Only the cell of this name, or those that contain it.'
    ),
    {
      field: flags.DEFINE_list(flag, [], f'Only these {flag}.')
      for flag, field in fields.items()
    },
    flags.DEFINE_float(
      'max_hours',
      float('inf'),
      'Start nothing after that; it is listed. 0: report what is done.',
    ),
    flags.DEFINE_bool('estimate_only', False, 'Print hours and stop.'),
  )


def asked(
  planned: Sequence[Job],
  only: str,
  narrow: Mapping[str, tuple[str, Sequence[str]]],
) -> list[Job]:
  """Returns the jobs of a plan that a command line asks for.

  Args:
    planned: all; each has a `cell`.
    only: what --only says.
    narrow: {flag: (field, values)}: only jobs with one of these values there;
      no value, no matter.

  Raises:
    app.UsageError: for a value that no job has, and if none is left.
  """
  cells = chosen((job.cell for job in planned), only)
  found = [job for job in planned if str(job.cell) in cells]
  for flag, (field, values) in narrow.items():
    usage.check_known(flag, values, (str(getattr(j, field)) for j in planned))
    found = [j for j in found if not values or str(getattr(j, field)) in values]
  if not found:
    given = {'only': only, **{f: ','.join(v) for f, (_, v) in narrow.items()}}
    names = ', '.join(dict.fromkeys(str(job.cell) for job in planned))
    raise app.UsageError(
      f'{" ".join(f"--{k}={v}" for k, v in given.items() if v)}: no such job; '
      f'the cells are {names}'
    )
  return found


def chosen(cells: Iterable[Any], only: str) -> set[str]:
  """Returns the names that `--only` means: that one, or all that contain it."""
  names = {str(cell) for cell in cells}
  return {only} if only in names else {n for n in names if only in n}
