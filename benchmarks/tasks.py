"""Configs of tasks whose corpora may not be here."""

from __future__ import annotations

import pathlib
from typing import Any

from experiments.configs.float import asc_strings


def with_task_b(found: dict[str, Any], folder: str) -> dict[str, Any]:
  """Adds task B to configs by name, if its corpus is there.

  Args:
    found: the others.
    folder: of the corpora.
  """
  if not (pathlib.Path(folder) / 'asc_commands').is_dir():
    return found
  return {**found, 'task B': asc_strings.get_config(f'data={folder}')}


def missing(found: dict[str, Any]) -> list[str]:
  """Returns what a results file says was not run."""
  return [] if 'task B' in found else ['task B: no asc_commands corpus']
