"""Whole functions: integer against twin against float; nothing written for it.

The models are ordinary Flax ones, linen and nnx, and the repository's RNN-T.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from s8bqat_jax import quantizers
from s8bqat_jax.artifacts.qtensor import QTensor, decode, is_qtensor
from s8bqat_jax.integer import audit, calibrate, lower, twin
from s8bqat_jax.models import rnnt, transformer_lm

KEY = jax.random.key(0)


def encode(params, levels=256):
  """Matrices become QTensors: uniform, or a codebook of sample quantiles."""

  def one(x):
    if is_qtensor(x):
      return x
    if x.ndim < 2 or not x.any():  # Biases, of attention heads too.
      return x
    scale = np.float32(np.abs(x).max() / 127)
    grid = np.asarray(x) / scale
    if levels == 256:
      return QTensor(np.rint(grid).astype(np.int8), scale, None, levels)
    points = (np.arange(levels) + 0.5) / levels
    book = np.sort(np.rint(np.quantile(grid, points))).astype(np.int8)
    codes = np.abs(grid[..., None] - book).argmin(-1).astype(np.uint8)
    return QTensor(codes, scale, book, levels)

  return jax.tree.map(one, params, is_leaf=is_qtensor)


def snr(a, b):
  a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
  return 10 * np.log10(np.mean(a**2) / max(np.mean((a - b) ** 2), 1e-30))


def check(fn, params, *inputs, least=28.0, **options):
  """Lowers, audits and compares; returns what a test may look at."""
  params = encode(params)
  decoded = decode(params)
  ranges = calibrate(fn, decoded, [inputs])
  integer = lower(fn, params, ranges, *inputs, **options)
  report = audit(integer)
  assert report.ok, str(report)
  y = jax.tree.leaves(jax.jit(fn)(decoded, *inputs))[0]
  z = jax.tree.leaves(integer(*inputs))[0]
  fake = jax.jit(twin(fn, params, ranges, **options))
  t = jax.tree.leaves(fake(decoded, *inputs))[0]
  assert snr(y, z) > least, f'integer {snr(y, z):.1f} dB'
  assert snr(y, t) > least, f'twin {snr(y, t):.1f} dB'
  assert snr(t, z) > least, f'integer against twin {snr(t, z):.1f} dB'
  return integer, ranges, report


def ops(report):
  return [r.op for r in report.rows]


class Mlp(nn.Module):
  @nn.compact
  def __call__(self, x):
    x = nn.gelu(nn.Dense(24)(x))
    x = nn.swish(nn.Dense(24)(x))
    return nn.Dense(5)(x)


def test_mlp_is_products_and_tables():
  x = jax.random.normal(KEY, (32, 8))
  model = Mlp()
  integer, _, report = check(model.apply, jax.jit(model.init)(KEY, x), x)
  # gelu and swish, x * f(x) both, are one table each.
  assert ops(report) == ['q_dot', 'q_lut', 'q_dot', 'q_lut', 'q_dot']
  assert integer(x).shape == (32, 5)


class Residual(nn.Module):
  @nn.compact
  def __call__(self, x):
    for i in range(2):
      groups = 8 if i else 1
      y = nn.Conv(8, (3, 3), feature_group_count=groups)(x)
      y = nn.relu(nn.BatchNorm(use_running_average=True)(y))
      x = nn.relu(x + y) if i else y
    x = nn.avg_pool(nn.max_pool(x, (2, 2), (2, 2)), (2, 2), (2, 2))
    return nn.Dense(3)(x.mean((1, 2)))


def test_conv_net_folds_batchnorm_and_relu():
  x = jax.random.normal(KEY, (4, 8, 8, 3))
  model = Residual()
  params = jax.jit(model.init)(KEY, x)
  noise = iter(jax.random.split(KEY, 99))
  params = jax.tree.map(
    lambda v: v + 0.2 * jax.random.uniform(next(noise), v.shape), params
  )
  _, _, report = check(model.apply, params, x)
  assert ops(report) == [
    'q_conv', 'q_depthwise', 'q_add', 'q_pool', 'q_pool', 'q_sum', 'q_dot'
  ]  # fmt: skip


class Block(nnx.Module):
  """A pre-norm transformer block in nnx, with causal attention."""

  def __init__(self, rngs):
    self.embed = nnx.Embed(20, 16, rngs=rngs)
    self.norms = nnx.List([nnx.LayerNorm(16, rngs=rngs) for _ in range(3)])
    self.attention = nnx.MultiHeadAttention(2, 16, decode=False, rngs=rngs)
    self.up = nnx.Linear(16, 32, rngs=rngs)
    self.down = nnx.Linear(32, 16, rngs=rngs)
    self.out = nnx.Linear(16, 20, rngs=rngs)

  def __call__(self, ids):
    x = self.embed(ids)
    mask = nnx.make_causal_mask(ids)
    x = x + self.attention(self.norms[0](x), mask=mask)
    x = x + self.down(nnx.gelu(self.up(self.norms[1](x))))
    return jax.nn.log_softmax(self.out(self.norms[2](x)))


def test_nnx_attention_block_matches_patterns():
  ids = jax.random.randint(KEY, (3, 7), 0, 20)
  graph, state = nnx.split(Block(nnx.Rngs(0)))
  params = nnx.to_pure_dict(state)
  fn = lambda p, ids: nnx.merge(graph, _state(state, p))(ids)
  _, _, report = check(fn, params, ids)
  found = ops(report)
  assert found.count('q_layernorm') == 3
  assert found.count('q_softmax') == found.count('q_log_softmax') == 1
  assert found[0] == 'q_embed'


def _state(state, pure):
  state = jax.tree.map(lambda x: x, state)
  nnx.replace_by_pure_dict(state, pure)
  return state


@pytest.fixture(scope='module')
def transducer():
  model = rnnt.RNNT(
    12, encoder_width=32, predictor_width=24, joint_width=20, embed_width=8,
    stack=2, reduce_after=(0,),
  )  # fmt: skip
  feats = jax.random.normal(KEY, (3, 24, 6))
  lengths = jnp.asarray([24, 20, 9])
  labels = jax.random.randint(KEY, (3, 5), 1, 12)
  params = jax.jit(model.init)(KEY, feats, lengths, labels)['params']
  return model, params, feats, lengths, labels


def method(model, name):
  return lambda p, *args: model.apply({'params': p}, *args, method=name)


def test_rnnt_encoder_and_its_streaming_step(transducer):
  model, params, feats, lengths, _ = transducer
  fn = method(model, 'encode')
  whole, ranges, report = check(fn, params, feats, lengths)
  assert 'q_lut' in ops(report)
  out, out_lengths = whole.integers(*whole.quantize(feats, lengths))
  np.testing.assert_array_equal(out_lengths, lengths // 4)

  # The step finds the batch encoder's ranges by name, and equals it.
  carry = model.apply({'params': params}, 3, method='initial_carry')
  step = lower(
    method(model, 'encode_chunk'), encode(params), ranges, carry,
    feats[:, :4], carry=True,
  )  # fmt: skip
  assert audit(step).ok
  state = step.quantize(carry, feats[:, :4])[:-1]
  assert [s.dtype.name for s in state] == ['int8', 'int16'] * 2
  chunks = []
  for t in range(0, 24, 4):
    *state, y = step.integers(
      *state, step.quantize(carry, feats[:, t : t + 4])[-1]
    )
    chunks.append(y)
  np.testing.assert_array_equal(np.concatenate(chunks, 1), out)


def test_rnnt_prediction_network_and_joint(transducer):
  model, params, _, _, labels = transducer
  _, _, report = check(method(model, 'predict'), params, labels)
  assert 'q_embed' in ops(report)
  enc = jax.random.normal(KEY, (3, 4, 1, 20))
  pred = jax.random.normal(jax.random.key(1), (3, 1, 6, 20))
  check(method(model, 'joint'), params, enc, pred)


def test_codebook_weights_are_read_through_their_table(transducer):
  model, params, feats, lengths, _ = transducer
  fn = method(model, 'encode')
  quantized = encode(params, levels=16)
  ranges = calibrate(fn, quantized, [(feats, lengths)])
  integer = lower(fn, quantized, ranges, feats, lengths)
  weight = integer.weights['encoder_out/kernel']
  assert weight.bits == 4
  stored = [np.asarray(c) for c in integer.jaxpr.consts]
  grid = np.asarray(weight.codebook)[np.asarray(weight.codes)].T
  assert any(c.shape == grid.shape and np.array_equal(c, grid) for c in stored)
  y = fn(decode(quantized), feats, lengths)[0]
  assert snr(y, integer(feats, lengths)[0]) > 25


@pytest.mark.parametrize(
  'scaled', [lambda w: w * 2.0, lambda w: 2.0 * w, lambda w: w / 2.0]
)
def test_a_scaled_quantized_weight_keeps_its_codes(scaled):
  codes = np.random.default_rng(0).integers(-4, 4, (8, 5)).astype(np.int8)
  params = {'w': QTensor(codes, np.float32(0.1), None, 8)}
  fn = lambda p, x: x @ scaled(p['w'])
  x = jax.random.normal(KEY, (16, 8))
  program = lower(fn, params, calibrate(fn, params, [x]), x)
  stored = [np.asarray(c) for c in program.jaxpr.consts]
  kernels = [c for c in stored if c.shape in (codes.shape, codes.shape[::-1])]
  assert kernels and all(
    set(np.unique(c)) <= set(range(-4, 4)) for c in kernels
  )


@pytest.mark.parametrize(
  'pick',
  [
    lambda w: w[1],
    lambda w: jnp.unstack(w)[1],
    lambda w: jnp.take(w, 1, axis=0),
    lambda w: jax.lax.dynamic_index_in_dim(w, 1, keepdims=False),
    lambda w: jnp.tile(w[1][:, :4], (1, 2)),
  ],
)
def test_a_weight_of_a_stack_keeps_its_codes_and_scales(pick):
  codes = np.random.default_rng(0).integers(-7, 8, (3, 8, 8)).astype(np.int8)
  scales = np.where(np.arange(8) % 4 < 2, 1.0, 1e-3).astype(np.float32)
  params = {'w': QTensor(codes, scales.reshape(1, 1, 8), None, 15)}
  fn = lambda p, x: x @ pick(p['w'])
  x = jax.random.normal(KEY, (16, 8))
  program = lower(fn, params, calibrate(fn, params, [x]), x)
  wanted = np.asarray(pick(codes)).T
  stored = [np.asarray(c) for c in program.jaxpr.consts]
  assert any(
    c.dtype == np.int8 and c.shape == wanted.shape and np.array_equal(c, wanted)
    for c in stored
  )


def test_a_norm_of_wide_rows_on_a_sum():
  fn = lambda p, a, b: nn.RMSNorm(use_scale=False).apply({}, a + b)
  a, b = (jax.random.normal(jax.random.key(i), (2, 8192)) for i in (0, 1))
  program = lower(fn, {}, calibrate(fn, {}, [(a, b)]), a, b)
  assert audit(program).ok
  assert snr(fn({}, a, b), program(a, b)) > 35


def test_twin_trains_an_unmodified_model():
  """8-bit activations learn a toy task that its ranges alone get wrong."""
  x = jax.random.normal(KEY, (64, 8))
  target = jnp.sin(x[:, :5])
  model = Mlp()
  params = jax.jit(model.init)(KEY, x)
  ranges = calibrate(model.apply, params, [x])
  fake = twin(model.apply, params, ranges)

  @jax.jit
  def step(p):
    loss, g = jax.value_and_grad(
      lambda p: jnp.mean((fake(p, x) - target) ** 2)
    )(p)
    return jax.tree.map(lambda a, b: a - 0.3 * b, p, g), loss

  losses = []
  for _ in range(60):
    params, loss = step(params)
    losses.append(float(loss))
  assert losses[-1] < 0.5 * losses[0]


def test_vmap_and_jit_of_an_integer_function():
  model = Mlp()
  x = jax.random.normal(KEY, (6, 4, 8))
  params = model.init(KEY, x[0])
  ranges = calibrate(model.apply, params, list(x))
  one = lower(model.apply, params, ranges, x[0])
  both = jax.jit(jax.vmap(one))(x)
  np.testing.assert_array_equal(both, np.stack([one(v) for v in x]))


def test_output_bits():
  model = Mlp()
  x = jax.random.normal(KEY, (16, 8))
  integer, _, _ = check(
    model.apply, jax.jit(model.init)(KEY, x), x, output_bits=16
  )
  assert integer.out_specs[0].bits == 16


class Half(nn.Module):
  """Flax's usual way to compute in less than float32."""

  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x):
    x = nn.gelu(nn.LayerNorm(dtype=self.dtype)(nn.Dense(16, self.dtype)(x)))
    mask = nn.make_causal_mask(x[..., 0])
    attention = nn.MultiHeadDotProductAttention(2, dtype=self.dtype)
    x += attention(x, mask=mask)
    return nn.RNN(nn.OptimizedLSTMCell(8, dtype=self.dtype))(x)


