"""Every compression method of the experiments, by name.

A cell of a matrix names a method, its bits and its options; `make` turns that
into a Quantizer for a training of so many steps at such a learning rate. All
that train and quantize end in the same final phase. What is compared is data:

  float                 the checkpoint itself
  float continued       it, trained on
  ptq uniform           uniform grid of least squared error, no training
  ptq lloyd-max         Lloyd-Max centroids, no training
  uniform qat           straight-through on that grid; INT8 QAT at 8 bits
  learned step          the same with a step that is learned (LSQ)
  straight-through      straight-through on Lloyd-Max centroids
  coarse int8           int8 codes on a step so coarse that they code well
  s8bqat                centroids, pull and hard compressor, and its ablations
  acosr                 the single-region cosine of 2020, in the loss
  gq                    softmax annealing
  admm                  projection onto centroids, with multipliers
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import ml_collections
import optax

from experiments import fitting
from s8bqat_jax import quantizers
from s8bqat_jax.quantizers import codebook as books
from s8bqat_jax.quantizers import lloyd_max, row_scales
from s8bqat_jax.quantizers import rules as rule_lib
from s8bqat_jax.quantizers.uniform import book as uniform_book

FINAL_PHASE = 0.85  # of the steps; then codes are frozen
LAST, AVERAGED = 'last', 'averaged'  # weights, of which they are
# Of a transducer, by the names of their weights.
PARTS = {'predictor': '(embed|predictor_).*', 'joint': 'joint_.*'}
# Entropy of the codes that S8BQAT's weights end with, less than that of the
# centroids they begin with (1.91, 2.82, 3.76): what a coarse uniform step must
# match to be of the same encoded size. Measured on task B, four folds, less
# what the longer tables of int8 codes cost there.
CODE_ENTROPY = {2: 1.78, 3: 2.65, 4: 3.53}
# A step follows the weights by search, which is worth doing rarely.
_REFIT_EVERY = 50


class Run(NamedTuple):
  """The training that a method is made for.

  Attributes:
    steps: how many.
    learning_rate: their schedule.
    rows: whether each row of a weight gets a scale of its own.
    averaged: whether the final phase freezes the codes of averaged weights.
  """

  steps: int
  learning_rate: optax.Schedule
  rows: bool = False
  averaged: bool = False

  @property
  def free_steps(self) -> int:
    """Steps before the final phase."""
    return max(round(FINAL_PHASE * self.steps), 1)

  def pressure(self, total: float) -> optax.Schedule:
    """The pull of `total`, spread over the free steps."""
    return quantizers.pressure_schedule(
      total, self.free_steps, self.learning_rate
    )

  @property
  def channel_axis(self) -> int | None:
    """The axis that keeps a scale of its own, for uniform grids."""
    return 0 if self.rows else None

  def fit(self, w: jax.Array, levels: int) -> books.Codebook:
    """`fit_centroids` as the run says."""
    return fit_centroids(w, levels, self.rows)


class Method(NamedTuple):
  """A method as data.

  Attributes:
    make: (rules, run, bits, **options) -> Quantizer, or None for plain floats.
      A default that is a dict is one of each bits.
    trains: whether weights are trained; the others are fitted and encoded.
    rows: whether it can give each row a scale of its own, as the run says.
  """

  make: Callable[..., quantizers.Quantizer | None]
  trains: bool = True
  rows: bool = False


def fit_centroids(w: jax.Array, levels: int, rows: bool) -> books.Codebook:
  """Fits Lloyd-Max centroids.

  Args:
    w: float weights.
    levels: how many centroids.
    rows: whether each row has a scale of its own.
  """
  return (row_scales if rows else lloyd_max).fit(w, levels)


def _s8bqat(
  rules,
  run,
  bits,
  pull=4.0,
  every=1,
  reading='loss',
  coupling='flow',
  power=2.0,
  centroids='lloyd-max',
):
  """S8BQAT; a `pull` of 0 leaves MRACos out, 0 `every` the hard compressor."""
  del bits
  fits = {
    'lloyd-max': run.fit,
    'uniform': functools.partial(uniform_book, channel_axis=run.channel_axis),
  }
  if centroids not in fits:
    raise ValueError(f'centroids {centroids!r}: not one of {list(fits)}')
  return quantizers.s8bqat(
    rules,
    total_steps=run.free_steps,
    learning_rate=run.learning_rate,
    total_pull=pull,
    every=every,
    reading=reading,
    coupling=coupling,
    power=power,
    fit=fits[centroids],
  )


def _acosr(rules, run, bits, pull=4.0, coupling='loss'):
  del bits
  return quantizers.acosr(rules, pressure=run.pressure(pull), coupling=coupling)


def _coarse(rules, run, bits, rate=CODE_ENTROPY, refit_every=_REFIT_EVERY):
  """Codes of an entropy of `rate` bits."""
  del run
  if {rule.bits for rule in rules} - {None, bits}:
    raise ValueError('coarse int8 has one rate for all weights')
  coarse = [rule._replace(bits=rule.bits and 8) for rule in rules]
  return quantizers.uniform(
    coarse, scale=quantizers.entropy_scale(rate), refit_every=refit_every
  )


def _admm(rules, run, bits, pull=100.0, table='lloyd_max', every=10):
  del bits
  fit = run.fit if run.rows else None
  return quantizers.admm(
    rules, rho=run.pressure(pull), table=table, every=every, fit=fit
  )


def _uniform(rules, run, bits, refit_every=_REFIT_EVERY):
  del bits
  return quantizers.uniform(
    rules,
    scale=quantizers.mse_scale,
    channel_axis=run.channel_axis,
    refit_every=refit_every,
  )


def _centroids(rules, run, bits):
  del bits
  return quantizers.centroids(rules, fit=run.fit)


METHODS: dict[str, Method] = {
  'float': Method(lambda rules, run, bits: None, trains=False),
  'float continued': Method(lambda rules, run, bits: None),
  'ptq uniform': Method(_uniform, trains=False, rows=True),
  'ptq lloyd-max': Method(_centroids, trains=False, rows=True),
  'uniform qat': Method(_uniform, rows=True),
  'learned step': Method(
    lambda rules, run, bits: quantizers.learnable(
      rules, channel_axis=run.channel_axis
    ),
    rows=True,
  ),
  'straight-through': Method(
    lambda rules, run, bits: quantizers.straight_through(
      _centroids(rules, run, bits)
    ),
    rows=True,
  ),
  'coarse int8': Method(_coarse),
  's8bqat': Method(_s8bqat, rows=True),
  'acosr': Method(_acosr),
  'gq': Method(
    lambda rules, run, bits: quantizers.gq(rules, total_steps=run.free_steps)
  ),
  'admm': Method(_admm, rows=True),
}


def rules_for(
  bits: int, ctc: bool, part_bits: Mapping[str, int] | None = None
) -> tuple[rule_lib.Rule, ...]:
  """Returns the rules of all cells: every kernel alike, but not the CTC head.

  Args:
    bits: of every weight.
    ctc: whether the model has the head, which trains and never ships.
    part_bits: of those of `PARTS` that differ.
  """
  head = [rule_lib.Rule('ctc_out/.*', None)] if ctc else []
  parts = [
    rule_lib.Rule(PARTS[part], width)
    for part, width in (part_bits or {}).items()
  ]
  return (*head, *parts, rule_lib.Rule('.*', bits))


def make(
  name: str,
  bits: int,
  rules: tuple[rule_lib.Rule, ...],
  run: Run,
  options: Mapping[str, Any] | None = None,
  row_rules: tuple[rule_lib.Rule, ...] = (),
) -> quantizers.Quantizer | None:
  """Returns the Quantizer of a cell.

  Args:
    name: in `METHODS`.
    bits: of every weight; 0 if they differ, 32 for floating-point methods.
    rules: which weights get how many; those of recognizers are `rules_for`.
    run: the training.
    options: of the method.
    row_rules: of the weights whose rows have a scale each; they are no
      business of `rules`. Metrics of those weights come second: `primal` is of
      the others, `1/primal` of these.

  Returns:
    The Quantizer with the final phase around it, or None for floats.

  Raises:
    ValueError: naming an unknown method or option, or a method that knows no
      row scales.
  """
  every_option = resolved(name, bits, options or {})
  method = METHODS[name]
  make_one: Callable[..., Any] = functools.partial(
    method.make, bits=bits, **every_option
  )
  quantizer: quantizers.Quantizer | None
  if row_rules:
    if not method.rows:
      able = ', '.join(n for n, m in METHODS.items() if m.rows)
      raise ValueError(f'method {name!r} has no row scales; methods: {able}')
    own = '|'.join(f'(?:{rule.pattern})' for rule in row_rules)
    routes = [(own, make_one(row_rules, run._replace(rows=True)))]
    if rules:
      routes.insert(0, (rf'(?!(?:{own})\Z).*', make_one(rules, run)))
    quantizer = quantizers.by_path(routes)
  else:
    quantizer = make_one(rules, run)
  if quantizer is None or not method.trains:
    return quantizer
  return quantizers.with_final_phase(
    quantizer, run.steps, FINAL_PHASE, averaged=run.averaged
  )


def final_phase(name: str, freeze: str) -> float | tuple[float, str]:
  """Returns what a fine-tuning's config says of its final phase.

  Args:
    name: of a method; those without codes have none, and `FINAL_PHASE` there.
    freeze: which weights' codes it freezes, `LAST` or `AVERAGED`.

  Raises:
    ValueError: if it is neither.
  """
  if freeze not in (LAST, AVERAGED):
    raise ValueError(
      f'config.finetune.freeze is {freeze!r}, expected {LAST!r} or {AVERAGED!r}'
    )
  frozen = METHODS[name].trains and not name.startswith('float')
  # The number alone is what configs had before there was a choice.
  return (FINAL_PHASE, freeze) if frozen and freeze != LAST else FINAL_PHASE


def run_of(config: ml_collections.ConfigDict) -> Run:
  """Returns the training of a fine-tuning's config."""
  _, schedule = fitting.make_optimizer(config.train)
  phase = config.method.final_phase
  averaged = not isinstance(phase, float) and phase[1] == AVERAGED
  return Run(config.train.steps, schedule, averaged=averaged)


