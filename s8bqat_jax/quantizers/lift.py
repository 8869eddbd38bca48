"""From functions of weights to a Quantizer over a params tree.

`lift` hands a method all the weights that the rules select, as one dict;
`lift_tensor` hands it one weight at a time. A method written with either knows
nothing of trees, boxes, rules or leaves that stay in floating point.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from absl import logging

from s8bqat_jax.artifacts import qtensor
from s8bqat_jax.quantizers import rules as rule_lib
from s8bqat_jax.quantizers import tree as trees
from s8bqat_jax.quantizers import types

Weights = dict[str, jax.Array]
Specs = dict[str, rule_lib.Spec]


def lift(
  rules: rule_lib.Rules,
  *,
  init: Callable[[Weights, Specs], types.State],
  encode: Callable[[Weights, types.State, Specs], dict[str, qtensor.QTensor]],
  views: Callable[[Weights, types.State, Specs, types.Ctx], dict[str, Weights]]
  | None = None,
  penalty: Callable[[Weights, types.State, Specs, types.Ctx], jax.Array]
  | None = None,
  after_update: Callable[
    [Weights, types.State, Specs, types.Ctx],
    tuple[Weights, types.State, dict[str, Any]],
  ]
  | None = None,
  metrics: Callable[[Weights, types.State, Specs], dict[str, jax.Array]]
  | None = None,
) -> types.Quantizer:
  """Makes a Quantizer from functions over the selected weights.

  Each function sees `weights`, {name: array}, and `specs`, {name: Spec} with
  the same keys in the same order: levels and group of each weight. Leaves that
  no rule selects pass through untouched. Members whose weights share something
  (a table per group, a draw per layer, one budget) are written with this one;
  the others with `lift_tensor`.

  Args:
    rules: bits for every weight, or a sequence of `Rule`.
    init: (weights, specs) -> State. Any leaf below a weight's name that has
      the weight's shape is sharded as the weight is.
    encode: (weights, state, specs) -> {name: QTensor}, all names.
    views: (weights, state, specs, ctx) -> {branch: {name: array}}; None is the
      identity. A name that is left out keeps its weight.
    penalty: (weights, state, specs, ctx) -> scalar.
    after_update: (weights, state, specs, ctx) -> (weights, state, {name:
      moved}); a name missing from the last one has not moved.
    metrics: (weights, state, specs) -> {name: scalar}, beside `distance`, which
      every member has: |w - what ships| / |w| over all weights, in root mean
      square.

  Returns:
    The Quantizer.
  """
  rules = rule_lib.as_rules(rules)

  def select(params: types.Params) -> tuple[Weights, Specs]:
    specs = rule_lib.resolve(rules, params)
    leaves = trees.named(params)
    return {name: leaves[name] for name in specs}, specs

  def tree_init(params: types.Params) -> types.State:
    weights, specs = select(params)
    _check(weights)
    return trees.inherit_sharding(init(weights, specs), weights)

  def tree_encode(params: types.Params, state: types.State) -> Any:
    weights, specs = select(params)
    return trees.replace(params, encode(weights, state, specs))

  def own(ctx: types.Ctx) -> types.Ctx:
    if ctx.average is None:
      return ctx
    average, _ = select(ctx.average.params)
    return ctx._replace(average=ctx.average._replace(params=average))

  def tree_views(
    params: types.Params, state: types.State, ctx: types.Ctx
  ) -> types.Branches:
    if views is None:
      return {types.MAIN: params}
    weights, specs = select(params)
    branches = views(weights, state, specs, own(ctx))
    return {b: trees.replace(params, seen) for b, seen in branches.items()}

  def tree_penalty(
    params: types.Params, state: types.State, ctx: types.Ctx
  ) -> jax.Array:
    if penalty is None:
      return jnp.zeros((), jnp.float32)
    weights, specs = select(params)
    return penalty(weights, state, specs, own(ctx))

  def tree_after_update(
    params: types.Params, state: types.State, ctx: types.Ctx
  ) -> tuple[types.Params, types.State, Any]:
    still = types.nothing_moved(params)
    if after_update is None:
      return params, state, still
    weights, specs = select(params)
    weights, state, moved = after_update(weights, state, specs, own(ctx))
    return trees.replace(params, weights), state, trees.replace(still, moved)

  def tree_metrics(
    params: types.Params, state: types.State
  ) -> dict[str, jax.Array]:
    weights, specs = select(params)
    shipped = qtensor.decode(encode(weights, state, specs))
    own = {} if metrics is None else metrics(weights, state, specs)
    return {'distance': _relative_distance(weights, shipped), **own}

  return types.Quantizer(
    init=tree_init,
    views=tree_views,
    encode=tree_encode,
    penalty=tree_penalty,
    after_update=tree_after_update,
    metrics=tree_metrics,
  )


def lift_tensor(
  rules: rule_lib.Rules,
  *,
  init: Callable[[jax.Array, rule_lib.Spec], types.State],
  quantize: Callable[[jax.Array, types.State, rule_lib.Spec], qtensor.QTensor],
  view: Callable[[jax.Array, types.State, rule_lib.Spec, types.Ctx], jax.Array]
  | None = None,
  penalty: Callable[
    [jax.Array, types.State, rule_lib.Spec, types.Ctx], jax.Array
  ]
  | None = None,
  after_update: Callable[
    [jax.Array, types.State, rule_lib.Spec, types.Ctx],
    tuple[jax.Array, types.State, Any],
  ]
  | None = None,
  metrics: Callable[
    [jax.Array, types.State, rule_lib.Spec], dict[str, jax.Array]
  ]
  | None = None,
) -> types.Quantizer:
  """Makes a Quantizer from functions of one weight.

  `state` and `ctx.average` are that weight's own, and `ctx.key` differs from
  weight to weight.

  Args:
    rules: bits for every weight, or a sequence of `Rule`.
    init: (w, spec) -> State.
    quantize: (w, state, spec) -> QTensor.
    view: (w, state, spec, ctx) -> array like w; None is the identity.
    penalty: (w, state, spec, ctx) -> scalar; the weights' penalties add up.
    after_update: (w, state, spec, ctx) -> (w, state, moved).
    metrics: (w, state, spec) -> {name: scalar}; reported as the mean over
      weights, each counting as many times as it has elements.

  Returns:
    The Quantizer.
  """

  def of(state: types.State, name: str) -> types.State:
    return types.State(state.learned[name], state.carried[name])

  def join(states: dict[str, types.State]) -> types.State:
    return types.State(
      {name: state.learned for name, state in states.items()},
      {name: state.carried for name, state in states.items()},
    )

  def own(ctx: types.Ctx, name: str) -> types.Ctx:
    ctx = ctx._replace(key=key_of(ctx.key, name))
    if ctx.average is None:
      return ctx
    average = types.Average(*(tree[name] for tree in ctx.average))
    return ctx._replace(average=average)

  def all_init(weights, specs):
    return join({n: init(w, specs[n]) for n, w in weights.items()})

  def all_encode(weights, state, specs):
    return {n: quantize(w, of(state, n), specs[n]) for n, w in weights.items()}

  def all_views(weights, state, specs, ctx):
    assert view is not None
    seen = {
      n: view(w, of(state, n), specs[n], own(ctx, n))
      for n, w in weights.items()
    }
    return {types.MAIN: seen}

  def all_penalty(weights, state, specs, ctx):
    assert penalty is not None
    return sum(
      (
        penalty(w, of(state, n), specs[n], own(ctx, n))
        for n, w in weights.items()
      ),
      jnp.zeros((), jnp.float32),
    )

  def all_after_update(weights, state, specs, ctx):
    assert after_update is not None
    new, states, moved = {}, {}, {}
    for n, w in weights.items():
      new[n], states[n], moved[n] = after_update(
        w, of(state, n), specs[n], own(ctx, n)
      )
    return new, join(states), moved

  def all_metrics(weights, state, specs):
    assert metrics is not None
    total: dict[str, Any] = {}
    count: dict[str, int] = {}
    for n, w in weights.items():
      for key, value in metrics(w, of(state, n), specs[n]).items():
        # Not as whole numbers: there may be more than an int32 holds.
        total[key] = total.get(key, 0.0) + value * float(w.size)
        count[key] = count.get(key, 0) + w.size
    return {key: total[key] / float(max(count[key], 1)) for key in total}

  return lift(
    rules,
    init=all_init,
    encode=all_encode,
    views=all_views if view else None,
    penalty=all_penalty if penalty else None,
    after_update=all_after_update if after_update else None,
    metrics=all_metrics if metrics else None,
  )


def key_of(key: jax.Array, name: str) -> jax.Array:
  """Returns the stream of `key` that belongs to a weight or a group.

  Args:
    key: of the step.
    name: of the weight or the group.

  Returns:
    `key` with a hash of the name folded in.
  """
  return jax.random.fold_in(key, zlib.crc32(name.encode()))


def _check(weights: Weights) -> None:
  """Raises ValueError naming a weight with nothing, or no number, to fit to."""
  for name, w in weights.items():
    if not w.size:
      raise ValueError(
        f'{name} has shape {w.shape}: no elements to quantize. Leave it in '
        'floating point with a Rule of bits=None'
      )
    if isinstance(w, jax.core.Tracer):
      continue
    if not bool(jnp.isfinite(w).all()):
      raise ValueError(
        f'{name} holds values that are not finite: quantize a model that has '
        'trained without them'
      )
    if not bool(w.any()):
      logging.warning(
        '%s is all zero: codes fitted to that may never let it be anything '
        'else. Quantize a trained model, or leave it in floating point with a '
        'Rule of bits=None',
        name,
      )


def _relative_distance(a: Weights, b: Weights) -> jax.Array:
  """Returns |a - b| / |a| over all tensors, 0 where a is all zeros."""

  def square_sum(x):
    return jnp.sum(jnp.square(x.astype(jnp.float32)))

  zero = jnp.zeros((), jnp.float32)
  off = sum((square_sum(a[n] - b[n]) for n in a), zero)
  size = sum((square_sum(a[n]) for n in a), zero)
  return jnp.sqrt(off / jnp.maximum(size, jnp.finfo(jnp.float32).tiny))
