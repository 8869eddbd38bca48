"""The language model: causality, shapes, sentence scores, learning."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from s8bqat_jax.models import transformer_lm as lib

MODEL = lib.TransformerLm(11, width=16, layers=2, heads=2, ffn_width=24)


@pytest.fixture(scope='module')
def params():
  return jax.jit(MODEL.init)(jax.random.key(0), jnp.zeros((1, 4), jnp.int32))


apply = jax.jit(MODEL.apply)


def test_sees_the_past_only(params):
  tokens = jax.random.randint(jax.random.key(1), (2, 9), 0, 11)
  changed = tokens.at[:, 5].set((tokens[:, 5] + 1) % 11)
  a, b = apply(params, tokens), apply(params, changed)
  assert a.shape == (2, 9, 11) and a.dtype == jnp.float32
  np.testing.assert_array_equal(a[:, :5], b[:, :5])
  assert np.all(np.any(np.asarray(a[:, 5:] != b[:, 5:]), -1))


def test_distinguishes_order(params):
  a = apply(params, jnp.array([[1, 2, 3, 4, 5]]))
  b = apply(params, jnp.array([[2, 1, 3, 4, 5]]))
  assert np.abs(np.asarray(a - b))[0, -1].max() > 1e-3


def test_attention_block_matches_numpy(params):
  """One block in float64, from the formulas."""
  block = jax.tree.map(np.float64, params['params']['block_0'])
  x = np.asarray(jax.random.normal(jax.random.key(2), (1, 5, 16)), np.float64)

  def norm(p, x):
    mean, var = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / np.sqrt(var + 1e-6) * p['scale'] + p['bias']

  dense = lambda p, x: x @ p['kernel'] + p['bias']
  y = norm(block['norm_attention'], x)
  heads = []
  for h in range(2):
    q, k, v = (
      dense(block[n], y)[0, :, 8 * h : 8 * h + 8]
      for n in ('query', 'key', 'value')
    )
    scores = np.where(np.tri(5), q @ k.T / 8**0.5, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    heads.append(weights / weights.sum(-1, keepdims=True) @ v)
  x = x + dense(block['attention_out'], np.concatenate(heads, -1)[None])
  hidden = dense(block['ffn_in'], norm(block['norm_ffn'], x))
  gelu = (
    0.5
    * hidden
    * (1 + np.tanh((2 / np.pi) ** 0.5 * (hidden + 0.044715 * hidden**3)))
  )
  expected = x + dense(block['ffn_out'], gelu)
  module = lib._Block(2, 24, 0.0, jnp.float32)
  start = jax.random.normal(jax.random.key(2), (1, 5, 16))
  found = module.apply({'params': params['params']['block_0']}, start, True)
  np.testing.assert_allclose(found, expected, rtol=2e-4, atol=2e-5)


def test_tied_embedding_is_one_tensor(params):
  assert 'out' not in params['params']
  untied = lib.TransformerLm(11, 16, 1, 2, 24, tied=False)
  shapes = jax.eval_shape(
    untied.init, jax.random.key(0), jnp.zeros((1, 4), jnp.int32)
  )
  assert shapes['params']['out']['kernel'].shape == (16, 11)


def test_token_losses_match_log_softmax(params):
  logits = jax.random.normal(jax.random.key(3), (2, 3, 11)) * 30
  targets = jnp.array([[0, 1, 2], [10, 9, 8]])
  expected = -np.take_along_axis(
    np.asarray(jax.nn.log_softmax(logits)), np.asarray(targets)[..., None], -1
  )[..., 0]
  np.testing.assert_allclose(
    lib.token_losses(logits, targets), expected, rtol=1e-5, atol=1e-5
  )
  with pytest.raises(ValueError, match=r'\(2, 3, 11\).*\(2, 4\)'):
    lib.token_losses(logits, jnp.zeros((2, 4), jnp.int32))


def test_learns_to_count():
  """Next token = last token + 1: solved within 60 steps."""
  starts = jax.random.randint(jax.random.key(4), (60, 8, 1), 0, 11)
  tokens = (starts + jnp.arange(9)) % 11
  params = jax.jit(MODEL.init)(jax.random.key(5), tokens[0, :, :-1])
  tx = optax.adam(5e-3)

  @jax.jit
  def train(params, tokens):
    def step(carry, tokens_BxT):
      params, opt_state = carry
      loss = lambda p: jnp.mean(
        lib.token_losses(MODEL.apply(p, tokens_BxT[:, :-1]), tokens_BxT[:, 1:])
      )
      value, grads = jax.value_and_grad(loss)(params)
      updates, opt_state = tx.update(grads, opt_state)
      return (optax.apply_updates(params, updates), opt_state), value

    return jax.lax.scan(step, (params, tx.init(params)), tokens)[1]

  losses = train(params, tokens)
  assert losses[0] > 2 and losses[-1] < 0.2


def test_bad_input(params):
  with pytest.raises(ValueError, match='11 tokens, the vocabulary 12'):
    lib.check_vocabulary(MODEL.clone(vocab_size=12), params)
  lib.check_vocabulary(MODEL, params)
  with pytest.raises(ValueError, match='width=18 must be a multiple'):
    lib.TransformerLm(5, width=18, heads=4).init(
      jax.random.key(0), jnp.zeros((1, 1), jnp.int32)
    )
