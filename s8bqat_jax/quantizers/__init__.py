"""What training sees: every compression method as one record of pure functions.

Any Flax model, or any params pytree, trains under any method:

    import jax, optax
    from s8bqat_jax import quantizers

    method = quantizers.uniform(bits)
    step = quantizers.make_step(
      quantizers.on_main(loss), optax.adam(rate), method, learning_rate=rate
    )
    state, update = step.init(params), jax.jit(step.update)
    for batch in batches:
      state, metrics = update(state, batch)
    shipped = method.encode(state.params, state.quantizer)

`loss(params, batch, key)` returns a scalar and a dict of further scalars.
`shipped` is the params tree with QTensors in it: `artifacts.decode` gives the
weights to evaluate, and the packed file is written from it. With averaging,
`method.encode(*averaged(state))` ships the averages.

  method            what it is
  centroids         Lloyd-Max centroids, fitted once
  uniform           uniform grid, straight-through: INT8 QAT at 8 bits
  learnable         uniform grid with a learned step (LSQ): 1 bit, ternary, 2..8
  mracos, acosr     cosine pulls towards centroids, in the loss or decoupled
  s8bqat            centroids, pull and hard compressor
  gq                softmax annealing onto learned centroids
  admm              projection onto tables, with multipliers

  around a method
  ptq               its fit alone, no training
  straight_through  its codes in the forward pass
  hard_compressor   its codes overwrite the weights every N steps
  loss_at_codes     its codes in the forward pass every N steps
  with_final_phase  its codes frozen at the end
  chain, by_path    several methods: one after another, each its own weights

Which weights get how many bits is said in rules (`Rule`, `rules`). A method of
your own is written with `lift_tensor` and verified by `check_quantizer`. A
member has the name of its file, so `quantizers.uniform` is the function;
`from s8bqat_jax.quantizers.uniform import mse_scale` reaches into the file.
"""

from s8bqat_jax.quantizers.acosr import acosr
from s8bqat_jax.quantizers.admm import admm
from s8bqat_jax.quantizers.centroids import centroids
from s8bqat_jax.quantizers.check import check_quantizer
from s8bqat_jax.quantizers.combinators import by_path, chain
from s8bqat_jax.quantizers.decoupled import decoupled_penalty
from s8bqat_jax.quantizers.final_phase import with_final_phase
from s8bqat_jax.quantizers.gq import gq
from s8bqat_jax.quantizers.hard_compressor import hard_compressor, loss_at_codes
from s8bqat_jax.quantizers.learnable import learnable
from s8bqat_jax.quantizers.lift import lift_tensor
from s8bqat_jax.quantizers.mracos import mracos, pressure_schedule
from s8bqat_jax.quantizers.ptq import ptq, quantize_once
from s8bqat_jax.quantizers.rules import TERNARY, Rule
from s8bqat_jax.quantizers.s8bqat import AT_CODES, OVERWRITE, s8bqat
from s8bqat_jax.quantizers.step import (
  Step,
  TrainState,
  averaged,
  make_step,
  on_main,
)
from s8bqat_jax.quantizers.straight_through import straight_through
from s8bqat_jax.quantizers.types import (
  MAIN,
  Average,
  Ctx,
  Quantizer,
  State,
  float_only,
)
from s8bqat_jax.quantizers.uniform import (
  entropy_scale,
  max_scale,
  mse_scale,
  percentile_scale,
  uniform,
)

__all__ = [
  'AT_CODES',
  'MAIN',
  'OVERWRITE',
  'TERNARY',
  'Average',
  'Ctx',
  'Quantizer',
  'Rule',
  'State',
  'Step',
  'TrainState',
  'acosr',
  'admm',
  'averaged',
  'by_path',
  'centroids',
  'chain',
  'check_quantizer',
  'decoupled_penalty',
  'entropy_scale',
  'float_only',
  'gq',
  'hard_compressor',
  'learnable',
  'lift_tensor',
  'loss_at_codes',
  'make_step',
  'max_scale',
  'mracos',
  'mse_scale',
  'on_main',
  'percentile_scale',
  'pressure_schedule',
  'ptq',
  'quantize_once',
  's8bqat',
  'straight_through',
  'uniform',
  'with_final_phase',
]
