"""The forward is the quantized weight itself, the gradient the float one's."""

import jax
import jax.numpy as jnp
import numpy as np

from s8bqat_jax import quantizers
from s8bqat_jax.artifacts import qtensor
from s8bqat_jax.quantizers import quantize_once, types
from s8bqat_jax.quantizers.codebook import on_grid
from s8bqat_jax.quantizers.straight_through import replace
from s8bqat_jax.quantizers.uniform import mse_scale, quantize

CTX = types.Ctx(jnp.int32(0), jax.random.key(0), jnp.float32(0.1))
W = jnp.asarray(np.random.default_rng(0).normal(size=(100, 100)), jnp.float32)


def _ternary():
  return qtensor.dequantize(quantize(W, mse_scale(W, 3), 3))


def test_the_forward_is_exact_where_the_usual_sum_is_not():
  q = _ternary()
  usual = jax.jit(lambda w, q: w + (q - w))(W, q)
  assert np.mean(np.asarray(usual) != np.asarray(q)) > 1e-4
  np.testing.assert_array_equal(jax.jit(replace)(W, q), q)


def test_the_gradient_goes_to_the_weight_alone():
  q = _ternary()
  by_w, by_q = jax.grad(
    lambda w, q: jnp.sum(jnp.sin(replace(w, q))), argnums=(0, 1)
  )(W, q)
  np.testing.assert_allclose(by_w, jnp.cos(q), rtol=1e-6)
  assert not np.any(by_q)


def test_it_batches():
  stack = jnp.stack([W, 2 * W])
  np.testing.assert_array_equal(jax.vmap(replace)(stack, -stack), -stack)


def test_any_quantizer_can_be_seen_through():
  params = {'w': W, 'b': jnp.ones(3)}
  plain = quantizers.centroids(2, fit=_two_bits)
  state = plain.init(params)
  assert plain.views(params, state, CTX)['main'] is params
  seen = quantizers.straight_through(plain).views(params, state, CTX)['main']
  shipped = qtensor.decode(plain.encode(params, state))
  jax.tree.map(np.testing.assert_array_equal, seen, shipped)
  assert len(np.unique(seen['w'])) == 4


def test_post_training_quantization_in_one_call():
  params = {'w': W}
  member = quantizers.uniform(3, scale=mse_scale)
  encoded = quantize_once(member, params)
  expected = quantize(W, mse_scale(W, 8), 8)
  np.testing.assert_array_equal(encoded['w'].codes, expected.codes)


def _two_bits(w, levels):
  values = jnp.quantile(w, (jnp.arange(levels) + 0.5) / levels)
  return on_grid(values, jnp.max(jnp.abs(w)) / 127)
