"""A unidirectional LSTM layer with one fused kernel and a fast backward.

One kernel [D + H, 4H] holds the input and the recurrent weights of all four
gates, so that it is one tensor with one scale to a quantizer and one product
per frame to an accelerator.

Autodiff through `lax.scan` adds a weight gradient to an accumulator at every
frame. The backward here stores the gradient of the pre-activations instead
and forms the weight gradient with a single product after the scan.

Shapes: T frames, B batch, D inputs, H hidden, 4H gates in the order
(input, forget, candidate, output).
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

Carry = tuple[jax.Array, jax.Array]  # (h_BxH, c_BxH)


def _activate(z_Bx4H, c_BxH):
  i, f, g, o = jnp.split(z_Bx4H.astype(c_BxH.dtype), 4, axis=-1)
  i, f, o = jax.nn.sigmoid(i), jax.nn.sigmoid(f), jax.nn.sigmoid(o)
  g = jnp.tanh(g)
  return i, f, g, o, f * c_BxH + i * g


def lstm_step(
  z_Bx4H: jax.Array, recurrent_Hx4H: jax.Array, carry: Carry
) -> tuple[Carry, jax.Array]:
  """Advances the cell by one frame.

  Args:
    z_Bx4H: what the frame's input adds to the gates, bias included.
    recurrent_Hx4H: recurrent weights.
    carry: (h_BxH, c_BxH).

  Returns:
    The new carry and h_BxH.
  """
  h, c = carry
  *_, o, c = _activate(z_Bx4H + h @ recurrent_Hx4H, c)
  h = (o * jnp.tanh(c)).astype(h.dtype)
  return (h, c), h


def lstm_scan(
  z_TxBx4H: jax.Array, recurrent_Hx4H: jax.Array, carry: Carry
) -> tuple[Carry, jax.Array]:
  """Runs the cell over time; plain autodiff differentiates it.

  Args:
    z_TxBx4H: what the inputs add to the gates, bias included.
    recurrent_Hx4H: recurrent weights.
    carry: (h_BxH, c_BxH) before the first frame.

  Returns:
    The last carry and h_TxBxH.
  """

  def body(carry, z_Bx4H):
    return lstm_step(z_Bx4H, recurrent_Hx4H, carry)

  return jax.lax.scan(body, carry, z_TxBx4H)


@jax.custom_vjp
def fast_lstm_scan(
  z_TxBx4H: jax.Array, recurrent_Hx4H: jax.Array, carry: Carry
) -> tuple[Carry, jax.Array]:
  """`lstm_scan` with the backward pass described at the top of this file.

  Reverse mode only: forward mode (`jax.jvp`, as Hessian-vector products use)
  needs `lstm_scan`.
  """
  return lstm_scan(z_TxBx4H, recurrent_Hx4H, carry)


def _forward(z_TxBx4H, recurrent_Hx4H, carry):
  def body(carry, z_Bx4H):
    h, c_before = carry
    i, f, g, o, c = _activate(z_Bx4H + h @ recurrent_Hx4H, c_before)
    new_h = (o * jnp.tanh(c)).astype(h.dtype)
    return (new_h, c), (new_h, (i, f, g, o, c))

  last, (h_TxBxH, saved) = jax.lax.scan(body, carry, z_TxBx4H)
  none = z_TxBx4H[:0]  # its type
  return (last, h_TxBxH), (saved, h_TxBxH, recurrent_Hx4H, carry, none)


def _backward(residuals, cotangents):
  (i, f, g, o, c), h_TxBxH, recurrent_Hx4H, (h_first, c_first), z = residuals
  (dh_last, dc_last), dh_TxBxH = cotangents
  c_before = jnp.concatenate([c_first[None], c[:-1]])
  h_before = jnp.concatenate([h_first[None], h_TxBxH[:-1]])
  # Everything that does not depend on the recursion, over all frames at once.
  tanh_c = jnp.tanh(c)
  dc_per_dh = o * (1 - tanh_c**2)
  dz_per_dc = jnp.concatenate(
    [g * i * (1 - i), c_before * f * (1 - f), i * (1 - g**2)], axis=-1
  )
  dz_per_dh = tanh_c * o * (1 - o)

  def body(carry, frame):
    dh, dc = carry
    dh_out, f, dc_per_dh, dz_per_dc, dz_per_dh = frame
    dh = dh.astype(dc.dtype) + dh_out.astype(dc.dtype)
    dc = dc + dh * dc_per_dh
    dz = jnp.concatenate(
      [jnp.tile(dc, 3) * dz_per_dc, dh * dz_per_dh], axis=-1
    ).astype(recurrent_Hx4H.dtype)
    dh = (dz @ recurrent_Hx4H.T).astype(h_first.dtype)
    return (dh, dc * f), dz

  (dh_first, dc_first), dz_TxBx4H = jax.lax.scan(
    body,
    (dh_last, dc_last),
    (dh_TxBxH, f, dc_per_dh, dz_per_dc, dz_per_dh),
    reverse=True,
  )
  d_recurrent = jnp.einsum('tbh,tbz->hz', h_before, dz_TxBx4H)
  return (
    dz_TxBx4H.astype(z.dtype),
    d_recurrent.astype(recurrent_Hx4H.dtype),
    (dh_first.astype(h_first.dtype), dc_first),
  )


fast_lstm_scan.defvjp(_forward, _backward)


def _kernel_init(key, shape, dtype=jnp.float32):
  """Glorot for the input weights, one orthogonal block per recurrent gate."""
  rows, columns = shape
  hidden = columns // 4
  inputs = rows - hidden
  key, *gate_keys = jax.random.split(key, 5)
  glorot = nn.initializers.glorot_uniform()
  orthogonal = nn.initializers.orthogonal()
  return jnp.concatenate(
    [
      jnp.concatenate(
        [glorot(k, (inputs, hidden), dtype) for k in jax.random.split(key, 4)],
        axis=1,
      ),
      jnp.concatenate(
        [orthogonal(k, (hidden, hidden), dtype) for k in gate_keys], axis=1
      ),
    ]
  )


def _bias_init(key, shape, dtype=jnp.float32):
  """Zero, but one for the forget gate: remember until taught otherwise."""
  del key
  hidden = shape[0] // 4
  return jnp.zeros(shape, dtype).at[hidden : 2 * hidden].set(1.0)


class LSTM(nn.Module):
  """One LSTM layer over time.

  Attributes:
    features: H.
    dtype: of the products; the cell state stays float32.
    fast_backward: False differentiates by plain autodiff, which forward mode
      needs.
  """

  features: int
  dtype: Any = jnp.float32
  fast_backward: bool = True

  def initial_carry(self, batch: int) -> Carry:
    """Returns the carry before the first frame."""
    shape = (batch, self.features)
    return jnp.zeros(shape, self.dtype), jnp.zeros(shape, jnp.float32)

  @nn.compact
  def __call__(
    self, x_BxTxD: jax.Array, carry: Carry | None = None
  ) -> tuple[Carry, jax.Array]:
    """Returns the last carry and h_BxTxH."""
    inputs, hidden = x_BxTxD.shape[-1], self.features
    kernel = self.param('kernel', _kernel_init, (inputs + hidden, 4 * hidden))
    bias = self.param('bias', _bias_init, (4 * hidden,))
    kernel, bias = kernel.astype(self.dtype), bias.astype(self.dtype)
    carry = self.initial_carry(x_BxTxD.shape[0]) if carry is None else carry
    x_TxBxD = x_BxTxD.swapaxes(0, 1).astype(self.dtype)
    z_TxBx4H = x_TxBxD @ kernel[:inputs] + bias
    scan = fast_lstm_scan if self.fast_backward else lstm_scan
    carry, h_TxBxH = scan(z_TxBx4H, kernel[inputs:], carry)
    return carry, h_TxBxH.swapaxes(0, 1)