@pytest.mark.parametrize('dtype', [jnp.bfloat16, jnp.float16])
def test_half_precision_is_a_saving_of_the_float_function(dtype):
  model, exact = Half(dtype), Half(jnp.float32)
  x = jax.random.normal(KEY, (2, 7, 16))
  params = exact.init(KEY, x)
  ranges = calibrate(model.apply, params, [x.astype(dtype)])
  integer = lower(model.apply, params, ranges, x.astype(dtype))
  assert audit(integer).ok
  assert integer(x).dtype == jnp.float32
  # What it computes is the same function in float32, rounded to integers.
  assert ranges.keys() == calibrate(exact.apply, params, [x]).keys()
  assert snr(exact.apply(params, x), integer(x)) > 25
  trained = twin(model.apply, params, ranges)
  assert snr(exact.apply(params, x), trained(params, x)) > 25
  half = jax.tree.map(lambda p: p.astype(dtype), params)
  grads = jax.grad(lambda p: trained(p, x).sum())(half)
  assert all(g.dtype == dtype for g in jax.tree.leaves(grads))
  assert grads['params']['Dense_0']['kernel'].any()


def test_weights_that_ship_in_half_precision_are_computed_with():
  params = {'w': jax.random.normal(KEY, (16, 8)).astype(jnp.bfloat16)}
  method = quantizers.uniform(8)
  shipped = method.encode(params, method.init(params))
  assert shipped['w'].scale.dtype == jnp.bfloat16
  fn = lambda p, x: x @ (p['w'].astype(jnp.float32) * 2 + 0.5)
  x = jax.random.normal(KEY, (4, 16))
  ranges = calibrate(fn, shipped, [x])
  integer = lower(fn, shipped, ranges, x)
  assert snr(fn(decode(shipped), x), integer(x)) > 25


