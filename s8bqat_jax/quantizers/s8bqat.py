"""S8BQAT: centroids, a pull towards them, and a hard compressor.

Published: Lloyd-Max centroids of the float baseline, the MRACos regularizer in
the loss, a periodic hard compressor. Our reconstruction: how strong, how often
and by which coupling, and all that the files of the two parts mark as such.

Our mend, the default: the compressor is read as a loss taken at the quantized
weights, and invoked at every step. Weights that are overwritten now and then,
or only pulled, move to the centroid that is nearest, not to the one that the
task wants: nothing in the loss has ever seen a code. The pull remains, and
keeps the weights from hovering between two centroids.

References:
  Zhen et al., Sub-8-Bit Quantization Aware Training for 8-Bit Neural Network
  Accelerator with On-Device Speech Recognition, Interspeech 2022,
  arXiv:2206.15408.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import optax

from s8bqat_jax.quantizers import codebook as books
from s8bqat_jax.quantizers import rules as rule_lib
from s8bqat_jax.quantizers import schedules, types
from s8bqat_jax.quantizers.centroids import centroids
from s8bqat_jax.quantizers.hard_compressor import hard_compressor, loss_at_codes
from s8bqat_jax.quantizers.lloyd_max import fit as fit_lloyd_max
from s8bqat_jax.quantizers.mracos import FLOW, LOSS, mracos, pressure_schedule

AT_CODES, OVERWRITE = 'loss', 'overwrite'


def s8bqat(
  rules: rule_lib.Rules,
  *,
  total_steps: int,
  learning_rate: optax.ScalarOrSchedule,
  total_pull: float = 4.0,
  every: int | None = None,
  reading: str = AT_CODES,
  coupling: str = FLOW,
  power: float = 2.0,
  fit: Callable[[jax.Array, int], books.Codebook] = fit_lloyd_max,
) -> types.Quantizer:
  """Trains float weights until they sit on the centroids of the baseline.

  Start from a converged float model: `init` fits the centroids to it.

  Args:
    rules: bits for every weight, or a sequence of `Rule`.
    total_steps: steps of this training; before a final phase, if there is
      one, since frozen weights feel no pull (0.85 of all by its default).
    learning_rate: of this training, number or schedule, as `make_step` gets.
    total_pull: the hyperparameter of `mracos.pressure_schedule`; 0 leaves the
      penalty out.
    every: N, steps from one call of the hard compressor to the next; by
      default 1, and 200 where it overwrites. 0 leaves it out.
    reading: what it does: 'loss' takes the loss at the quantized weights,
      'overwrite' replaces the weights by them.
    coupling: 'flow', or 'loss' for the penalty in the loss as published.
    power: p of MRACos.
    fit: (w, levels) -> Codebook.

  Returns:
    The Quantizer. `final_phase.with_final_phase` goes around it, as it does
    around every method.

  Raises:
    ValueError: for an unknown reading or coupling, or without steps.

  References:
    Zhen et al., arXiv:2206.15408; see the head of this file for what of it is
    published.
  """
  if reading not in (AT_CODES, OVERWRITE):
    raise ValueError(f"reading must be 'loss' or 'overwrite', got {reading!r}")
  if coupling not in (FLOW, LOSS):
    raise ValueError(f"coupling must be 'flow' or 'loss', got {coupling!r}")
  if total_steps < 1:
    raise ValueError(f'total_steps must be at least 1, got {total_steps}')
  if every is None:
    every = 1 if reading == AT_CODES else 200
  if total_pull:
    pressure = pressure_schedule(total_pull, total_steps, learning_rate)
    pulled = mracos(
      rules, pressure=pressure, power=power, coupling=coupling, fit=fit
    )
  else:
    pulled = centroids(rules, fit=fit)
  if not every:
    return pulled
  if reading == AT_CODES:
    return loss_at_codes(pulled, every)
  peak = schedules.values(learning_rate, total_steps).max()
  return hard_compressor(pulled, every, float(peak))
