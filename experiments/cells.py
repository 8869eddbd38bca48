"""What a matrix is made of: cells, named by strings as corpora are.

  SIZE/METHOD:BITS?option=value&option=value

  90k/float            200k/s8bqat:4?pull=8&every=0        90k/ptq uniform:2

Options are those of the method (methods.py), and three that every method knows:
`lr`, the highest learning rate, for the grid that all methods are tuned on, and
`predictor` and `joint`, bits of the prediction network and of the output layer,
where they need more than the encoder. A cell runs on every part (fold) and seed
of its matrix, and is scored on the matrix's split: what is tuned, on
development data.
"""

from __future__ import annotations

import ast
import importlib
import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import ml_collections

from experiments import methods, results

_RATE = 'lr'


class Cell(NamedTuple):
  """One system: a model size and a method.

  Attributes:
    size: of the model, as the float config names it.
    method: in `methods.METHODS`.
    bits: of every weight, or of the encoder's; 32 for floats.
    options: of the method, and of every method.
  """

  size: str
  method: str
  bits: int = 32
  options: tuple[tuple[str, Any], ...] = ()

  @property
  def method_options(self) -> dict[str, Any]:
    """The options that are the method's own."""
    every = (_RATE, *methods.PARTS)
    return {k: v for k, v in self.options if k not in every}

  @property
  def widths(self) -> tuple[tuple[str, int], ...]:
    """The options that are bits of parts of the model."""
    return tuple((k, v) for k, v in self.options if k in methods.PARTS)

  @property
  def part_bits(self) -> dict[str, int]:
    """Bits of the parts of the model that have some of their own."""
    return dict(self.widths)

  @property
  def label(self) -> str:
    """The method with its options, as tables and pictures show it."""
    options = ', '.join(f'{k} {v}' for k, v in self.options)
    return f'{self.method} ({options})' if options else self.method

  def __str__(self) -> str:
    bits = '' if self.bits == 32 else f':{self.bits}'
    options = '&'.join(f'{k}={v}' for k, v in self.options)
    return f'{self.size}/{self.method}{bits}' + (options and f'?{options}')


class Job(NamedTuple):
  """A cell on one part of the data under one seed, scored on a split."""

  cell: Cell
  part: str
  seed: int
  split: str = 'eval'

  def __str__(self) -> str:
    split = '' if self.split == 'eval' else f', {self.split}'
    return f'{self.cell}, part {self.part}, seed {self.seed}{split}'


class Plan(NamedTuple):
  """What every cell of a matrix runs on."""

  parts: tuple[str, ...]
  seeds: tuple[int, ...] = (0,)
  split: str = 'eval'

  @property
  def carries_headline(self) -> bool:
    """Whether it has as many seeds as the pair that was named before needs."""
    return self.carries_claims and len(self.seeds) >= 5

  @property
  def carries_claims(self) -> bool:
    """Whether it has trainings enough, and data that nothing was tuned on."""
    enough = len(self.seeds) >= 3 or len(self.parts) >= 4
    return enough and self.split == 'eval'


def parse(text: str) -> Cell:
  """Reads a cell.

  Args:
    text: as at the top of this file.

  Returns:
    The Cell.

  Raises:
    ValueError: saying what was expected.
  """
  head, _, tail = text.partition('?')
  size, slash, method = head.partition('/')
  method, colon, bits = method.partition(':')
  if not (size and slash and method) or (colon and not bits.isdigit()):
    raise ValueError(
      f'cell {text!r}: expected SIZE/METHOD:BITS?option=value&..., such as '
      '90k/s8bqat:4?pull=8'
    )
  options: list[tuple[str, Any]] = []
  for item in filter(None, tail.split('&')):
    key, equals, value = item.partition('=')
    if not equals:
      raise ValueError(f'cell {text!r}: option {item!r} has no value')
    if key in dict(options):
      raise ValueError(f'cell {text!r}: option {key!r} is given twice')
    options.append((key, _value(value)))
  cell = Cell(size, method, int(bits) if bits else 32, tuple(options))
  methods.check(method, cell.method_options)
  for rate in (value for key, value in options if key == _RATE):
    if type(rate) not in (float, int) or not 0 < rate < math.inf:
      raise ValueError(
        f'cell {text!r}: {_RATE} is {rate!r}, expected a number above 0'
      )
    if not methods.METHODS[method].trains:
      raise ValueError(f'cell {text!r}: {method} trains nothing: no {_RATE}')
  given = [int(bits or 0), *cell.part_bits.values()]
  if method.startswith('float') and any(given):
    raise ValueError(f'cell {text!r}: {method} takes no bits')
  fine = all(type(width) is int and 1 <= width <= 8 for width in given)
  if not method.startswith('float') and not fine:
    raise ValueError(f'cell {text!r}: {method} takes 1..8 bits')
  return cell


