"""What a training depends on, as JSON: the key under which it is kept."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from typing import Any

import ml_collections

from s8bqat_jax import data

# Fields of `data` that came later: at this they change nothing, and what was
# kept before them is found again.
_LATER = {'sort_within': 1}


def about(config: ml_collections.ConfigDict) -> dict[str, Any]:
  """Returns a training's config, with the data behind its specs.

  Args:
    config: the whole config; its pretraining's is treated alike.
  """
  found = {split: fingerprint(config.data[split]) for split in ('train', 'dev')}
  of_all = {**without_data(config), 'fingerprints': found}
  if config.get('pretrain'):
    of_all['pretrain'] = about(config.pretrain)
  return of_all


def without_data(config: ml_collections.ConfigDict) -> dict[str, Any]:
  """Returns what `about` says of a config where its data is not.

  Args:
    config: the whole config.
  """
  found = config.to_dict()
  found['data'] = {
    name: value
    for name, value in found['data'].items()
    if name not in _LATER or value != _LATER[name]
  }
  if config.get('pretrain'):
    found['pretrain'] = without_data(config.pretrain)
  return found


def anywhere(config: Mapping[str, Any]) -> dict[str, Any]:
  """Returns a config without the folders that its manifests and texts are in.

  Args:
    config: as a dict, or what `about` made of it.
  """
  specs = {
    key: re.sub(r'(manifest:|file=)[^?&+]*/(?=[^/?&+]+/[^/?&+]+)', r'\1', value)
    if isinstance(value, str)
    else value
    for key, value in config['data'].items()
  }
  found = {**config, 'data': specs}
  if config.get('pretrain'):
    found['pretrain'] = anywhere(config['pretrain'])
  return found


@functools.cache
def fingerprint(spec: str) -> str:
  """Returns the fingerprint of the corpus that a data spec names.

  The same wherever the data is, so of recordings it knows lengths, not samples:
  who replaces audio by other audio of the same length starts with new folders.

  Args:
    spec: of the data.
  """
  return data.load(spec).fingerprint
