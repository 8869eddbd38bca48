"""q_dot: an integer dot product of any dimension numbers, requantized.

Error bound: the int32 accumulator is exact, so only its requantization errs, by
at most 0.5 + |code| 2^-31 LSB before saturation (2^(k-31) for a channel whose
ratio is 2^-k of the largest).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from s8bqat_jax.integer import native, primitives, requantize

# ((lhs contracting, rhs contracting), (lhs batch, rhs batch)), as in lax.
Dims = tuple[
  tuple[tuple[int, ...], tuple[int, ...]],
  tuple[tuple[int, ...], tuple[int, ...]],
]


def dot_int32(lhs: jax.Array, rhs: jax.Array, dims: Dims) -> jax.Array:
  """Returns the int32 dot product of int8 operands (wraps modulo 2^32).

  XLA's CPU backend runs an int8 matrix-vector product several times slower
  than a matrix product of two rows, so one row is padded to two.
  """
  (lhs_contract, _), (lhs_batch, _) = dims
  free = [i for i in range(lhs.ndim) if i not in (*lhs_contract, *lhs_batch)]
  single = not lhs_batch and free and math.prod(lhs.shape[i] for i in free) == 1
  if single:
    padding = [(0, 0, 0)] * lhs.ndim
    padding[free[-1]] = (0, 1, 0)
    lhs = lax.pad(lhs, np.asarray(0, lhs.dtype), padding)
  acc = lax.dot_general(lhs, rhs, dims, preferred_element_type=jnp.int32)
  if single:
    acc = lax.slice_in_dim(acc, 0, 1, axis=len(free) - 1)
  return acc


def _zero_terms(lhs, rhs, dims: Dims, zeros: tuple[int, int], sum_fn: Any):
  """What the zero points add to the product of the codes.

  sum (l - zl)(r - zr) = sum l r - zl sum r - zr sum l + K zl zr.
  """
  (lc, rc), (lb, rb) = dims
  zero_l, zero_r = zeros
  lf = [i for i in range(lhs.ndim) if i not in (*lc, *lb)]
  rf = [i for i in range(rhs.ndim) if i not in (*rc, *rb)]
  depth = math.prod(lhs.shape[i] for i in lc)
  terms = depth * zero_l * zero_r
  batch = [lhs.shape[i] for i in lb]
  if zero_l:
    sums = sum_fn(rhs, rc).transpose(_rank([*rb, *rf]))
    shape = batch + [1] * len(lf) + [rhs.shape[i] for i in rf]
    terms = terms - zero_l * sums.reshape(shape)
  if zero_r:
    sums = sum_fn(lhs, lc).transpose(_rank([*lb, *lf]))
    shape = batch + [lhs.shape[i] for i in lf] + [1] * len(rf)
    terms = terms - zero_r * sums.reshape(shape)
  return terms


def _rank(axes):
  """Where each kept axis stands once the contracted ones are gone."""
  kept = sorted(axes)
  return [kept.index(a) for a in axes]


def _kernel(
  lhs, rhs, bias, multiplier, *, dimension_numbers, zeros, shift, out, site
):
  del site
  acc = dot_int32(lhs, rhs, dimension_numbers)
  sums = lambda x, axes: jnp.sum(x, axis=tuple(axes), dtype=jnp.int32)
  if any(zeros):
    acc = acc + _zero_terms(lhs, rhs, dimension_numbers, zeros, sums)
  return requantize.requantize(acc + bias, multiplier, shift, out)


def _cpu_kernel(lhs, rhs, bias, multiplier, **params):
  """The native product, if it is there and covers this one."""
  if not (
    native.available() and _is_native(lhs, rhs, bias, multiplier, **params)
  ):
    return _kernel(lhs, rhs, bias, multiplier, **params)
  (l_contract, r_contract), _ = params['dimension_numbers']
  x = jnp.moveaxis(lhs, l_contract[0], -1)
  codes_MxN = native.dot(
    x.reshape(math.prod(x.shape[:-1]), x.shape[-1]),
    rhs,
    jnp.ravel(bias),
    jnp.ravel(multiplier),
    output_major=r_contract == (1,),
    zero=params['zeros'][0],
    shift=params['shift'],
    out=params['out'],
  )
  return codes_MxN.reshape(*x.shape[:-1], codes_MxN.shape[-1])


def _is_native(
  lhs, rhs, bias, multiplier, *, dimension_numbers, zeros, shift, out, site
) -> bool:
  """Whether a product is one of int8 matrices, its columns rescaled."""
  del shift, site
  (l_contract, r_contract), (l_batch, _) = dimension_numbers
  if rhs.ndim != 2 or len(l_contract) != 1 or l_batch:
    return False
  n = rhs.shape[1 - r_contract[0]]

  def per_column(c):
    shaped = c.size == 1 or c.size == c.shape[-1] == n
    return c.dtype == jnp.int32 and c.ndim <= lhs.ndim and shaped

  return (
    lhs.dtype == rhs.dtype == jnp.int8
    and n >= native.COLUMNS // 4  # Fewer are mostly padding.
    and zeros[1] == 0
    and per_column(bias)
    and per_column(multiplier)
    and out.dtype in ('int8', 'int16', 'int32')
    and all(-(2**31) <= x < 2**31 for x in (zeros[0], *out[:3]))
  )


def _oracle(
  lhs, rhs, bias, multiplier, *, dimension_numbers, zeros, shift, out, site
):
  del site
  (lc, rc), (lb, rb) = dimension_numbers
  l64 = np.asarray(lhs, np.int64) - zeros[0]
  r64 = np.asarray(rhs, np.int64) - zeros[1]
  names = iter('abcdefghijklmnopqrstuvwxyz')
  ls = {i: next(names) for i in range(l64.ndim)}
  rs = {j: ls[i] for i, j in zip((*lc, *lb), (*rc, *rb))}
  rs = {j: rs.get(j) or next(names) for j in range(r64.ndim)}
  result = [ls[i] for i in lb]
  result += [ls[i] for i in range(l64.ndim) if i not in (*lc, *lb)]
  result += [rs[j] for j in range(r64.ndim) if j not in (*rc, *rb)]
  spell = lambda s: ''.join(s[i] for i in range(len(s)))
  acc = np.einsum(f'{spell(ls)},{spell(rs)}->{"".join(result)}', l64, r64)
  acc = (acc + np.asarray(bias, np.int64)).astype(np.int32)
  return requantize.requantize_np(acc, multiplier, shift, out)


def _batch(args, axes, *, dimension_numbers, **params):
  """A mapped operand gains a batch axis, or a free one if it is alone.

  A bias that differs along it lines up with the result's new axis.
  """
  lhs, rhs, bias, multiplier = args
  l_axis, r_axis, b_axis, m_axis = axes
  primitives.require_unmapped('q_dot', multiplier=m_axis)
  (lc, rc), (lb, rb) = dimension_numbers
  if l_axis is None and r_axis is None:
    lhs, l_axis = jnp.broadcast_to(lhs, (bias.shape[b_axis], *lhs.shape)), 0
  if l_axis is not None:
    lhs = jnp.moveaxis(lhs, l_axis, 0)
    lc, lb = _up(lc), _up(lb)
  if r_axis is not None:
    rhs = jnp.moveaxis(rhs, r_axis, 0)
    rc, rb = _up(rc), _up(rb)
  if l_axis is not None and r_axis is not None:
    lb, rb = (0, *lb), (0, *rb)
    position = 0
  elif l_axis is not None:
    position = len(lb)  # The first of lhs's free axes.
  else:
    position = len(lb) + lhs.ndim - len(lc) - len(lb)
  # Bias and multiplier line up with the last axes of the result, so those
  # that reach past the new one need an axis of their own.
  rank = lhs.ndim + rhs.ndim - len(lc) - len(rc) - len(lb)
  if b_axis is None:
    bias = _make_room(bias, rank, position)
  else:
    bias = jnp.moveaxis(bias, b_axis, 0)
    ones = (1,) * (rank - bias.ndim)
    bias = bias.reshape(bias.shape[0], *ones, *bias.shape[1:])
    bias = jnp.moveaxis(bias, 0, position)
  multiplier = _make_room(multiplier, rank, position)
  result = q_dot(
    lhs, rhs, bias, multiplier, dimension_numbers=((lc, rc), (lb, rb)), **params
  )
  return result, position


def _up(axes):
  return tuple(a + 1 for a in axes)


def _make_room(x, rank, position):
  """Inserts a unit axis at `position` of the rank-`rank` result."""
  if x.ndim < rank - position:
    return x
  return jnp.expand_dims(x, x.ndim - (rank - 1 - position))


q_dot: Callable[..., Any] = primitives.define(
  'q_dot', _kernel, _oracle, _batch, cpu=_cpu_kernel
)
