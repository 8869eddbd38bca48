"""The fields of a network, as a config section and a file give them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import ml_collections

_OF_FLAX = frozenset({'parent', 'name'})


def to_config(network: Any) -> dict[str, Any]:
  """Returns a network's fields as a file keeps them, but for its dtype.

  Args:
    network: a flax.linen Module.
  """
  left_out = _OF_FLAX | {'dtype'}
  names = [field.name for field in dataclasses.fields(network)]
  return {
    name: getattr(network, name) for name in names if name not in left_out
  }


def of_network(
  network: Any, config: Mapping[str, Any], given: frozenset[str] = frozenset()
) -> dict[str, Any]:
  """Returns a config section as a dict of a network's fields.

  Args:
    network: a flax.linen Module class.
    config: the section `model`.
    given: fields that come from elsewhere, which an error need not list.

  Raises:
    ValueError: naming a field that the network does not have.
  """
  fields = ml_collections.ConfigDict(config).to_dict()
  known = {f.name for f in dataclasses.fields(network)}
  unknown = sorted(set(fields) - known)
  if unknown:
    raise ValueError(
      f'config.model has no field {unknown[0]!r}; fields: '
      + ', '.join(sorted(known - _OF_FLAX - given))
    )
  return fields
