"""Atomic checkpoints, through orbax: the latest few, and the best one.

A state of any structure is stored as a flat {path: array}, so that what is on
disk can be listed and compared with what a config expects before anything is
loaded.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from s8bqat_jax import files
from s8bqat_jax.training import paths

_ARRAYS, _NOTES = 'arrays', 'notes'
_AMENDED = '{}_notes.json'  # those of a step that had been stored before
# What TensorStore writes into errors of the operating system.
_OS_ERROR = 'os_error_code='


class Checkpoints:
  """The checkpoints under one directory.

  Attributes:
    directory: where they live: `latest/<step>` and `best/<step>`.
  """

  def __init__(self, directory: os.PathLike | str, keep: int = 2):
    """Opens (and creates) the directory; `keep` latest ones are kept."""
    self.directory = paths.local(directory).absolute()
    self._managers = {
      name: ocp.CheckpointManager(
        self.directory / name,
        item_handlers={
          _ARRAYS: ocp.StandardCheckpointHandler(),
          _NOTES: ocp.JsonCheckpointHandler(),
        },
        options=ocp.CheckpointManagerOptions(
          max_to_keep=count,
          enable_async_checkpointing=False,
          create=True,
        ),
      )
      for name, count in (('latest', keep), ('best', 1))
    }

  def latest_step(self, which: str = 'latest') -> int | None:
    """Returns the newest step stored under `which`, or None."""
    return self._managers[which].latest_step()

  def save(
    self,
    step: int,
    state: Any,
    notes: Mapping[str, Any] | None = None,
    which: str = 'latest',
  ) -> None:
    """Stores `state` as the checkpoint of `step`; whole or not at all.

    Args:
      step: training steps taken.
      state: any pytree of arrays.
      notes: JSON-able facts to keep beside it.
      which: 'latest' or 'best'.

    Raises:
      OSError: naming the directory, if it can't be written (a full disk).
      ValueError: if two leaves of `state` have the same name.
    """
    arrays = _flatten(state)
    try:
      self._managers[which].save(
        step,
        args=ocp.args.Composite(
          **{
            _ARRAYS: ocp.args.StandardSave(arrays),
            _NOTES: ocp.args.JsonSave(dict(notes or {})),
          }
        ),
        force=True,
      )
    except ocp.checkpoint_manager.StepAlreadyExistsError:
      # The same state, of which more is known by now.
      self._amend(step, dict(notes or {}), which)
    except Exception as error:
      what = (
        f'could not write the checkpoint of step {step} under {self.directory}'
      )
      intact = f'The one before it (step {self.latest_step(which)}) is intact'
      # A full disk is a ValueError of TensorStore's.
      if not isinstance(error, OSError) and _OS_ERROR not in str(error):
        error.add_note(f'{what}. {intact}')
        raise
      raise OSError(
        f'{what}: {error}. {intact}: free some space, or fix the permissions, '
        'and run the same command again to resume'
      ) from error

  def restore(
    self, like: Any, which: str = 'latest', step: int | None = None
  ) -> tuple[Any, dict[str, Any]]:
    """Loads a checkpoint.

    Args:
      like: a state of the expected structure, shapes, dtypes and shardings
        (arrays, or jax.ShapeDtypeStruct).
      which: 'latest' or 'best'.
      step: the newest one if None.

    Returns:
      The state, and the notes stored beside it.

    Raises:
      FileNotFoundError: if there is none.
      ValueError: naming the tensors that differ, if it does not fit `like`.
    """
    manager = self._managers[which]
    step = manager.latest_step() if step is None else step
    if step is None:
      raise FileNotFoundError(f'no checkpoint under {self.directory / which}')
    wanted = _flatten(like)
    self._compare(manager, step, wanted)
    restored = manager.restore(
      step,
      args=ocp.args.Composite(
        **{
          _ARRAYS: ocp.args.StandardRestore(
            jax.tree.map(ocp.utils.to_shape_dtype_struct, wanted)
          ),
          _NOTES: ocp.args.JsonRestore(),
        }
      ),
    )
    leaves = [restored[_ARRAYS][name] for name in wanted]
    state = jax.tree.unflatten(jax.tree.structure(like), leaves)
    return state, self._amended(step, which) or restored[_NOTES]

  def _amend(self, step: int, notes: Mapping[str, Any], which: str) -> None:
    path = self.directory / _AMENDED.format(which)
    files.write_text(path, json.dumps({'step': step, 'notes': notes}))

  def _amended(self, step: int, which: str) -> dict[str, Any] | None:
    path = self.directory / _AMENDED.format(which)
    found = json.loads(path.read_text()) if path.exists() else {}
    return found['notes'] if found.get('step') == step else None

  def close(self) -> None:
    """Waits for what is being written and releases the directory."""
    for manager in self._managers.values():
      manager.close()

  def _compare(self, manager, step, wanted):
    stored = manager.item_metadata(step)[_ARRAYS]
    stored = getattr(stored, 'tree', stored)
    there, asked = (
      {name: f'{np.dtype(x.dtype)}{list(x.shape)}' for name, x in tree.items()}
      for tree in (stored, wanted)
    )
    problems = [
      f'{name}: expected {asked.get(name, "nothing")}, stored '
      f'{there.get(name, "nothing")}'
      for name in {**asked, **there}
      if asked.get(name) != there.get(name)
    ]
    if problems:
      more = (
        f'\n  ... and {len(problems) - 8} more' if len(problems) > 8 else ''
      )
      raise ValueError(
        f'the checkpoint {self.directory} at step {step} does not fit this '
        'config (another model, optimizer or quantizer?). Use the config it '
        'was trained with, or another directory:\n  '
        + '\n  '.join(problems[:8])
        + more
      )


def _flatten(state: Any) -> dict[str, Any]:
  flat = {}
  for path, leaf in jax.tree_util.tree_leaves_with_path(state):
    name = jax.tree_util.keystr(path, simple=True, separator='.')
    if name in flat:
      raise ValueError(
        f'two leaves of the state are called {name!r}, and one would be lost: '
        'rename one of them (a key may have a dot in it)'
      )
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
      raise ValueError(
        f'leaf {name!r} of the state is a PRNG key: keep jax.random.key_data '
        'of it'
      )
    flat[name] = leaf
  return flat
