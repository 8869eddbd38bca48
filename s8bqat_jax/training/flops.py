"""Floating-point operations of a function, counted on its jaxpr.

XLA's own cost analysis counts the body of a loop once; here a scan's body
counts as often as it runs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax


class Flops(NamedTuple):
  """Operations of one call.

  Attributes:
    products: of matrix products and convolutions, two per multiply-add.
    elementwise: one per element that any other primitive writes.
    unbounded: loops whose trip count is not known; their body counts once.
  """

  products: int = 0
  elementwise: int = 0
  unbounded: int = 0

  def __add__(self, other: Any) -> Flops:
    return Flops(*(a + b for a, b in zip(self, other)))

  def times(self, n: int) -> Flops:
    """Returns the operations of `n` calls."""
    return Flops(self.products * n, self.elementwise * n, self.unbounded)


def count(fn: Callable, *args: Any) -> Flops:
  """Counts the operations of `fn(*args)` without running it.

  Args:
    fn: any traceable function.
    *args: arrays or jax.ShapeDtypeStruct.
  """
  return _jaxpr(jax.make_jaxpr(fn)(*args).jaxpr)


def _jaxpr(jaxpr: Any) -> Flops:
  return sum((_equation(eqn) for eqn in jaxpr.eqns), Flops())


def _equation(eqn: Any) -> Flops:
  name, params = eqn.primitive.name, eqn.params
  if name == 'dot_general':
    (contracting, _), _ = params['dimension_numbers']
    shape = eqn.invars[0].aval.shape
    depth = math.prod(shape[axis] for axis in contracting)
    return Flops(products=2 * depth * eqn.outvars[0].aval.size)
  if name == 'conv_general_dilated':
    kernel = eqn.invars[1].aval.shape
    out_axis = params['dimension_numbers'].rhs_spec[0]
    per_output = math.prod(kernel) // kernel[out_axis]
    return Flops(products=2 * per_output * eqn.outvars[0].aval.size)
  if name == 'scan':
    return _jaxpr(params['jaxpr'].jaxpr).times(params['length'])
  if name == 'while':
    body = _jaxpr(params['body_jaxpr'].jaxpr)
    return body + _jaxpr(params['cond_jaxpr'].jaxpr) + Flops(unbounded=1)
  if name == 'cond':
    return max(_jaxpr(branch.jaxpr) for branch in params['branches'])
  inner = [x for value in params.values() for x in _inner_jaxprs(value)]
  # A scatter's is what it does to one element.
  if inner and not name.startswith('scatter'):
    # A custom derivative carries its rules as functions, not as jaxprs, so
    # that the first jaxpr found is the body.
    return _jaxpr(inner[0])
  return Flops(elementwise=sum(x.aval.size for x in eqn.outvars))


def _inner_jaxprs(value: Any) -> list[Any]:
  if hasattr(value, 'eqns'):
    return [value]
  return [value.jaxpr] if hasattr(value, 'jaxpr') else []
