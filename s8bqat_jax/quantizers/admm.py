"""ADMM: training under the constraint that weights are entries of a table.

Published (Xu et al.; the method is older): minimize the loss subject to T in Q
by turns of T <- descent on loss + rho / 2 |T - G + u|^2, G <- the projection
of T + u onto Q, u <- u + T - G; tables {scale, levels} are projected onto by
alternating least squares for the scale and rounding to the levels, and belong
to one tensor, a group of tensors or the whole model. Our reconstruction: the
decoupled pull, the Lloyd-Max table, the two's-complement power-of-two levels,
the schedule of rho and the period of the projection.

References:
  Xu et al., Mixed Precision Low-bit Quantization of Neural Network Language
  Models for Speech Recognition, 2021, arXiv:2112.11438; Mixed Precision
  Quantization of Transformer Language Models for Speech Recognition, 2021,
  arXiv:2112.11540. Leng et al., Extremely Low Bit Neural Network: Squeeze the
  Last Bit Out with ADMM, AAAI 2018, arXiv:1707.09870. Boyd et al.,
  Distributed Optimization and Statistical Learning via the Alternating
  Direction Method of Multipliers, 2011.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from s8bqat_jax.quantizers import admm_tables as tables
from s8bqat_jax.quantizers import codebook as books
from s8bqat_jax.quantizers import lift, schedules, types
from s8bqat_jax.quantizers import rules as rule_lib
from s8bqat_jax.quantizers.mracos import FLOW, LOSS


class Carried(NamedTuple):
  """What ADMM remembers.

  Attributes:
    books: {group: Codebook}, the tables.
    codes: {name: uint8 codes}, the projection G.
    target: {name: float32}, G - u, what weights are pulled to; u is the dual
      in units of the weights (the scaled form). Kept rather than u, so that a
      step between two projections has nothing to look up.
    rho: float32 scalar, what u is scaled by.
    step_of_g: float32 scalar, |G - previous G| / |G|.
  """

  books: Any
  codes: Any
  target: Any
  rho: Any
  step_of_g: Any


def admm(
  rules: rule_lib.Rules,
  *,
  rho: optax.ScalarOrSchedule,
  table: str = 'lloyd_max',
  every: int = 10,
  coupling: str = FLOW,
  fit: tables.Fit | None = None,
) -> types.Quantizer:
  """Pulls weights to their projection onto a table, with multipliers.

  The forward pass sees the float weights, so evaluate what `encode` returns.

  Args:
    rules: bits for every weight, or a sequence of `Rule`. The weights of one
      group share a table: `Rule('.*', 4, 'model')` makes one for the model.
    rho: penalty, number or schedule, which is read at projections;
      `mracos.pressure_schedule` makes one from a single hyperparameter, for
      which 100 is a good start: the residuals vanish only if rho outgrows the
      curvature of the loss.
    table: 'uniform' (binary at one bit, ternary at three levels),
      'powers_of_two' (up to 4 bits) or 'lloyd_max'.
    every: steps from one projection and dual update to the next.
    coupling: 'flow' decays the distance to G - u by e^(-rho learning_rate)
      after the optimizer's step. 'loss' adds the penalty to the loss as
      published; under Adam rho then loses most of its meaning.
    fit: (w, levels) -> Codebook, where the table 'lloyd_max' starts; None is
      `lloyd_max.fit`. With `row_scales.fit` every weight needs a table of its
      own.

  Returns:
    The Quantizer. Metrics: `primal`, |T - G| / |T|, and `dual`, how much the
    last projection changed, |G - previous G| / |G|.

  Raises:
    ValueError: if an argument is none of those listed; on `init`, if the
      weights of a group have different levels.

  References:
    Xu et al., arXiv:2112.11438 and arXiv:2112.11540; see the head of this file
    for what of them is published.
  """
  if coupling not in (FLOW, LOSS):
    raise ValueError(f"coupling must be 'flow' or 'loss', got {coupling!r}")
  if every < 1:
    raise ValueError(f'every must be at least 1 step, got {every}')
  kind = tables.table(table, fit)

  def init(weights, specs):
    fitted = {
      group: kind.fit([weights[n] for n in names], levels)
      for group, (names, levels) in groups(specs).items()
    }
    codes = {
      n: books.nearest(w, fitted[specs[n].group]) for n, w in weights.items()
    }
    # The dual starts at zero.
    target = {n: _entries(fitted[specs[n].group], c) for n, c in codes.items()}
    start = schedules.at(rho, jnp.zeros((), jnp.int32))
    one = jnp.ones((), jnp.float32)
    return types.State(carried=Carried(fitted, codes, target, start, one))

  def projection(carried, specs):
    return {
      n: _entries(carried.books[specs[n].group], codes)
      for n, codes in carried.codes.items()
    }

  def encode(weights, state, specs):
    def ship(w, book):
      # A table shared by several dtypes has the widest of them.
      return kind.ship(w, book._replace(scale=book.scale.astype(w.dtype)))

    return {
      n: ship(w, state.carried.books[specs[n].group])
      for n, w in weights.items()
    }

  def penalty(weights, state, specs, ctx):
    del specs, ctx
    target = state.carried.target
    off = {n: w - target[n] for n, w in weights.items()}
    return state.carried.rho / 2 * _square(off)

  def pull(weights, carried, ctx):
    stay = jnp.exp(-carried.rho * ctx.learning_rate)

    def one(w, target):
      return (target + stay * (w - target)).astype(w.dtype)

    return {n: one(w, carried.target[n]) for n, w in weights.items()}

  def after_update(weights, state, specs, ctx):
    carried = state.carried
    if coupling == FLOW:
      weights = pull(weights, carried, ctx)
    carried = jax.lax.cond(
      (ctx.step + 1) % every == 0,
      lambda: project(weights, carried, specs, schedules.at(rho, ctx.step + 1)),
      lambda: carried,
    )
    return weights, types.State(carried=carried), {}

  def project(weights, carried, specs, new_rho):
    before = projection(carried, specs)
    lifted = {
      n: w.astype(jnp.float32) + (before[n] - carried.target[n])
      for n, w in weights.items()
    }
    fitted = {
      group: kind.improve([lifted[n] for n in names], carried.books[group])
      for group, (names, _) in groups(specs).items()
    }
    codes = {
      n: books.nearest(v, fitted[specs[n].group]) for n, v in lifted.items()
    }
    new = carried._replace(books=fitted, codes=codes)
    g = projection(new, specs)
    step_of_g = _ratio({n: g[n] - before[n] for n in g}, g)
    # Less is the rounding of the table's scale, which projects anew each time.
    step_of_g = jnp.where(step_of_g > 1e-6, step_of_g, 0.0)
    # The scaled dual stands for rho u, which a new rho must not change.
    new_rho = jnp.asarray(new_rho, jnp.float32)
    rescale = jnp.where(new_rho > 0, carried.rho / new_rho, 1.0)
    target = {n: g[n] - rescale * (v - g[n]) for n, v in lifted.items()}
    return new._replace(target=target, rho=new_rho, step_of_g=step_of_g)

  def metrics(weights, state, specs):
    g = projection(state.carried, specs)
    off = {n: w - g[n] for n, w in weights.items()}
    return {'primal': _ratio(off, weights), 'dual': state.carried.step_of_g}

  return lift.lift(
    rules,
    init=init,
    encode=encode,
    penalty=penalty if coupling == LOSS else None,
    after_update=after_update,
    metrics=metrics,
  )


def groups(specs: lift.Specs) -> dict[str, tuple[list[str], int]]:
  """Returns {group: (names of its weights, levels)}.

  Args:
    specs: {name: Spec} of the weights.

  Returns:
    The groups in the order of their first weights.

  Raises:
    ValueError: if the weights of a group have different levels.
  """
  found: dict[str, tuple[list[str], int]] = {}
  for name, spec in specs.items():
    names, levels = found.setdefault(spec.group, ([], spec.levels))
    if levels != spec.levels:
      raise ValueError(
        f'group {spec.group!r} shares a table, but {names[0]} has {levels} '
        f'levels and {name} has {spec.levels}; give them the same bits or '
        'groups of their own'
      )
    names.append(name)
  return found


def _entries(book: books.Codebook, codes: jax.Array) -> jax.Array:
  return books.entries(codes, book).astype(jnp.float32)


def _square(tree: lift.Weights) -> jax.Array:
  return sum(
    (jnp.sum(jnp.square(x.astype(jnp.float32))) for x in tree.values()),
    jnp.zeros((), jnp.float32),
  )


def _ratio(a: lift.Weights, b: lift.Weights) -> jax.Array:
  tiny = jnp.finfo(jnp.float32).tiny
  return jnp.sqrt(_square(a) / jnp.maximum(_square(b), tiny))