@pytest.mark.parametrize(
  'dtype', [jnp.bfloat16, jnp.float16, jnp.float8_e4m3fn]
)
def test_constants_in_less_than_float32(dtype):
  # Scaled to the ends of the type, as weights in eight bits are.
  most = min(float(jnp.finfo(dtype).max), 65504.0)
  w = jax.random.normal(KEY, (16, 8))
  w = (w / jnp.abs(w).max() * most).astype(dtype)
  fn = lambda p, x: x @ (w.astype(jnp.float32) / most)
  x = jax.random.normal(KEY, (4, 16))
  ranges = calibrate(fn, {}, [x])
  assert snr(fn({}, x), lower(fn, {}, ranges, x)(x)) > 25
  assert snr(fn({}, x), jax.jit(twin(fn, {}, ranges))({}, x)) > 25


def test_nothing_at_all():
  fn = lambda p, x: jax.nn.softmax(x @ p)
  x, w = jax.random.normal(KEY, (4, 16)), jnp.eye(16)
  ranges = calibrate(fn, w, [x])
  assert lower(fn, w, ranges, x[:0])(x[:0]).shape == (0, 16)


def test_transformer_lm_with_a_scale_a_row_of_its_tied_embedding():
  model = transformer_lm.TransformerLm(
    60, width=32, layers=2, heads=2, ffn_width=64
  )
  ids = jax.random.randint(KEY, (2, 12), 0, 60)
  params = encode(model.init(KEY, ids))
  embedding = np.asarray(decode(params)['params']['embed']['embedding'])
  embedding *= np.linspace(0.2, 3, 60)[:, None]
  scale = np.abs(embedding).max(1, keepdims=True) / 127
  codes = np.rint(embedding / scale).astype(np.int8)
  params['params']['embed']['embedding'] = QTensor(
    codes, np.float32(scale), None, 256
  )
  check(model.apply, params, ids, least=30)


def test_parameters_that_are_numbers():
  fn = lambda p, x: jnp.tanh(x @ p['w'] * p['gain'])
  x, params = jax.random.normal(KEY, (4, 8)), {'w': jnp.eye(8), 'gain': 0.5}
  ranges = calibrate(fn, params, [x])
  y = fn(params, x)
  assert snr(y, lower(fn, params, ranges, x)(x)) > 28
  assert snr(y, twin(fn, params, ranges)(params, x)) > 28