def jobs(config: ml_collections.ConfigDict, matrix: str) -> list[Job]:
  """Returns the jobs of a named matrix, cell after cell, in its order.

  Args:
    config: of configs/s8bqat.
    matrix: one of `config.matrices`.
  """
  if matrix not in config.matrices:
    raise ValueError(
      f'no matrix {matrix!r}; matrices: {", ".join(config.matrices)}'
    )
  _check_rates(config)
  parts, seeds, split = plan(config, matrix)
  found = [parse(text) for text in config.matrices[matrix].cells]
  for cell in found:
    _check_made(cell)
  return [
    Job(cell, part, seed, split)
    for cell in found
    for seed in seeds
    for part in parts
  ]


def plan(config: ml_collections.ConfigDict, matrix: str) -> Plan:
  """Returns what every cell of a matrix runs on."""
  chosen = config.matrices[matrix]
  parts = tuple(chosen.parts or config.parts)
  return Plan(parts, tuple(chosen.seeds), chosen.split)


def float_config(
  config: ml_collections.ConfigDict, job: Job
) -> ml_collections.ConfigDict:
  """Returns the config of the float model that a job starts from."""
  module = importlib.import_module(config.float.module)
  size = job.cell.size
  seed = config.float.begun_again.get(f'{size}/{job.seed}', job.seed)
  return module.get_config(
    config.float.arguments.format(
      size=size, part=job.part, seed=seed, data=config.data
    )
  )


def train_config(
  config: ml_collections.ConfigDict, job: Job
) -> ml_collections.ConfigDict:
  """Returns the config of a job's fine-tuning.

  It is the float model's with `config.finetune` in its `train`, `data` and
  `augment` sections, and the method in a section of its own: equal for all
  methods but for that one.
  """
  made = float_config(config, job)
  float_steps = made.train.steps
  made.starts_from = results.config_hash(made.to_dict())
  for behind in ('pretrain', 'joint_from_ctc'):
    if behind in made:
      del made[behind]
  made.seed = job.seed
  made.train.update(config.finetune.train)
  made.data.update(config.finetune.data)
  made.augment.update(config.finetune.augment)
  made.train.steps = round(config.finetune.share * float_steps)
  made.train.eval_every = 0  # What is scored is how training ends.
  made.train.learning_rate = dict(job.cell.options).get(
    _RATE,
    config.finetune.rates.get(
      f'{job.cell.method}:{job.cell.bits}', made.train.learning_rate
    ),
  )
  made.method = ml_collections.ConfigDict(
    {
      'name': job.cell.method,
      'bits': job.cell.bits,
      # Defaults too: a changed one is another training.
      'options': methods.resolved(
        job.cell.method, job.cell.bits, job.cell.method_options
      ),
      'final_phase': methods.final_phase(
        job.cell.method, config.finetune.freeze
      ),
    }
  )
  if job.cell.part_bits:
    made.method.part_bits = job.cell.part_bits
  made.activation_bits = config.activation_bits
  if made.activation_bits == 8:
    # Rounded activations are trained without it, and so are the floats that
    # they are compared with.
    made.model.dropout = 0.0
  made.float_steps = float_steps
  return made


def by_cell(found: Mapping[Job, Any]) -> Iterator[tuple[Cell, int, dict]]:
  """Yields (cell, seed, {part: value}) of the jobs that are there, in order."""
  groups: dict[tuple[Cell, int], dict[str, Any]] = {}
  for job, value in found.items():
    groups.setdefault((job.cell, job.seed), {})[job.part] = value
  for (cell, seed), parts in groups.items():
    yield cell, seed, parts


def _check_made(cell: Cell) -> None:
  """Raises ValueError for a method that cannot be made as the cell says."""
  rules = methods.rules_for(cell.bits, False, cell.part_bits)
  run = methods.Run(steps=100, learning_rate=lambda _: 1e-3)
  try:
    methods.make(cell.method, cell.bits, rules, run, cell.method_options)
  except ValueError as e:
    raise ValueError(f'cell {str(cell)!r}: {e}') from e


def _check_rates(config: ml_collections.ConfigDict) -> None:
  """Raises ValueError for a learning rate that no cell would ever take."""
  for key in config.finetune.rates:
    method, _, bits = key.partition(':')
    if method not in methods.METHODS or not bits.isdigit():
      raise ValueError(
        f'config.finetune.rates has {key!r}: expected METHOD:BITS, with a '
        f'method of {", ".join(methods.METHODS)} (32 bits for floats)'
      )


def _value(text: str) -> Any:
  try:
    return ast.literal_eval(text)
  except (ValueError, SyntaxError):
    return text
