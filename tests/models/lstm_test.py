"""The LSTM against a float64 loop, and its backward against plain autodiff."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from s8bqat_jax.models import lstm

T, B, D, H = 7, 3, 5, 4


def _problem(seed=0, dtype=jnp.float32, frames=T):
  keys = jax.random.split(jax.random.key(seed), 4)
  z = jax.random.normal(keys[0], (frames, B, 4 * H), dtype)
  w = jax.random.normal(keys[1], (H, 4 * H), dtype)
  h = jax.random.normal(keys[2], (B, H), dtype)
  c = jax.random.normal(keys[3], (B, H), jnp.float32)
  return z, w, (h, c)


def _sigmoid(x):
  return 1 / (1 + np.exp(-x))


def test_scan_equals_a_float64_loop():
  z, w, carry = _problem()
  (h_last, c_last), h_TxBxH = lstm.lstm_scan(z, w, carry)
  h, c = (np.asarray(x, np.float64) for x in carry)
  for t in range(T):
    i, f, g, o = np.split(
      np.asarray(z[t], np.float64) + h @ np.asarray(w), 4, 1
    )
    c = _sigmoid(f) * c + _sigmoid(i) * np.tanh(g)
    h = _sigmoid(o) * np.tanh(c)
    np.testing.assert_allclose(h_TxBxH[t], h, atol=1e-5)
  np.testing.assert_allclose(h_last, h, atol=1e-5)
  np.testing.assert_allclose(c_last, c, atol=1e-5)


@pytest.mark.parametrize('frames', [1, T])
def test_fast_backward_equals_autodiff(frames):
  problem = _problem(frames=frames)
  weights = jax.random.normal(jax.random.key(9), (frames, B, H))

  def loss(scan, z, w, carry):
    (h, c), out = scan(z, w, carry)
    # Outputs and both parts of the last carry all reach the loss.
    return jnp.sum(out * weights) + jnp.sum(h**2) + jnp.sum(jnp.sin(c))

  plain = jax.grad(lambda *p: loss(lstm.lstm_scan, *p), (0, 1, 2))(*problem)
  fast = jax.grad(lambda *p: loss(lstm.fast_lstm_scan, *p), (0, 1, 2))(*problem)
  for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(fast)):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_fast_backward_in_float64():
  with jax.enable_x64(True):
    z, w, carry = _problem(dtype=jnp.float64)
    carry = (carry[0], carry[1].astype(jnp.float64))

    def loss(scan, w):
      return jnp.sum(scan(z, w, carry)[1] ** 2)

    plain = jax.grad(lambda w: loss(lstm.lstm_scan, w))(w)
    fast = jax.grad(lambda w: loss(lstm.fast_lstm_scan, w))(w)
    np.testing.assert_allclose(plain, fast, rtol=1e-12, atol=1e-12)


def test_bfloat16_keeps_a_float32_cell():
  z, w, carry = _problem(dtype=jnp.bfloat16)
  (h, c), out = lstm.fast_lstm_scan(z, w, carry)
  assert h.dtype == out.dtype == jnp.bfloat16
  assert c.dtype == jnp.float32
  grads = jax.grad(
    lambda w: jnp.sum(lstm.fast_lstm_scan(z, w, carry)[1].astype(jnp.float32))
  )(w)
  assert grads.dtype == jnp.bfloat16
  assert bool(jnp.all(jnp.isfinite(grads.astype(jnp.float32))))


def test_plain_autodiff_allows_forward_mode():
  layer = lstm.LSTM(H, fast_backward=False)
  x = jax.random.normal(jax.random.key(0), (B, T, D))
  params = layer.init(jax.random.key(1), x)

  def loss(params):
    return jnp.sum(layer.apply(params, x)[1] ** 2)

  _, hvp = jax.jvp(jax.grad(loss), (params,), (params,))
  assert all(bool(jnp.all(jnp.isfinite(x))) for x in jax.tree.leaves(hvp))


def test_chunks_equal_the_whole():
  layer = lstm.LSTM(H)
  x = jax.random.normal(jax.random.key(0), (B, T, D))
  params = layer.init(jax.random.key(1), x)
  _, whole = layer.apply(params, x)
  carry, parts = layer.initial_carry(B), []
  for start, stop in [(0, 1), (1, 4), (4, T)]:
    carry, out = layer.apply(params, x[:, start:stop], carry)
    parts.append(out)
  np.testing.assert_allclose(
    np.concatenate(parts, axis=1), whole, rtol=1e-6, atol=1e-6
  )


def test_parameters_are_one_kernel_and_one_bias():
  params = lstm.LSTM(H).init(jax.random.key(1), jnp.zeros((B, T, D)))['params']
  shapes = jax.tree.map(jnp.shape, params)
  assert shapes == {'kernel': (D + H, 4 * H), 'bias': (4 * H,)}
  recurrent = params['kernel'][D:, :H]
  np.testing.assert_allclose(recurrent @ recurrent.T, np.eye(H), atol=1e-5)
  np.testing.assert_array_equal(params['bias'][H : 2 * H], 1)


@pytest.mark.parametrize(
  'z, w, h',
  [
    (jnp.float32, jnp.bfloat16, jnp.float32),
    (jnp.bfloat16, jnp.float32, jnp.bfloat16),
    (jnp.bfloat16, jnp.bfloat16, jnp.float32),
  ],
)
def test_fast_backward_of_mixed_types(z, w, h):
  frames, kernel, (first, cell) = _problem()
  problem = frames.astype(z), kernel.astype(w), (first.astype(h), cell)

  def grads(scan):
    loss = lambda *args: jnp.sum(scan(*args)[1].astype(jnp.float32) ** 2)
    return jax.tree.leaves(jax.grad(loss, (0, 1, 2))(*problem))

  for a, b in zip(grads(lstm.lstm_scan), grads(lstm.fast_lstm_scan)):
    assert a.dtype == b.dtype
    a, b = (np.asarray(x, np.float32) for x in (a, b))
    np.testing.assert_allclose(a, b, atol=0.05 * np.abs(a).max())