def resolved(
  name: str, bits: Any, options: Mapping[str, Any]
) -> dict[str, Any]:
  """Returns all options of a method, defaults included.

  Args:
    name: in `METHODS`.
    bits: of every weight; whatever, where no default depends on them.
    options: those that are given.

  Raises:
    ValueError: naming an unknown method or option, or one without a default.
  """
  check(name, options)
  defaults = _defaults(name)
  made = {**defaults, **options}
  for option, value in made.items():
    if value == defaults[option]:  # 4 for 4.0 is no other training.
      made[option] = value = defaults[option]
    if isinstance(value, dict):
      if not isinstance(bits, int) or bits not in value:
        raise ValueError(
          f'method {name!r} knows its {option} at '
          f'{", ".join(map(str, value))} bits of all weights alike, and not '
          f'otherwise: give it as ?{option}='
        )
      made[option] = value[bits]
  return made


def check(name: str, options: Mapping[str, Any]) -> None:
  """Raises ValueError for what does not exist, or an option of another type."""
  if name not in METHODS:
    raise ValueError(f'no method {name!r}; methods: {", ".join(METHODS)}')
  known = _defaults(name)
  unknown = sorted(set(options) - set(known))
  if unknown:
    raise ValueError(
      f'method {name!r} has no option {unknown[0]!r}; options: '
      f'{", ".join(known) or "none"}'
    )
  for option, value in options.items():
    default = known[option]
    if isinstance(default, dict):
      default = next(iter(default.values()))
    kinds = (int, float) if isinstance(default, float) else type(default)
    if isinstance(value, bool) or not isinstance(value, kinds):
      raise ValueError(
        f'method {name!r}: {option} is {value!r}, expected a value like '
        f'{default!r}'
      )


def _defaults(name: str) -> dict[str, Any]:
  """The options of a method, which follow (rules, run, bits)."""
  made = inspect.signature(METHODS[name].make).parameters.values()
  return {option.name: option.default for option in list(made)[3:]}
