"""The fields of config sections: which there are, and what they may be."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

import ml_collections

_Made = TypeVar('_Made')
_OF_FLAX = frozenset({'parent', 'name'})


class _Field(NamedTuple):
  fits: Callable[[Any], bool]
  expected: str


def _number(fits: Callable[[float], bool], expected: str) -> _Field:
  plain = lambda x: isinstance(x, (int, float)) and not isinstance(x, bool)
  return _Field(lambda x: plain(x) and fits(x), expected)


def _whole(least: int) -> _Field:
  fits = lambda x: isinstance(x, int) and not isinstance(x, bool) and x >= least
  return _Field(fits, f'a whole number, {least} or more')


_POSITIVE = _number(lambda x: 0 < x < math.inf, 'a number above 0')
_SHARE = _number(lambda x: 0 <= x <= 1, 'a number from 0 to 1')
_TEXT = _Field(lambda x: isinstance(x, str), 'a text')
_TRAIN = {
  'steps': _whole(1),
  'learning_rate': _POSITIVE,
  'warmup_steps': _whole(0),
  'final_rate': _SHARE,
  'weight_decay': _number(lambda x: 0 <= x < math.inf, 'a number, 0 or more'),
  'clip_norm': _POSITIVE,
  'average_decay': _number(lambda x: 0 <= x < 1, 'a number from 0 to below 1'),
  'ctc_weight': _SHARE,
  'log_every': _whole(0),
  'eval_every': _whole(0),
  'save_every': _whole(0),
  'patience': _whole(0),
}
# The second line: what begins elsewhere, and what fine-tuning adds.
_RECOGNIZER = (
  'seed', 'tokenizer', 'data', 'perturb', 'augment', 'features', 'model',
  'train', 'pretrain', 'joint_from_ctc', 'starts_from', 'float_steps',
  'method', 'activation_bits',
)  # fmt: skip
_RECOGNIZER_DATA = {
  # The last: what recipes with a folder of their own are made of.
  **dict.fromkeys(('train', 'dev', 'eval', 'root'), _TEXT),
  **dict.fromkeys(
    ('batch_size', 'num_buckets', 'sort_within', 'normalize_utterances'),
    _whole(1),
  ),
}


def check_train(config: Mapping[str, Any]) -> None:
  """Raises ValueError unless training can be done as a config says.

  Args:
    config: its section `train`.
  """
  _check('train', config, _TRAIN)


def check_recognizer(config: Mapping[str, Any]) -> None:
  """Raises ValueError for what no training of a recognizer can be.

  Args:
    config: whole; networks, masks and perturbations check their own sections.
  """
  for name in config:
    if name not in _RECOGNIZER:
      raise ValueError(
        f'config has no field {name!r}; fields: {", ".join(_RECOGNIZER)}'
      )
  for section, known in (('train', _TRAIN), ('data', _RECOGNIZER_DATA)):
    _check(section, config[section], known)


def _check(
  section: str, config: Mapping[str, Any], known: Mapping[str, _Field]
) -> None:
  for name, value in config.items():
    if name not in known:
      raise ValueError(
        f'config.{section} has no field {name!r}; fields: {", ".join(known)}'
      )
    if not known[name].fits(value):
      raise ValueError(
        f'config.{section}.{name} is {value!r}, expected {known[name].expected}'
      )


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
  return _of('model', network, config, given)


def made(section: str, kind: type[_Made], config: Mapping[str, Any]) -> _Made:
  """Returns what a config section describes.

  Args:
    section: its name.
    kind: a dataclass with the section's fields.
    config: the section.

  Raises:
    ValueError: naming a field that it does not have, or saying what another
      may be.
  """
  fields = _of(section, kind, config)
  try:
    return kind(**fields)
  except (TypeError, ValueError) as e:
    raise ValueError(f'config.{section}: {e}') from e


def _of(
  section: str, kind: Any, config: Mapping[str, Any], given=frozenset()
) -> dict[str, Any]:
  fields = ml_collections.ConfigDict(config).to_dict()
  known = {f.name for f in dataclasses.fields(kind)}
  unknown = sorted(set(fields) - known)
  if unknown:
    raise ValueError(
      f'config.{section} has no field {unknown[0]!r}; fields: '
      + ', '.join(sorted(known - _OF_FLAX - given))
    )
  return fields
