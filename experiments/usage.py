"""What every command does before it works: ask its command line, set up."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence

import jax
import ml_collections
from absl import app, flags, logging

from experiments import results
from s8bqat_jax import training


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


def start(argv: Sequence[str], files: bool = False) -> None:
  """Prepares the process of a command.

  Keeps the libraries' progress notes out, unless --verbosity asks, and freed
  memory in. Notes the commit: one that is made meanwhile is not what runs.

  Args:
    argv: of `main`.
    files: whether it takes names of files beside flags.

  Raises:
    UsageError: for what belongs to no flag, and would be ignored.
  """
  if not files:
    no_arguments(argv)
  results.revision()
  training.reuse_host_memory()
  if not flags.FLAGS['verbosity'].present:
    logging.set_verbosity(logging.WARNING)


def keep_compiled(folder: os.PathLike | str) -> None:
  """Lets compiled programs outlive the process, in `folder`.

  Evaluating many models of one shape, or resuming, then compiles nothing. A
  folder that the user has given jax (JAX_COMPILATION_CACHE_DIR) is kept.
  """
  if jax.config.values['jax_compilation_cache_dir']:
    return
  jax.config.update('jax_compilation_cache_dir', str(folder))
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.5)


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
