"""The quantizer record: what every compression method of the house is.

A quantizer never touches a model's code. It sees a params pytree, says which
weights a forward pass uses, what it adds to the loss, what happens after the
optimizer's step, and what ships. As an optax transformation is a pair of pure
functions, a `Quantizer` is a record of six.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

Params = Any  # any pytree of arrays
Branches = dict[str, Params]
MAIN = 'main'


class State(NamedTuple):
  """What a quantizer remembers between steps; both fields are pytrees.

  Attributes:
    learned: differentiated beside the params; it has its own optimizer (no
      weight decay): step sizes, mixture logits.
    carried: everything else: centroids, duals, frozen codes.
  """

  learned: Any = ()
  carried: Any = ()


class Average(NamedTuple):
  """Moving averages, as far as training keeps them.

  Attributes:
    params: of the params, in their dtypes.
    learned: of `State.learned`.
  """

  params: Params
  learned: Any


class Ctx(NamedTuple):
  """Where training stands; the same for all functions of one step.

  Attributes:
    step: int32 scalar, 0 at the first step.
    key: this step's PRNG key; the same one for `views` and `penalty`.
    learning_rate: float32 scalar, this step's learning rate of the params.
    average: of the steps before this one: what would ship is encoded from it.
      None where no averages are kept.
  """

  step: jax.Array
  key: jax.Array
  learning_rate: jax.Array
  average: Average | None = None


def _no_penalty(params: Params, state: State, ctx: Ctx) -> jax.Array:
  del params, state, ctx
  return jnp.zeros((), jnp.float32)


def _no_update(
  params: Params, state: State, ctx: Ctx
) -> tuple[Params, State, Any]:
  del ctx
  return params, state, nothing_moved(params)


def _no_metrics(params: Params, state: State) -> dict[str, jax.Array]:
  del params, state
  return {}


@dataclasses.dataclass(frozen=True)
class Quantizer:
  """A compression method as pure functions over any params pytree.

  Attributes:
    init: (params) -> State.
    views: (params, state, ctx) -> {branch: params}, the weights a forward
      pass sees: one branch `main`, or several when precisions are co-trained.
    encode: (params, state) -> the params tree with QTensor leaves: what ships.
      `encode` of decoded weights returns the same codes.
    penalty: (params, state, ctx) -> scalar, added to the loss; its gradient
      joins the task's after that one is clipped.
    after_update: (params, state, ctx) -> (params, state, moved), after the
      optimizer's step. `moved` is a tree like params of booleans, each a
      scalar or broadcastable to its tensor: where weights jumped, so that
      first moments are cleared and averaging starts again.
    metrics: (params, state) -> {name: scalar}.
  """

  init: Callable[[Params], State]
  views: Callable[[Params, State, Ctx], Branches]
  encode: Callable[[Params, State], Any]
  penalty: Callable[[Params, State, Ctx], jax.Array] = _no_penalty
  after_update: Callable[[Params, State, Ctx], tuple[Params, State, Any]] = (
    _no_update
  )
  metrics: Callable[[Params, State], dict[str, jax.Array]] = _no_metrics


def nothing_moved(params: Params) -> Any:
  """Returns the `moved` tree that says no weight jumped.

  Args:
    params: any params pytree.

  Returns:
    A tree of its structure, False in every leaf.
  """
  return jax.tree.map(lambda _: jnp.zeros((), bool), params)


def float_only() -> Quantizer:
  """Returns the quantizer that does nothing: plain floating-point training.

  Returns:
    The Quantizer: its view is the params, and so is what it ships.
  """
  return Quantizer(
    init=lambda params: State(),
    views=lambda params, state, ctx: {MAIN: params},
    encode=lambda params, state: params,
  )
