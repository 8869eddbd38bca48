"""The straight-through estimator: forward the quantized weight, back the float.

`w + stop_gradient(q - w)` is not q in floating point (of ternary weights more
than one in a hundred differ), so the forward here *is* q, and the gradient is
said apart. A view therefore computes with what ships, to the last bit.
"""

from __future__ import annotations

import dataclasses

import jax

from s8bqat_jax.artifacts import qtensor
from s8bqat_jax.quantizers import types


@jax.custom_jvp
def replace(w: jax.Array, q: jax.Array) -> jax.Array:
  """Returns `q` itself, with the derivative of `w`.

  Args:
    w: float weights.
    q: what the forward pass sees instead, of the same shape and dtype. It
      counts as a constant.

  Returns:
    `q`.

  References:
    Bengio et al., Estimating or Propagating Gradients Through Stochastic
    Neurons for Conditional Computation, 2013, arXiv:1308.3432.
  """
  del w
  return q


@replace.defjvp
def _replace_jvp(primals, tangents):
  return replace(*primals), tangents[0]


def straight_through(quantizer: types.Quantizer) -> types.Quantizer:
  """Makes the forward pass see what would ship, with whatever codes it.

  Around Lloyd-Max centroids this is the first control of S8BQAT, whose default
  is the same with MRACos's pull.

  Args:
    quantizer: any Quantizer, of centroids or of a uniform grid; its own views
      are replaced. Learned state gets no gradient from the task.

  Returns:
    The Quantizer with one branch, `main`.

  References:
    Bengio et al., arXiv:1308.3432.
  """

  def views(
    params: types.Params, state: types.State, ctx: types.Ctx
  ) -> types.Branches:
    del ctx
    shipped = qtensor.decode(quantizer.encode(params, state))
    return {types.MAIN: jax.tree.map(replace, params, shipped)}

  return dataclasses.replace(quantizer, views=views)
