"""Rules for the patterns that patterns.py finds: softmax and normalizations."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

from s8bqat_jax.integer import (
  norm,
  requantize,
  softmax,
)
from s8bqat_jax.integer.context import Context, register
from s8bqat_jax.integer.spec import MASK_LIMIT, Spec
from s8bqat_jax.integer.values import (
  QValue,
  Value,
)


def _last_axis(e: Any, x: QValue):
  """Functions that move the pattern's axis to the end and back."""
  axis, last = e.params['axis'], len(x.shape) - 1
  if axis == last:
    return (lambda c: c), (lambda c: c)
  return (lambda c: jnp.moveaxis(c, axis, -1)), (
    lambda c: jnp.moveaxis(c, -1, axis)
  )


@register('softmax')
def _softmax(ctx: Context, e: Any, x: QValue, *rest: Value) -> QValue:
  a = ctx.operand(x, 8, masks=True)
  key = ctx.key(e)
  to_last, back = _last_axis(e, x)

  def own(bits: int) -> Spec:
    # Probabilities: 2^-bits per code, whatever calibration saw.
    if bits == 16:
      return Spec(2.0**-15, 0, 0, 2**15 - 1, 16)
    return Spec(2.0**-8, -128)

  def emit(spec: Spec):
    natural = own(spec.bits)
    codes = softmax.q_softmax(
      to_last(a.codes),
      softmax.exp_table(a.spec.scale),
      masked=a.spec.masked,
      bits=8 if spec.bits == 8 else 15,
      out=natural.out,
      site=key,
    )
    return ctx.rescale(back(codes), natural, spec, key)

  p = ctx.computed(e, (a, *rest), emit, own=own)
  if ctx.twin and a.spec.masked:
    # Integers have nothing to give where all is masked out.
    there = jnp.any(a.live > -MASK_LIMIT, e.params['axis'], keepdims=True)
    p.live = jnp.where(there, p.live, 0)
  return p


@register('log_softmax')
def _log_softmax(ctx: Context, e: Any, x: QValue, *rest: Value) -> QValue:
  a = ctx.operand(x, 8, masks=True)
  key = ctx.key(e)
  to_last, back = _last_axis(e, x)

  def emit(spec: Spec):
    log_step = np.log(2) * 2.0**-softmax.LOG_BITS
    first, second = requantize.to_multiplier(
      a.spec.scale / spec.scale, log_step / spec.scale
    )
    codes = softmax.q_log_softmax(
      to_last(a.codes),
      softmax.exp_table(a.spec.scale),
      softmax.log_table(),
      first.multiplier,
      second.multiplier,
      masked=a.spec.masked,
      shift=first.shift,
      out=spec.out,
      site=key,
    )
    return back(codes)

  return ctx.computed(e, (a, *rest), emit)


@register('layernorm', 'rmsnorm')
def _normalize(ctx: Context, e: Any, x: QValue, *rest: Value) -> QValue:
  a = ctx.operand(x)
  key = ctx.key(e)
  to_last, back = _last_axis(e, x)
  gamma, beta = e.params['gamma'], e.params['beta']
  width = x.shape[e.params['axis']]
  unit = a.spec.scale * 2 ** norm.dropped_bits(width, a.spec.bits)
  epsilon = e.params['epsilon'] * (width / unit) ** 2
  epsilon = int(np.rint(epsilon * 4.0**norm.ROOT_FRACTION))

  def emit(spec: Spec):
    ratio = gamma / 2.0**norm.VALUE_BITS / spec.scale
    fixed, _ = requantize.to_multiplier(ratio, 2.0**-norm.BIAS_BITS)
    bias = np.rint(beta / spec.scale * 2.0**norm.BIAS_BITS)
    codes = norm.q_layernorm(
      to_last(a.codes),
      fixed.multiplier,
      np.clip(bias, -(2**31), 2**31 - 1).astype(np.int32),
      center=e.name == 'layernorm',
      epsilon=min(epsilon, 2**61),
      zero=a.spec.zero,
      shift=fixed.shift,
      out=spec.out,
      site=key,
    )
    return back(codes)

  return ctx.computed(e, (a, *rest), emit)
