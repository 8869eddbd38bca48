"""A quantizer as an optax transformation, for those who keep their own loop."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from s8bqat_jax.quantizers import schedules, types


class DecoupledState(NamedTuple):
  """Steps taken and the quantizer's own state."""

  step: jax.Array
  quantizer: types.State


def decoupled_penalty(
  quantizer: types.Quantizer,
  learning_rate: optax.ScalarOrSchedule,
  *,
  seed: int = 0,
) -> optax.GradientTransformation:
  """Pulls params by a quantizer's penalty and updates, as AdamW decays them.

  Put it last: `optax.chain(optax.adam(rate), decoupled_penalty(q, rate))`. To
  the update that comes in it adds the step -rate * d penalty / d params, then
  what `quantizer.after_update` does. Views are the loop's own business:
  `quantizer.views(params, state.quantizer, ctx)`, or none for a method whose
  view is the identity. Unlike `make_step` it can't clear the first moments of
  weights that jump, and a weight set to a value arrives there within one
  rounding, because optax adds updates to params.

  Args:
    quantizer: a Quantizer without learned state.
    learning_rate: that of the optimizer, number or schedule.
    seed: of the quantizer's random draws.

  Returns:
    The optax transformation; its `update` needs the params.

  Raises:
    ValueError: on `init`, if the quantizer has learned state, whose gradient
      only the loss knows; on `update` without params.
  """

  def init(params: types.Params) -> DecoupledState:
    state = quantizer.init(params)
    if jax.tree.leaves(state.learned):
      raise ValueError(
        'decoupled_penalty can not train the learned state of this quantizer '
        f'({len(jax.tree.leaves(state.learned))} arrays): use make_step'
      )
    return DecoupledState(jnp.zeros((), jnp.int32), state)

  def update(
    updates: Any, state: DecoupledState, params: Any = None
  ) -> tuple[Any, DecoupledState]:
    if params is None:
      raise ValueError(
        'decoupled_penalty needs params: tx.update(g, s, params)'
      )
    rate = schedules.at(learning_rate, state.step)
    key = jax.random.fold_in(jax.random.key(seed), state.step)
    ctx = types.Ctx(state.step, key, rate)
    pull = jax.grad(quantizer.penalty)(params, state.quantizer, ctx)
    new = jax.tree.map(
      lambda p, u, g: (p + u - rate * g).astype(p.dtype), params, updates, pull
    )
    new, carried, _ = quantizer.after_update(new, state.quantizer, ctx)
    updates = jax.tree.map(jnp.subtract, new, params)
    return updates, DecoupledState(state.step + 1, carried)

  return optax.GradientTransformation(init, update)
