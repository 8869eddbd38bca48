"""Rules for clips: each is the saturation of the step before it."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

from s8bqat_jax.integer.context import Context, register
from s8bqat_jax.integer.movement import joint
from s8bqat_jax.integer.rules import swap, tabulate
from s8bqat_jax.integer.values import (
  INF,
  Const,
  QValue,
  Table,
  Value,
  scalar_of,
)


def _clip(ctx: Context, e: Any, x: QValue, low: float, high: float, *ins):
  """Narrows what a value saturates to; of a table, makes another."""
  if isinstance(x.source, Table):
    return tabulate(ctx, e, *ins)
  return QValue(
    x.shape,
    ctx.key(e),
    x.source,
    gain=x.gain,
    clip=(
      float(np.clip(x.clip[0], low, high)),
      float(np.clip(x.clip[1], low, high)),
    ),
    root=x,
    step=lambda r: jnp.clip(r, low, high),
    live=ctx.live(e, *ins),
  )


@register('max', 'min')
def _bound(ctx: Context, e: Any, x: Any, y: Any) -> Value:
  swapped = swap(e, x, y)
  bound = scalar_of(swapped[2]) if isinstance(swapped[2], Const) else None
  if bound is None or swapped[1].shape != e.outs[0].shape:
    return joint(ctx, e, x, y)
  e, x, y = swapped
  if e.name == 'max':
    ends, nothing = (float(bound), INF), -INF
  else:
    ends, nothing = (-INF, float(bound)), INF
  if y.name:  # a parameter: the twin's may be another by now
    return tabulate(ctx, e, x, y) or joint(ctx, e, x, y)
  return x if bound == nothing else _clip(ctx, e, x, *ends, x, y)


@register('clamp')
def _clamp(ctx: Context, e: Any, low: Any, x: Any, high: Any) -> Value:
  bounds: list[Any] = [
    scalar_of(b) if isinstance(b, Const) else None for b in (low, high)
  ]
  if None in bounds or not isinstance(x, QValue):
    raise ctx.unsupported(e, 'its bounds are not scalars')
  if any(isinstance(b, Const) and b.name for b in (low, high)):
    made = tabulate(ctx, e, low, x, high)
    if made is not None:
      return made
  return _clip(ctx, e, x, float(bounds[0]), float(bounds[1]), low, x, high)
