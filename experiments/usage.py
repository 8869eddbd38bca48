"""What every command asks of its command line, before it works."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import ml_collections
from absl import app, flags


def arithmetic_flag(choices: Sequence[str]) -> flags.FlagHolder:
  """Defines --arithmetic, of commands that run a packed recognizer.

  Args:
    choices: `integer_recognizer.ARITHMETICS`.
  """
  return flags.DEFINE_enum(
    'arithmetic',
    None,
    choices,
    'float, its 8-bit twin, or integers alone; if unset the twin where the '
    'file has ranges of 8-bit activations, else float.',
  )


def no_arguments(argv: Sequence[str]) -> None:
  """Raises UsageError for what belongs to no flag, and would be ignored.

  Args:
    argv: of `main`.
  """
  if len(argv) > 1:
    raise app.UsageError(
      f'unexpected arguments {" ".join(argv[1:])}: a flag is --name=value, '
      'lists with commas and without blanks'
    )


def check_config(
  config: ml_collections.ConfigDict, section: str, folder: str
) -> None:
  """Raises UsageError for a config of another command.

  Args:
    config: of --config.
    section: what those of this command have, and no others.
    folder: where those of this command are.
  """
  if section not in config:
    raise app.UsageError(
      f'--config: this is no config of this command, which has a section '
      f'{section!r}: take a file of experiments/configs/{folder}'
    )


def check_known(flag: str, asked: Iterable[str], known: Iterable[str]) -> None:
  """Raises UsageError for a name that does not exist.

  Args:
    flag: that takes names.
    asked: those that it was given.
    known: those that there are.
  """
  known = list(dict.fromkeys(known))
  for name in asked:
    if name not in known:
      raise app.UsageError(
        f'--{flag}: {name!r} is not one of {", ".join(known)}'
      )
