"""S8BQAT: centroids, a pull towards them, and a compressor that snaps.

Published: Lloyd-Max centroids of the float baseline, the MRACos regularizer in
the loss, a periodic hard compressor. Our reconstruction: how strong, how often
and by which coupling, and all that the files of the two parts mark as such.

References:
  Zhen et al., Sub-8-Bit Quantization Aware Training for 8-Bit Neural Network
  Accelerator with On-Device Speech Recognition, Interspeech 2022,
  arXiv:2206.15408.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from s8bqat_jax.quantizers import rules as rule_lib
from s8bqat_jax.quantizers import types
from s8bqat_jax.quantizers.hard_compressor import hard_compressor
from s8bqat_jax.quantizers.mracos import FLOW, mracos, pressure_schedule


def s8bqat(
  rules: rule_lib.Rules,
  *,
  total_steps: int,
  learning_rate: optax.ScalarOrSchedule,
  total_pull: float = 4.0,
  snap_every: int = 200,
  coupling: str = FLOW,
) -> types.Quantizer:
  """Trains float weights until they sit on the centroids of the baseline.

  Start from a converged float model: `init` fits the centroids to it.

  Args:
    rules: bits for every weight, or a sequence of `Rule`.
    total_steps: steps of this training; before a final phase, if there is
      one, since frozen weights feel no pull (0.85 of all by its default).
    learning_rate: of this training, number or schedule, as `make_step` gets.
    total_pull: the hyperparameter of `mracos.pressure_schedule`.
    snap_every: steps from one snap of the hard compressor to the next.
    coupling: 'flow', or 'loss' for the penalty in the loss as published.

  Returns:
    The Quantizer. `final_phase.with_final_phase` goes around it, as it does
    around every method.

  References:
    Zhen et al., arXiv:2206.15408; see the head of this file for what of it is
    published.
  """
  pressure = pressure_schedule(total_pull, total_steps, learning_rate)
  rate, steps = learning_rate, jnp.arange(total_steps)
  peak = float(jnp.max(jax.vmap(rate)(steps)) if callable(rate) else rate)
  penalty = mracos(rules, pressure=pressure, coupling=coupling)
  return hard_compressor(penalty, snap_every, peak)
