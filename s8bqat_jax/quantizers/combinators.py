"""Quantizers made of quantizers: one after another, or each its own weights."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from s8bqat_jax.quantizers import rules as rule_lib
from s8bqat_jax.quantizers import tree as trees
from s8bqat_jax.quantizers import types

_MEMBERS = zlib.crc32(b'members of a combinator') & 0x7FFFFFFF


class _Member(NamedTuple):
  """A member, what it sees of the params, its state and its stream."""

  quantizer: types.Quantizer
  part: types.Params
  state: types.State
  ctx: types.Ctx


_Members = Sequence[_Member]


def chain(*quantizers: types.Quantizer) -> types.Quantizer:
  """Applies several quantizers to the same tree, in order.

  Each one's views see the weights that the one before it made, and so do their
  updates; penalties add up. A weight that several of them encode ships as the
  last of these says. Metrics of equal name are told apart by the position of
  their member: `distance`, `1/distance`.

  Args:
    *quantizers: the members. At most one of them may have several branches.

  Returns:
    The Quantizer; its state is the tuple of theirs.

  Raises:
    ValueError: on use, if several members have several branches.
  """

  def views(params: types.Params, members: _Members) -> types.Branches:
    branches = {types.MAIN: params}
    for i, (q, _, s, ctx) in enumerate(members):
      if list(branches) == [types.MAIN]:
        branches = q.views(branches[types.MAIN], s, ctx)
        continue
      seen = {b: q.views(tree, s, ctx) for b, tree in branches.items()}
      for made in seen.values():
        if list(made) != [types.MAIN]:
          raise ValueError(
            f'member {i} of the chain has branches {sorted(made)}, but one '
            f'before it already made {sorted(branches)}'
          )
      branches = {b: made[types.MAIN] for b, made in seen.items()}
    return branches

  return _combined(quantizers, lambda params: [params] * len(quantizers), views)


def by_path(
  routes: Sequence[tuple[str, types.Quantizer]],
) -> types.Quantizer:
  """Gives each weight to the first quantizer whose pattern matches its name.

  A member sees the whole tree with `None` for the leaves that are not its own,
  so its rules read the same full names. Leaves that no pattern matches stay in
  floating point.

  Args:
    routes: (pattern, quantizer) pairs; a pattern must match a whole name. A
      member that has one branch serves all the branches of the others.

  Returns:
    The Quantizer; its state is the tuple of theirs.

  Raises:
    ValueError: for what is no (pattern, quantizer); on use, if a pattern
      decides about no weight, or if two members have different branches.
  """
  routes = tuple(routes)
  for route in routes:
    if not (
      isinstance(route, tuple | list)
      and len(route) == 2
      and isinstance(route[1], types.Quantizer)
    ):
      raise ValueError(f'expected (pattern, quantizer), got {route!r}')
    rule_lib.check_pattern(route[0])

  def split(params: types.Params) -> list[types.Params]:
    names = list(trees.weights(params))
    found = rule_lib.first_match([pattern for pattern, _ in routes], names)
    return [
      trees.keep(params, {n for n, (i, _) in found.items() if i == own})
      for own in range(len(routes))
    ]

  def views(params: types.Params, members: _Members) -> types.Branches:
    seen = [q.views(part, s, ctx) for q, part, s, ctx in members]
    several = [b for b in seen if list(b) != [types.MAIN]]
    branches = list(several[0]) if several else [types.MAIN]
    for made in several:
      if set(made) != set(branches):
        raise ValueError(
          f'members have different branches: {branches} and {list(made)}'
        )
    whole = {}
    for b in branches:
      whole[b] = params
      for made in seen:
        part = made[b] if b in made else made[types.MAIN]
        whole[b] = trees.replace(whole[b], trees.named(part))
    return whole

  return _combined([q for _, q in routes], split, views)


def _combined(
  quantizers: Sequence[types.Quantizer],
  split: Callable[[types.Params], list[types.Params]],
  views: Callable[[types.Params, _Members], types.Branches],
) -> types.Quantizer:
  """Makes one Quantizer of several; its state is the tuple of theirs.

  Args:
    quantizers: the members.
    split: (params) -> what each of them sees: leaves by their names.
    views: (params, members) -> what the forward pass sees.
  """

  def members(
    params: types.Params, state: types.State, ctx: types.Ctx
  ) -> list[_Member]:
    states = map(types.State, state.learned, state.carried)
    own = [_for_member(ctx, i) for i in range(len(quantizers))]
    if ctx.average is not None:
      averages = zip(split(ctx.average.params), ctx.average.learned)
      own = [
        c._replace(average=types.Average(*a)) for c, a in zip(own, averages)
      ]
    return [
      _Member(*fields) for fields in zip(quantizers, split(params), states, own)
    ]

  def init(params: types.Params) -> types.State:
    return _join([q.init(p) for q, p in zip(quantizers, split(params))])

  def encode(params: types.Params, state: types.State) -> Any:
    encoded = params
    states = map(types.State, state.learned, state.carried)
    for q, part, s in zip(quantizers, split(params), states):
      encoded = trees.replace(encoded, trees.quantized(q.encode(part, s)))
    return encoded

  def penalty(
    params: types.Params, state: types.State, ctx: types.Ctx
  ) -> jax.Array:
    total = jnp.zeros((), jnp.float32)
    for q, part, s, own in members(params, state, ctx):
      total = total + q.penalty(part, s, own)
    return total

  def after_update(
    params: types.Params, state: types.State, ctx: types.Ctx
  ) -> tuple[types.Params, types.State, Any]:
    moved, states = types.nothing_moved(params), []
    for i, (q, _, s, own) in enumerate(members(params, state, ctx)):
      # What those before it left.
      part, s, jumped = q.after_update(split(params)[i], s, own)
      params = trees.replace(params, trees.named(part))
      now = trees.replace(types.nothing_moved(params), trees.named(jumped))
      moved = jax.tree.map(jnp.logical_or, moved, now)
      states.append(s)
    return params, _join(states), moved

  def metrics(params: types.Params, state: types.State) -> dict[str, jax.Array]:
    states = map(types.State, state.learned, state.carried)
    return _merge(
      [q.metrics(p, s) for q, p, s in zip(quantizers, split(params), states)]
    )

  return types.Quantizer(
    init,
    lambda params, state, ctx: views(params, members(params, state, ctx)),
    encode,
    penalty,
    after_update,
    metrics,
  )


def _join(states: Sequence[types.State]) -> types.State:
  return types.State(
    tuple(s.learned for s in states), tuple(s.carried for s in states)
  )


def _for_member(ctx: types.Ctx, index: int) -> types.Ctx:
  """Each member's random stream: not the loss's, nor an outer member's."""
  key = jax.random.fold_in(ctx.key, _MEMBERS)
  return ctx._replace(key=jax.random.fold_in(key, index))


def _merge(metrics: Sequence[dict[str, jax.Array]]) -> dict[str, jax.Array]:
  merged: dict[str, jax.Array] = {}
  for i, own in enumerate(metrics):
    for name, value in own.items():
      while name in merged:  # That of a nested combinator may be taken too.
        name = f'{i}/{name}'
      merged[name] = value
  return merged
