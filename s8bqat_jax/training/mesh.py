"""Where arrays live: one mesh axis, `data`, over all devices of all processes.

The same code serves one CPU, eight devices and several hosts: params are
replicated, a batch's rows are split, and `jit` inserts the collectives.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

DATA = 'data'


def make_mesh(devices: Any = None) -> Mesh:
  """Returns the mesh over `devices`, all of them by default."""
  devices = jax.devices() if devices is None else devices
  return Mesh(np.asarray(devices), (DATA,))


def check_batch_size(batch_size: int, mesh: Mesh) -> None:
  """Raises ValueError unless the global batch splits evenly over the mesh."""
  if batch_size % mesh.size:
    raise ValueError(
      f'the batch size {batch_size} does not divide over {mesh.size} devices: '
      f'choose a multiple of {mesh.size}'
    )


def replicate(tree: Any, mesh: Mesh) -> Any:
  """Puts a copy of every leaf on every device."""
  sharding = NamedSharding(mesh, PartitionSpec())

  def put(x):
    if jax.process_count() == 1:
      return jax.device_put(x, sharding)
    # Every process holds the same value and contributes its own copies.
    return jax.make_array_from_process_local_data(sharding, np.asarray(x))

  return jax.tree.map(put, tree)


def shard_batch(batch: Any, mesh: Mesh) -> Any:
  """Splits the rows of a batch over the mesh.

  Args:
    batch: arrays whose leading axis is this process's rows of the global batch.
    mesh: from `make_mesh`.

  Returns:
    The same tree of global arrays.
  """
  sharding = NamedSharding(mesh, PartitionSpec(DATA))
  if jax.process_count() == 1:
    return jax.device_put(batch, sharding)  # half the time of what follows
  return jax.tree.map(
    lambda x: jax.make_array_from_process_local_data(sharding, x), batch
  )


def local_copy(tree: Any) -> Any:
  """Returns this process's copy of a replicated tree, on its first device."""
  return jax.tree.map(lambda x: x.addressable_data(0), tree)
