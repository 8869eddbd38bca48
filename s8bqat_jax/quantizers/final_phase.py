"""The final phase: codes frozen, what stays in floating point adapts to them.

Our own addition, for every method alike, so that methods are compared by what
they ship and not by how close to their codes they happened to stop.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from s8bqat_jax.artifacts import qtensor
from s8bqat_jax.quantizers import tree as trees
from s8bqat_jax.quantizers import types


def with_final_phase(
  quantizer: types.Quantizer,
  total_steps: int,
  start: float = 0.85,
  averaged: bool = True,
) -> types.Quantizer:
  """Snaps once, near the end of training, and freezes what would ship then.

  From then on every
  branch of the forward pass sees exactly the shipped tensors, the penalty is
  zero, the quantizer's own state rests and only the leaves that ship in
  floating point (biases, normalization) still train.

  Args:
    quantizer: any Quantizer.
    total_steps: steps of the training.
    start: fraction of them after which the codes are frozen.
    averaged: freezes the codes of the averages, where training keeps these, and
      not of the last weights.

  Returns:
    The Quantizer. Metric: `frozen`, 0 or 1.

  Raises:
    ValueError: if there are no steps or `start` is not a fraction.
  """
  if total_steps < 1:
    raise ValueError(f'total_steps must be at least 1, got {total_steps}')
  if not 0 <= start <= 1:
    raise ValueError(f'start must be in [0, 1], got {start}')
  first_frozen = round(start * total_steps)

  def inner(state: types.State) -> types.State:
    return types.State(state.learned, state.carried['inner'])

  def outer(state: types.State, shipped: Any, frozen: jax.Array) -> types.State:
    carried = {
      'inner': state.carried,
      'learned': state.learned,
      'shipped': shipped,
      'frozen': frozen,
    }
    return types.State(state.learned, carried)

  def with_shipped(params: types.Params, state: types.State) -> types.Params:
    return trees.replace(params, qtensor.decode(state.carried['shipped']))

  def init(params: types.Params) -> types.State:
    state = quantizer.init(params)
    shipped = trees.quantized(quantizer.encode(params, state))
    # Copies: a caller can't donate one buffer twice, and a codebook may be the
    # very one that `state` holds, as what is learned is.
    copies = jax.tree.map(jnp.copy, (shipped, state.learned))
    own = outer(state, copies[0], jnp.zeros((), bool))
    own.carried['learned'] = copies[1]
    return own

  def views(
    params: types.Params, state: types.State, ctx: types.Ctx
  ) -> types.Branches:
    def training(params):
      return quantizer.views(params, inner(state), ctx)

    branches = jax.eval_shape(training, params)

    def frozen(params):
      return dict.fromkeys(branches, with_shipped(params, state))

    return jax.lax.cond(state.carried['frozen'], frozen, training, params)

  def penalty(
    params: types.Params, state: types.State, ctx: types.Ctx
  ) -> jax.Array:
    return jax.lax.cond(
      state.carried['frozen'],
      lambda params: jnp.zeros((), jnp.float32),
      lambda params: jnp.asarray(
        quantizer.penalty(params, inner(state), ctx), jnp.float32
      ),
      params,
    )

  def after_update(
    params: types.Params, state: types.State, ctx: types.Ctx
  ) -> tuple[types.Params, types.State, Any]:
    names = state.carried['shipped']

    def training():
      new, own, moved = quantizer.after_update(params, inner(state), ctx)
      moved = trees.mark_moved(moved, ())

      def freeze():
        kept, its = new, own
        if averaged and ctx.average is not None:
          kept = ctx.average.params
          its = own._replace(learned=ctx.average.learned)
        shipped = trees.quantized(quantizer.encode(kept, its))
        frozen = outer(its, shipped, jnp.ones((), bool))
        # What stays in floating point has to adapt: averages and moments of
        # when the weights were others would only hold it back.
        everything = jax.tree.map(lambda x: jnp.ones(x.shape, bool), moved)
        return with_shipped(kept, frozen), frozen, everything

      def go_on():
        return new, outer(own, names, jnp.zeros((), bool)), moved

      return jax.lax.cond(ctx.step + 1 >= first_frozen, freeze, go_on)

    def resting():
      # Scalars or arrays, as the quantizer has them.
      form = jax.eval_shape(lambda: training()[2])
      still = jax.tree.map(lambda x: jnp.zeros(x.shape, bool), form)
      moved = trees.mark_moved(still, names)
      # The optimizer of the learned state may still have momentum.
      rested = types.State(state.carried['learned'], state.carried)
      return with_shipped(params, state), rested, moved

    return jax.lax.cond(state.carried['frozen'], resting, training)

  def encode(params: types.Params, state: types.State) -> Any:
    encoded = quantizer.encode(params, inner(state))
    rest = trees.replace(encoded, state.carried['shipped'])
    return jax.tree.map(
      lambda a, b: jnp.where(state.carried['frozen'], a, b), rest, encoded
    )

  def metrics(params: types.Params, state: types.State) -> dict[str, jax.Array]:
    frozen = state.carried['frozen'].astype(jnp.float32)
    return {'frozen': frozen, **quantizer.metrics(params, inner(state))}

  return types.Quantizer(init, views, encode, penalty, after_update, metrics)
