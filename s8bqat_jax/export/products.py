"""What exporters need of products and windows, in any format."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from s8bqat_jax.export.program import Op, UnsupportedExport, Value


class Channels(NamedTuple):
  """A product's constants, channels last, as the format wants them."""

  weights: np.ndarray
  bias: np.ndarray
  scale: np.ndarray


def factor_of(op: Op, index: int) -> float:
  """The real multiplier that an operand of an operation is."""
  require_constants(op, index)
  return math.ldexp(float(op.ins[index].const.reshape(())), -op.params['shift'])


def channels_of(op: Op, weights_NxK: np.ndarray, per_result: Any) -> Channels:
  """Weights, bias and weight scales per output channel.

  A negative multiplier (a BatchNorm's) moves into the weights' signs, since
  scales are positive; a zero one makes the channel's weights zero.

  Args:
    op: a product (x, weights, bias, multiplier).
    weights_NxK: its weights, output channels first.
    per_result: broadcastable constant -> [N], or an error.
  """
  x, (y,) = op.ins[0], op.outs
  _, _, bias, multiplier = (v.const for v in op.ins)
  bias = per_result(bias).astype(np.int64)
  ratio = np.ldexp(
    per_result(multiplier).astype(np.float64), -op.params['shift']
  )
  w = weights_NxK.astype(np.int64)
  flip = np.where(ratio < 0, -1, np.where(ratio == 0, 0, 1))
  w = w * flip[:, None]
  # Our bias holds what cancels the zero point; the interpreter does it itself.
  bias = bias * flip + x.zero * w.sum(axis=1)
  if np.abs(bias).max(initial=0) >= 2**31 or w.max(initial=0) > 127:
    raise UnsupportedExport(
      f'{op.name} at {op.site}: its bias or its weights with the sign of the '
      'multiplier leave their integers'
    )
  ratio = np.where(ratio == 0, 1.0, np.abs(ratio))
  scale = ratio * y.scale / x.scale
  if np.all(scale == scale[0]):
    scale = scale[:1]
  return Channels(w.astype(np.int8), bias.astype(np.int32), scale)


class Matrix(NamedTuple):
  """A product with constant weights as a plain matrix product.

  Attributes:
    x: the value.
    weights: int8 [N, K].
    order: of x's axes: those that remain, then the contracted ones.
    rows: lengths of x's axes that remain.
    const_first: the result has the weights' axes before x's.
    per_result: constant, broadcastable to the result -> [N], or an error.
  """

  x: Value
  weights: np.ndarray
  order: tuple[int, ...]
  rows: tuple[int, ...]
  const_first: bool
  per_result: Callable[[np.ndarray], np.ndarray]


def as_matrix(op: Op) -> Matrix:
  """Reads a q_dot of which one operand is constant."""
  lhs, rhs = op.ins[:2]
  (lc, rc), (lb, rb) = op.params['dimension_numbers']
  if lb or rb:
    raise UnsupportedExport(
      f'q_dot at {op.site}: a batched product with constant weights'
    )
  const_first = lhs.const is not None
  x, weight = (rhs, lhs) if const_first else (lhs, rhs)
  xc, wc = (rc, lc) if const_first else (lc, rc)
  x_free = [i for i in range(len(x.shape)) if i not in xc]
  w_free = [i for i in range(len(weight.shape)) if i not in wc]
  depth = math.prod(x.shape[i] for i in xc)
  matrix = weight.const.transpose(*w_free, *wc).reshape(-1, depth)
  (y,) = op.outs
  first = len(w_free) if const_first else 0
  shared = range(first, first + len(x_free))

  def per_result(c: np.ndarray) -> np.ndarray:
    full = c.reshape((1,) * (len(y.shape) - c.ndim) + c.shape)
    if any(full.shape[i] > 1 for i in shared):
      raise UnsupportedExport(
        f'q_dot at {op.site}: a bias or scale that differs between rows'
      )
    shape = [1 if i in shared else n for i, n in enumerate(y.shape)]
    return np.broadcast_to(full, shape).reshape(-1)

  rows = tuple(x.shape[i] for i in x_free)
  order = (*x_free, *xc)
  return Matrix(x, matrix, order, rows, const_first, per_result)


def per_channel(op: Op, n: int) -> Callable[[np.ndarray], np.ndarray]:
  """A window's constant -> [n], or an error."""

  def per_result(c: np.ndarray) -> np.ndarray:
    if c.ndim and c.size != c.shape[-1]:
      raise UnsupportedExport(
        f'{op.name} at {op.site}: a bias or scale that differs between places'
      )
    return np.broadcast_to(c.reshape(-1), (n,))

  return per_result


def require_narrow(op: Op) -> None:
  """Raises unless the operation takes 8 bits and makes 8 bits."""
  if op.ins[0].dtype != np.int8 or op.outs[0].dtype != np.int8:
    raise UnsupportedExport(f'{op.name} at {op.site}: only 8 bits to 8 bits')


def require_constants(op: Op, *which: int) -> None:
  """Raises unless these operands are constants."""
  for i in which:
    if op.ins[i].const is None:
      raise UnsupportedExport(
        f'{op.name} at {op.site}: operand {i} must be a constant'
      )
