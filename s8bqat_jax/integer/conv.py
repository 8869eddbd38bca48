"""q_conv, q_depthwise and q_pool: integer windows over [N, *spatial, C].

XLA's CPU backend runs integer convolutions hundreds of times slower than
float ones, while im2col followed by an int8 product is exact and fast; and
a depthwise convolution is one multiply-add per tap over shifted views.

Error bounds, in LSB of the result before saturation:
  q_conv, q_depthwise   those of q_dot (dot.py): the int32 sum is exact.
  q_pool, q_sum         0.5 + |code| 2^-31; 0 for a pool of kind `max`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from s8bqat_jax.integer import dot, primitives, requantize


def _taps(x_NxSxC: Any, window, strides, padding, dilation, fill, xp: Any):
  """Yields the strided view of x under each tap, in row-major tap order."""
  pads = [(0, 0), *padding, (0, 0)]
  if xp is np:
    # NumPy has no negative padding: crop those sides afterwards.
    grow = [(max(a, 0), max(b, 0)) for a, b in pads]
    x: Any = np.pad(x_NxSxC, grow, constant_values=fill)
    x = x[
      tuple(
        slice(max(-a, 0), n - max(-b, 0)) for (a, b), n in zip(pads, x.shape)
      )
    ]
  else:
    fill = np.asarray(fill, x_NxSxC.dtype)
    x = lax.pad(x_NxSxC, fill, [(a, b, 0) for a, b in pads])
  out = [
    max(0, (n - (k - 1) * d - 1) // s + 1)
    for n, k, s, d in zip(x.shape[1:-1], window, strides, dilation)
  ]
  for tap in itertools.product(*map(range, window)):
    index = tuple(
      slice(t * d, t * d + (o - 1) * s + 1 if o else t * d, s)
      for t, d, o, s in zip(tap, dilation, out, strides)
    )
    yield x[(slice(None), *index, slice(None))]


# q_conv: kernel_KxIxO [*window, C / groups, O].


def _conv(
  x, kernel, bias, multiplier, *, strides, padding, dilation, groups, zero,
  shift, out, site
):  # fmt: skip
  *window, inputs, outputs = kernel.shape
  views = list(_taps(x, window, strides, padding, dilation, zero, jnp))
  taps = math.prod(window)
  if groups == 1:
    columns = jnp.concatenate(views, axis=-1)
    return dot.q_dot(
      columns,
      kernel.reshape(taps * inputs, outputs),
      bias,
      multiplier,
      dimension_numbers=(((columns.ndim - 1,), (0,)), ((), ())),
      zeros=(0, 0),
      shift=shift,
      out=out,
      site=site,
    )
  # Groups are a batch axis of the product: [G, N * S, K * I] x [G, K * I, O].
  shape = views[0].shape[:-1]
  columns = jnp.stack(views, axis=-2).reshape(
    math.prod(shape), taps, groups, inputs
  )
  matrix = kernel.reshape(taps, inputs, groups, outputs // groups)
  dims: dot.Dims = (((1, 3), (0, 1)), ((2,), (2,)))
  acc = dot.dot_int32(columns, matrix, dims)
  acc = acc.transpose(1, 0, 2).reshape(*shape, outputs)
  return requantize.requantize(acc + bias, multiplier, shift, out)


def _conv_np(
  x, kernel, bias, multiplier, *, strides, padding, dilation, groups, zero,
  shift, out, site
):  # fmt: skip
  del site
  kernel = np.asarray(kernel, np.int64)
  *window, inputs, outputs = kernel.shape
  x64 = np.asarray(x, np.int64)
  acc: Any = 0
  views = _taps(x64, window, strides, padding, dilation, zero, np)
  for view, matrix in zip(views, kernel.reshape(-1, inputs, outputs)):
    width = outputs // groups
    acc = acc + np.concatenate(
      [
        view[..., g * inputs : (g + 1) * inputs]
        @ matrix[:, g * width : (g + 1) * width]
        for g in range(groups)
      ],
      axis=-1,
    )
  acc = (acc + np.asarray(bias, np.int64)).astype(np.int32)
  return requantize.requantize_np(acc, multiplier, shift, out)


# q_depthwise: kernel_KxC [*window, C].


def _depthwise(
  x, kernel, bias, multiplier, *, strides, padding, dilation, zero, shift, out,
  site
):  # fmt: skip
  del site
  *window, channels = kernel.shape
  views = _taps(x, window, strides, padding, dilation, zero, jnp)
  acc = bias
  for view, row in zip(views, kernel.reshape(-1, channels)):
    acc = acc + view.astype(jnp.int32) * row.astype(jnp.int32)
  return requantize.requantize(acc, multiplier, shift, out)


def _depthwise_np(
  x, kernel, bias, multiplier, *, strides, padding, dilation, zero, shift, out,
  site
):  # fmt: skip
  del site
  kernel = np.asarray(kernel, np.int64)
  *window, channels = kernel.shape
  x64 = np.asarray(x, np.int64)
  views = _taps(x64, window, strides, padding, dilation, zero, np)
  acc = np.asarray(bias, np.int64)
  for view, row in zip(views, kernel.reshape(-1, channels)):
    acc = acc + view * row
  return requantize.requantize_np(acc.astype(np.int32), multiplier, shift, out)


# q_pool: the sum (padding counts nothing) or the maximum of a window.


def _pool(
  x, multiplier, *, kind, window, strides, padding, dilation, zero, shift, out,
  site
):  # fmt: skip
  del site
  if kind == 'max':
    fill = np.iinfo(x.dtype).min
    result = None
    for view in _taps(x, window, strides, padding, dilation, fill, jnp):
      result = view if result is None else jnp.maximum(result, view)
    return result
  acc: Any = 0
  for view in _taps(x, window, strides, padding, dilation, zero, jnp):
    acc = acc + (view.astype(jnp.int32) - np.int32(zero))
  return requantize.requantize(acc, multiplier, shift, out)


def _pool_np(
  x, multiplier, *, kind, window, strides, padding, dilation, zero, shift, out,
  site
):  # fmt: skip
  del site
  x = np.asarray(x)
  fill = np.iinfo(x.dtype).min if kind == 'max' else zero
  views = np.stack(
    list(
      _taps(x.astype(np.int64), window, strides, padding, dilation, fill, np)
    )
  )
  if kind == 'max':
    return views.max(axis=0).astype(x.dtype)
  acc = (views - zero).sum(axis=0)
  return requantize.requantize_np(acc, multiplier, shift, out)


# q_sum: the sum over axes, requantized (a mean is a sum at another scale).


def _sum(x, multiplier, *, over, zero, shift, out, site):
  del site
  acc = jnp.sum(
    x.astype(jnp.int32) - np.int32(zero), axis=over, dtype=jnp.int32
  )
  return requantize.requantize(acc, multiplier, shift, out)


def _sum_np(x, multiplier, *, over, zero, shift, out, site):
  del site
  acc = (np.asarray(x, np.int64) - zero).sum(axis=over)
  return requantize.requantize_np(acc, multiplier, shift, out)


def _batch_images(bind, name):
  """A mapped batch of images is a larger batch of images."""

  def rule(args, axes, **params):
    rest = {f'operand {i}': axis for i, axis in enumerate(axes) if i}
    primitives.require_unmapped(name, **rest)
    x = jnp.moveaxis(args[0], axes[0], 0)
    flat = x.reshape(x.shape[0] * x.shape[1], *x.shape[2:])
    y = bind()(flat, *args[1:], **params)
    return y.reshape(*x.shape[:2], *y.shape[1:]), 0

  return rule


def _batch_sum(args, axes, *, over, **params):
  primitives.require_unmapped('q_sum', multiplier=axes[1])
  x = jnp.moveaxis(args[0], axes[0], 0)
  return q_sum(x, args[1], over=tuple(a + 1 for a in over), **params), 0


q_conv: Callable[..., Any] = primitives.define(
  'q_conv', _conv, _conv_np, _batch_images(lambda: q_conv, 'q_conv')
)
q_depthwise: Callable[..., Any] = primitives.define(
  'q_depthwise',
  _depthwise,
  _depthwise_np,
  _batch_images(lambda: q_depthwise, 'q_depthwise'),
)
q_pool: Callable[..., Any] = primitives.define(
  'q_pool', _pool, _pool_np, _batch_images(lambda: q_pool, 'q_pool')
)
q_sum: Callable[..., Any] = primitives.define(
  'q_sum', _sum, _sum_np, _batch_sum
)
