"""Every compression method of the experiments, by name.

A cell of a matrix names a method, its bits and its options; `make` turns that
into a Quantizer for a training of so many steps at such a learning rate. All
of them end in the same final phase. What is compared is data:

  float                 the checkpoint itself
  float continued       it, trained on
  ptq uniform           uniform grid of least squared error, no training
  ptq lloyd-max         Lloyd-Max centroids, no training
  uniform qat           straight-through on that grid; INT8 QAT at 8 bits
  straight-through      straight-through on Lloyd-Max centroids
  coarse int8           int8 codes on a step so coarse that they code well
  s8bqat                centroids, pull and hard compressor, and its ablations
  acosr                 the single-region cosine of 2020, in the loss
  gq                    softmax annealing
  admm                  projection onto centroids, with multipliers
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from s8bqat_jax import quantizers
from s8bqat_jax.artifacts import qtensor
from s8bqat_jax.quantizers import codebook as books
from s8bqat_jax.quantizers import lloyd_max
from s8bqat_jax.quantizers import rules as rule_lib

FINAL_PHASE = 0.85  # of the steps; then codes are frozen
# Entropy of the codes that Lloyd-Max centroids give Gaussian weights: what a
# coarse uniform step has to match to be of the same encoded size.
CODE_ENTROPY = {2: 1.91, 3: 2.82, 4: 3.76, 5: 4.73}
# A step follows the weights by search, which is worth doing rarely.
_REFIT_EVERY = 50


class Run(NamedTuple):
  """The training that a method is made for.

  Attributes:
    steps: how many.
    learning_rate: their schedule.
    peak: its highest value.
  """

  steps: int
  learning_rate: optax.Schedule
  peak: float

  @property
  def free_steps(self) -> int:
    """Steps before the final phase."""
    return max(round(FINAL_PHASE * self.steps), 1)

  def pressure(self, total: float) -> optax.Schedule:
    """The pull of `total`, spread over the free steps."""
    return quantizers.pressure_schedule(
      total, self.free_steps, self.learning_rate
    )


class Method(NamedTuple):
  """A method as data.

  Attributes:
    make: (rules, run, bits, **options) -> Quantizer, or None for plain floats.
    trains: whether weights are trained; the others are fitted and encoded.
  """

  make: Callable[..., quantizers.Quantizer | None]
  trains: bool = True


def uniform_book(w: jax.Array, levels: int) -> books.Codebook:
  """Returns the uniform grid of least squared error as centroids.

  Args:
    w: float weights.
    levels: how many centroids.
  """
  low, high = qtensor.uniform_range(levels)
  values = [-1, 1] if levels == 2 else list(range(low, high + 1))
  scale = quantizers.mse_scale(w, levels)
  return books.Codebook(jnp.array(values, jnp.int8), scale)


_FITS = {'lloyd-max': lloyd_max.fit, 'uniform': uniform_book}


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
  if reading not in (quantizers.AT_CODES, quantizers.OVERWRITE):
    raise ValueError(f"reading must be 'loss' or 'overwrite', got {reading!r}")
  if centroids not in _FITS:
    raise ValueError(f'centroids {centroids!r}: not one of {list(_FITS)}')
  fit = _FITS[centroids]
  if pull:
    method = quantizers.mracos(
      rules,
      pressure=run.pressure(pull),
      power=power,
      coupling=coupling,
      fit=fit,
    )
  else:
    method = quantizers.centroids(rules, fit=fit)
  if not every:
    return method
  if reading == quantizers.AT_CODES:
    return quantizers.loss_at_codes(method, every)
  return quantizers.hard_compressor(method, every, run.peak)


def _acosr(rules, run, bits, pull=4.0, coupling='loss'):
  del bits
  return quantizers.acosr(rules, pressure=run.pressure(pull), coupling=coupling)


def _coarse(rules, run, bits, rate=None):
  """Codes of the entropy that centroids of `bits` have, or of `rate` bits."""
  del run
  rate = CODE_ENTROPY[bits] if rate is None else rate
  coarse = [rule._replace(bits=rule.bits and 8) for rule in rules]
  return quantizers.uniform(
    coarse, scale=quantizers.entropy_scale(rate), refit_every=0
  )


def _admm(rules, run, bits, pull=100.0, table='lloyd_max', every=10):
  del bits
  return quantizers.admm(
    rules, rho=run.pressure(pull), table=table, every=every
  )


def _uniform(rules, run, bits):
  del run, bits
  return quantizers.uniform(
    rules, scale=quantizers.mse_scale, refit_every=_REFIT_EVERY
  )


METHODS: dict[str, Method] = {
  'float': Method(lambda rules, run, bits: None, trains=False),
  'float continued': Method(lambda rules, run, bits: None),
  'ptq uniform': Method(_uniform, trains=False),
  'ptq lloyd-max': Method(
    lambda rules, run, bits: quantizers.centroids(rules), trains=False
  ),
  'uniform qat': Method(_uniform),
  'learned step': Method(lambda rules, run, bits: quantizers.learnable(rules)),
  'straight-through': Method(
    lambda rules, run, bits: quantizers.straight_through(
      quantizers.centroids(rules)
    )
  ),
  'coarse int8': Method(_coarse),
  's8bqat': Method(_s8bqat),
  'acosr': Method(_acosr),
  'gq': Method(
    lambda rules, run, bits: quantizers.gq(rules, total_steps=run.free_steps)
  ),
  'admm': Method(_admm),
}


def rules_for(bits: int, ctc: bool) -> tuple[rule_lib.Rule, ...]:
  """Returns the rules of all cells: every kernel alike, but not the CTC head.

  Args:
    bits: of every weight.
    ctc: whether the model has the head, which trains and never ships.
  """
  head = (rule_lib.Rule('ctc_out/.*', None),) if ctc else ()
  return (*head, rule_lib.Rule('.*', bits))


def make(
  name: str,
  bits: int,
  rules: tuple[rule_lib.Rule, ...],
  run: Run,
  options: Mapping[str, Any] | None = None,
) -> quantizers.Quantizer | None:
  """Returns the Quantizer of a cell.

  Args:
    name: in `METHODS`.
    bits: of every weight; 32 for the floating-point methods.
    rules: from `rules_for`.
    run: the training; without one, what only `init` and `encode` need.
    options: of the method.

  Returns:
    The Quantizer with the final phase around it, or None for floats.

  Raises:
    ValueError: naming an unknown method or option.
  """
  check(name, options or {})
  method = METHODS[name]
  quantizer = method.make(rules, run, bits, **(options or {}))
  if quantizer is None or not method.trains:
    return quantizer
  return quantizers.with_final_phase(quantizer, run.steps, FINAL_PHASE)


def resolved(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
  """Returns all options of a method, defaults included.

  Args:
    name: in `METHODS`.
    options: those that are given.
  """
  known = list(inspect.signature(METHODS[name].make).parameters.values())[3:]
  return {**{p.name: p.default for p in known}, **options}


def check(name: str, options: Mapping[str, Any]) -> None:
  """Raises ValueError for a method or an option that does not exist."""
  if name not in METHODS:
    raise ValueError(f'no method {name!r}; methods: {", ".join(METHODS)}')
  known = list(inspect.signature(METHODS[name].make).parameters)[3:]
  unknown = sorted(set(options) - set(known))
  if unknown:
    raise ValueError(
      f'method {name!r} has no option {unknown[0]!r}; options: '
      f'{", ".join(known) or "none"}'
    )
