"""The hard compressor: now and then training meets the quantized weights.

Published (Zhen et al. 2022): a hard compressor is invoked periodically during
training; it emulates run-time quantization and speeds convergence. Whether it
overwrites the weights or only the loss sees them quantized is not said, so
both readings are here, each a wrapper around any quantizer. Our own: clearing
the first moments of weights that jumped, and the warning.

References:
  Zhen et al., Sub-8-Bit Quantization Aware Training for 8-Bit Neural Network
  Accelerator with On-Device Speech Recognition, Interspeech 2022,
  arXiv:2206.15408.
"""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any

import jax
import numpy as np

from s8bqat_jax.artifacts import qtensor
from s8bqat_jax.quantizers import tree as trees
from s8bqat_jax.quantizers import types
from s8bqat_jax.quantizers.straight_through import straight_through


def hard_compressor(
  quantizer: types.Quantizer, every: int, peak_learning_rate: float
) -> types.Quantizer:
  """Overwrites the weights with their quantized values every `every` steps.

  After a snap the first moments of the snapped tensors are cleared, where the
  optimizer calls them `mu`, `trace` or `ema` as most of optax's do; the second
  ones are kept, and averaging starts again.

  Args:
    quantizer: any Quantizer; it says what the quantized values are.
    every: N, steps from one snap to the next.
    peak_learning_rate: highest learning rate of the training. Adam moves a
      weight by about the learning rate in a step, so if N times it is less
      than half a region, no weight ever changes its code: `init` then warns.

  Returns:
    The Quantizer.

  Raises:
    ValueError: if `every` is less than 1.

  References:
    Zhen et al., arXiv:2206.15408; see the head of this file for what of it is
    published.
  """
  _check_every(every)

  def init(params: types.Params) -> types.State:
    state = quantizer.init(params)
    _warn_if_out_of_reach(
      quantizer.encode(params, state), every, peak_learning_rate
    )
    return state

  def after_update(
    params: types.Params, state: types.State, ctx: types.Ctx
  ) -> tuple[types.Params, types.State, Any]:
    params, state, moved = quantizer.after_update(params, state, ctx)
    moved = trees.mark_moved(moved, ())

    def snap():
      encoded = quantizer.encode(params, state)
      return qtensor.decode(encoded), trees.mark_moved(
        moved, trees.quantized(encoded)
      )

    due = (ctx.step + 1) % every == 0
    params, moved = jax.lax.cond(due, snap, lambda: (params, moved))
    return params, state, moved

  return dataclasses.replace(quantizer, init=init, after_update=after_update)


def loss_at_codes(quantizer: types.Quantizer, every: int) -> types.Quantizer:
  """Takes the loss at the quantized weights in every `every`-th step.

  The gradient found there moves the float weights: a straight-through step.

  Args:
    quantizer: a Quantizer with one branch.
    every: N, steps from one quantized loss to the next; 1 for all of them.

  Returns:
    The Quantizer.

  Raises:
    ValueError: if `every` is less than 1.

  References:
    Zhen et al., arXiv:2206.15408; see the head of this file for what of it is
    published.
  """
  _check_every(every)
  emulated = straight_through(quantizer)
  if every == 1:
    return emulated

  def floats(params, state, ctx):
    branches = quantizer.views(params, state, ctx)
    if set(branches) != {types.MAIN}:
      raise ValueError(
        f'loss_at_codes goes around a quantizer with the branch {types.MAIN!r} '
        f'alone; this one has {", ".join(branches)}'
      )
    return branches

  def views(
    params: types.Params, state: types.State, ctx: types.Ctx
  ) -> types.Branches:
    return jax.lax.cond(
      (ctx.step + 1) % every == 0,
      lambda params: emulated.views(params, state, ctx),
      lambda params: floats(params, state, ctx),
      params,
    )

  return dataclasses.replace(quantizer, views=views)


def _check_every(every: int) -> None:
  if every < 1:
    raise ValueError(f'every must be at least 1 step, got {every}')


def _warn_if_out_of_reach(encoded: Any, every: int, rate: float) -> None:
  stuck = {}
  for name, q in trees.quantized(encoded).items():
    if any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(q)):
      return
    half = float(np.min(np.asarray(q.scale, np.float64))) / 2
    if q.codebook is not None:
      gaps = np.diff(np.asarray(q.codebook, np.float64))
      half *= float(np.min(gaps[gaps > 0], initial=np.inf))
    if every * rate < half < np.inf:
      stuck[name] = half
  if stuck:
    name = max(stuck, key=lambda n: stuck[n])
    steps = int(np.ceil(stuck[name] / rate)) if rate > 0 else 'more'
    warnings.warn(
      f'hard_compressor: in {every} steps at learning rate {rate:g} a weight '
      f'moves by about {every * rate:.2g} at most. That is less than half the '
      f'narrowest region of {len(stuck)} tensors ({stuck[name]:.2g} in '
      f'{name}), so each snap will return their weights to the codes they had. '
      f'Snap every {steps} steps or raise the learning rate.',
      stacklevel=3,
    )
