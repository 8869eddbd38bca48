"""`make_step`: where a loss, an optimizer and a quantizer meet."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from s8bqat_jax.quantizers import schedules, types

Loss = Callable[[types.Branches, Any, jax.Array], tuple[jax.Array, dict]]
# What optax calls its first moments: Adam's family, momentum's, Adafactor's.
_FIRST_MOMENTS = ('mu', 'trace', 'ema')


class TrainState(NamedTuple):
  """Everything that training carries from step to step.

  Attributes:
    step: int32, steps taken (skipped ones included).
    seed: uint32, every random draw of a step follows from (seed, step).
    params: the weights being trained.
    quantizer: the quantizer's state.
    opt_state: optimizer state of the params.
    learned_opt_state: optimizer state of `quantizer.learned`.
    average: exponential moving average of the params, in float32 at least, or
      () if not asked for.
    average_age: int32 for each of them, steps since its averaging started.
    learned_average: the same of `quantizer.learned`, or (); `averaged` puts
      the two together.
    learned_average_age: int32 for each of them.
    skipped: int32, steps skipped so far because something was not finite.
    skipped_in_a_row: int32, how many of the latest steps were skipped.
  """

  step: jax.Array
  seed: jax.Array
  params: types.Params
  quantizer: types.State
  opt_state: Any
  learned_opt_state: Any
  average: Any
  average_age: Any
  learned_average: Any
  learned_average_age: Any
  skipped: jax.Array
  skipped_in_a_row: jax.Array


class Step(NamedTuple):
  """A training step as two pure functions.

  Attributes:
    init: (params, seed=0) -> TrainState.
    update: (state, batch) -> (state, metrics). Not jitted: the caller decides
      how (donation, shardings).
  """

  init: Callable[..., TrainState]
  update: Callable[[TrainState, Any], tuple[TrainState, dict[str, jax.Array]]]


def on_main(
  loss: Callable[[types.Params, Any, jax.Array], tuple[jax.Array, dict]],
) -> Loss:
  """Returns a loss over branches from a loss over one set of params.

  Args:
    loss: (params, batch, key) -> (scalar, aux dict of scalars).

  Returns:
    (views, batch, key) -> the loss of the branch `main`.
  """
  return lambda views, batch, key: loss(views[types.MAIN], batch, key)


def context(
  state: TrainState, learning_rate: optax.ScalarOrSchedule
) -> types.Ctx:
  """Returns the Ctx of the step that `state` is about to take.

  Args:
    state: before the step.
    learning_rate: number or schedule, as `make_step` gets.

  Returns:
    The Ctx; the same state gives the same random key.
  """
  average = None
  if jax.tree.leaves(state.average):
    params, own = averaged(state)
    average = types.Average(params, own.learned)
  key = jax.random.fold_in(jax.random.key(state.seed), state.step)
  # A skipped step does not advance the schedule within the optimizer.
  rate = schedules.at(learning_rate, state.step - state.skipped)
  return types.Ctx(state.step, key, rate, average)


def averaged(state: TrainState) -> tuple[types.Params, types.State]:
  """Returns what to evaluate and to encode: (params, quantizer state).

  Averaged weights belong with averaged steps and centroids: codes found by the
  latest of these would be those of weights a little larger or smaller.

  Args:
    state: of a training with or without averaging.

  Returns:
    The averages in the dtypes of what they are averages of, or the latest
    values if none are kept; state that is carried is the latest.
  """
  if not jax.tree.leaves(state.average):
    return state.params, state.quantizer
  like = lambda average, x: average.astype(x.dtype)
  params = jax.tree.map(like, state.average, state.params)
  learned = state.quantizer.learned
  learned = jax.tree.map(like, state.learned_average, learned)
  return params, state.quantizer._replace(learned=learned)


def make_step(
  loss: Loss,
  tx: optax.GradientTransformation,
  quantizer: types.Quantizer | None = None,
  *,
  learning_rate: optax.ScalarOrSchedule,
  learned_tx: optax.GradientTransformation | None = None,
  clip_norm: float | None = None,
  average_decay: float | None = None,
) -> Step:
  """Wires a loss, an optimizer and a quantizer into one training step.

  One step is: views -> loss -> gradient (clipped) + penalty's gradient ->
  optimizer -> after_update -> moments of moved weights cleared -> average.
  A step whose loss, penalty or gradient is not finite changes nothing but the
  counters.

  Args:
    loss: (views, batch, key) -> (scalar, aux dict of scalars); `on_main` makes
      one from a loss that takes params.
    tx: optimizer of the params, without gradient clipping.
    quantizer: the method; None trains in floating point.
    learning_rate: what `tx` was built with, number or schedule; quantizers see
      it as `ctx.learning_rate`.
    learned_tx: optimizer of `State.learned`; Adam at 1e-3 if None.
    clip_norm: global norm that the task gradient of the params is clipped to;
      that of `State.learned` is not.
    average_decay: decay of the moving averages of the params and of
      `State.learned`, warmed up over the first steps, and anew where weights
      jumped; None keeps no averages.

  Returns:
    The Step (init, update). Metrics are the loss's aux, `loss`, `penalty`,
    `grad_norm`, `learning_rate` and the two counters of skipped steps.
  """
  quantizer = types.float_only() if quantizer is None else quantizer
  learned_tx = optax.adam(1e-3) if learned_tx is None else learned_tx

  def init(params: types.Params, seed: int = 0) -> TrainState:
    quantizer_state = quantizer.init(params)
    average, average_age = _begin(params, average_decay)
    learned_average, learned_average_age = _begin(
      quantizer_state.learned, average_decay
    )
    return TrainState(
      step=jnp.zeros((), jnp.int32),
      seed=jnp.asarray(seed, jnp.uint32),
      params=params,
      quantizer=quantizer_state,
      opt_state=tx.init(params),
      learned_opt_state=learned_tx.init(quantizer_state.learned),
      average=average,
      average_age=average_age,
      learned_average=learned_average,
      learned_average_age=learned_average_age,
      skipped=jnp.zeros((), jnp.int32),
      skipped_in_a_row=jnp.zeros((), jnp.int32),
    )

  def update(
    state: TrainState, batch: Any
  ) -> tuple[TrainState, dict[str, jax.Array]]:
    ctx = context(state, learning_rate)
    carried = state.quantizer.carried

    def task(params, learned):
      views = quantizer.views(params, types.State(learned, carried), ctx)
      # The quantizer draws from ctx.key, the loss (dropout, masks) from a
      # stream of its own.
      return loss(views, batch, jax.random.fold_in(ctx.key, 1))

    def penalty(params, learned):
      return quantizer.penalty(params, types.State(learned, carried), ctx)

    trained = (state.params, state.quantizer.learned)
    (value, aux), grads = jax.value_and_grad(task, (0, 1), has_aux=True)(
      *trained
    )
    extra, extra_grads = jax.value_and_grad(penalty, (0, 1))(*trained)
    finite = jnp.isfinite(value + extra)
    finite &= jnp.isfinite(_norm((grads, extra_grads)))
    grads, learned_grads = grads
    norm = _norm(grads)
    if clip_norm is not None:
      grads = _clipped(grads, norm, clip_norm)
    grads, learned_grads = jax.tree.map(
      jnp.add, (grads, learned_grads), extra_grads
    )

    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    updates, learned_opt_state = learned_tx.update(
      learned_grads, state.learned_opt_state, state.quantizer.learned
    )
    learned = optax.apply_updates(state.quantizer.learned, updates)
    params, quantizer_state, moved = quantizer.after_update(
      params, types.State(learned, carried), ctx
    )
    new = state._replace(
      params=params,
      quantizer=quantizer_state,
      opt_state=_clear_first_moments(opt_state, moved),
      learned_opt_state=learned_opt_state,
    )
    if average_decay is not None:
      new = _with_averages(new, moved, average_decay)
    new = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, state)
    new = new._replace(
      step=state.step + 1,
      skipped=state.skipped + ~finite,
      skipped_in_a_row=jnp.where(finite, 0, state.skipped_in_a_row + 1),
    )
    metrics = {
      **aux,
      'loss': value,
      'penalty': extra,
      'grad_norm': norm,
      'learning_rate': ctx.learning_rate,
      'skipped': new.skipped,
      'skipped_in_a_row': new.skipped_in_a_row,
    }
    return new, metrics

  return Step(init, update)


def _norm(grads: Any) -> jax.Array:
  """Global norm in float32 at least: squares overflow float16 above 255."""
  wide = lambda g: g.astype(jnp.promote_types(g.dtype, jnp.float32))
  return optax.tree.norm(jax.tree.map(wide, grads))


def _clipped(grads: Any, norm: jax.Array, largest: float) -> Any:
  factor = jnp.minimum(1.0, largest / jnp.maximum(norm, 1e-12))
  return jax.tree.map(lambda g: g * factor.astype(g.dtype), grads)


def _clear_first_moments(opt_state: Any, moved: Any) -> Any:
  """Zeroes the first moments of weights that jumped; second ones are kept."""
  by_path = dict(_with_names(moved))

  def clear(path, leaf):
    for i, entry in enumerate(path):
      if getattr(entry, 'name', None) in _FIRST_MOMENTS:
        jumped = by_path.get(jax.tree_util.keystr(path[i + 1 :]))
        return leaf if jumped is None else jnp.where(jumped, 0, leaf)
    return leaf

  return jax.tree_util.tree_map_with_path(clear, opt_state)


def _with_names(tree: Any) -> list[tuple[str, Any]]:
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return [(jax.tree_util.keystr(path), leaf) for path, leaf in leaves]


def _begin(tree: Any, decay: float | None) -> tuple[Any, Any]:
  """Returns (averages, ages) at the start, or nothing if none are wanted."""
  if decay is None:
    return (), ()
  age = jax.tree.map(lambda _: jnp.zeros((), jnp.int32), tree)
  return jax.tree.map(_wide, tree), age


def _wide(x):
  """A copy in float32 or wider: in bfloat16 a slow average would not move."""
  return jnp.array(x, jnp.promote_types(jnp.result_type(x), jnp.float32))


def _with_averages(state: TrainState, moved: Any, decay: float) -> TrainState:
  """Takes a state's params, and what is learned, into its averages."""
  average, average_age = _average(
    state.average, state.average_age, state.params, moved, decay
  )
  # What is learned for weights that jumped starts anew with them; which of it
  # that is only the quantizer knows.
  learned = state.quantizer.learned
  any_moved = jax.tree.reduce(
    lambda found, x: found | jnp.any(x), moved, jnp.zeros((), bool)
  )
  learned_average, learned_average_age = _average(
    state.learned_average,
    state.learned_average_age,
    learned,
    jax.tree.map(lambda _: any_moved, learned),
    decay,
  )
  return state._replace(
    average=average,
    average_age=average_age,
    learned_average=learned_average,
    learned_average_age=learned_average_age,
  )


def _average(average, age, params, moved, decay):
  def leaf(old, age, new, jumped):
    # Early on the window grows with the steps averaged, so that the average
    # does not remember where it started.
    rate = 1.0 - jnp.minimum(decay, (1.0 + age) / (10.0 + age))
    mixed = old + rate.astype(old.dtype) * (new.astype(old.dtype) - old)
    return jnp.where(jumped, new.astype(old.dtype), mixed)

  new = jax.tree.map(leaf, average, age, params, moved)
  age = jax.tree.map(
    lambda age, jumped: jnp.where(jnp.any(jumped), 0, age + 1), age, moved
  )
  return new, age
