"""Integer functions that exporters are tested on, one idea each."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from s8bqat_jax import integer
from s8bqat_jax.artifacts import qtensor
from s8bqat_jax.models import rnnt


def lowered(fn, params, *inputs, batches=None, **options):
  ranges = integer.calibrate(fn, params, batches or [inputs])
  return integer.lower(fn, params, ranges, *inputs, **options)


def normal(seed, *shape):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def centroids(seed, shape, levels=16):
  """A weight of `levels` int8 values."""
  r = np.random.default_rng(seed)
  book = np.unique(np.clip(np.rint(r.normal(size=levels) * 50), -127, 127))
  codes = r.integers(0, book.size, shape).astype(np.uint8)
  scale = np.float32(0.02)
  return qtensor.QTensor(codes, scale, book.astype(np.int8), book.size)


def dense():
  params = {'w': normal(0, 64, 32), 'b': normal(1, 32)}
  return lambda p, x: x @ p['w'] + p['b'], params, (normal(2, 8, 64),)


def dense_relu():
  params = {'w': normal(0, 64, 32), 'b': normal(1, 32)}
  fn = lambda p, x: jax.nn.relu(x @ p['w'] + p['b'])
  return fn, params, (normal(2, 8, 64),)


def dense_relu6():
  params = {'w': normal(0, 64, 32)}
  fn = lambda p, x: jnp.clip(x @ p['w'], 0, 6)
  return fn, params, (normal(2, 8, 64),)


def dense_gain():
  """A BatchNorm's gain, negative and zero ones among it."""
  gain = normal(3, 32)
  gain[:2] = 0, -1
  params = {'w': normal(0, 64, 32), 'gain': gain}
  fn = lambda p, x: (x @ p['w']) * p['gain'] + 0.5
  return fn, params, (normal(2, 8, 64),)


def weights_first():
  params = {'w': normal(0, 24, 16)}
  fn = lambda p, x: jnp.einsum('nk,btk->nbt', p['w'], x)
  return fn, params, (normal(2, 2, 3, 16),)


def attention():
  def fn(p, q, k, v):
    scores = jax.nn.softmax(jnp.einsum('bhtd,bhsd->bhts', q, k) / 4.0)
    return jnp.einsum('bhts,bhsd->bhtd', scores, v)

  return fn, {}, tuple(normal(i, 2, 2, 5, 8) for i in range(3))


def conv(groups=1, **options):
  model = nn.Conv(8, (3, 3), feature_group_count=groups, **options)
  x = normal(0, 1, 9, 9, 8)
  return model.apply, model.init(jax.random.key(0), x), (x,)


def conv_time():
  model = nn.Conv(8, (5,), strides=2, padding='CAUSAL')
  x = normal(0, 2, 17, 6)
  return model.apply, model.init(jax.random.key(0), x), (x,)


def conv_residual():
  """The product before a sum has 16 bits."""

  def fn(p, x):
    y = jax.lax.conv_general_dilated(
      x, p, (1,), 'SAME', dimension_numbers=('NWC', 'WIO', 'NWC')
    )
    return jax.nn.relu(x + y)

  return fn, normal(3, 5, 6, 6), (normal(0, 2, 17, 6),)


def swish_residual():
  """A table whose result has 16 bits, of 8-bit and of 16-bit codes."""
  fn = lambda p, x: (
    jax.nn.silu(x @ p['w']) + x,
    jax.nn.silu(x @ p['w'] + x) + x,
  )
  return fn, {'w': normal(3, 16, 16) / 4}, (normal(0, 8, 16),)


def reduced_residual():
  """Sums of 8-bit codes that have 16 bits."""
  fn = lambda p, x: (
    (x @ p['w']).mean(0) + x,
    (x @ p['w']).sum(-1, keepdims=True) + x,
    (x @ p['w'] + x).mean(-1, keepdims=True) + x,
  )
  return fn, {'w': normal(3, 16, 16) / 4}, (normal(0, 8, 16),)


def scaled_sums():
  """Sums of codes that mean more or less by a free factor."""
  fn = lambda p, x: (
    (x * 0.5).sum(-1),
    (x * 3.0).mean(1),
    ((x + x[:, ::-1]) * 0.25).sum(1) + x[:, 0],
  )
  return fn, {}, (normal(0, 8, 16),)


def closed_over():
  """Rows of a table that is no parameter; a name that names are made with."""
  table = jnp.asarray(normal(4, 11, 6))
  fn = lambda p, i: table[i] @ p['e(0):w'] + p['f[1]'][i]
  params = {'e(0):w': normal(1, 6, 5), 'f[1]': normal(2, 11, 5)}
  return fn, params, (np.array([[1, 2], [3, 10]], np.int32),)


def pools():
  fn = lambda p, x: nn.avg_pool(
    nn.max_pool(x, (3, 3), (2, 2), 'SAME'), (2, 2), (2, 2)
  )
  return fn, {}, (normal(0, 1, 9, 9, 4),)


def mean():
  return lambda p, x: x.mean((1, 2)), {}, (normal(0, 2, 6, 6, 4),)


def elementwise(f):
  return lambda p, x: f(x), {}, (2 * normal(0, 4, 64),)


def decisions():
  """Choices by a real value; the last returns the decision itself."""

  def fn(p, x):
    chosen = jnp.where(x > 0, x, 0.1 * x + 0.5)
    near = jnp.where(x >= -0.3, jnp.square(x), 0.0)
    return chosen, near, x > 0, (x < 1) != (x <= -1)

  return fn, {}, (2 * normal(0, 4, 64),)


def comparisons_of_integers():
  fn = lambda p, i, j: (
    i < j, i <= j, i > j, i >= j, i == j, i != j, (i < 2) == (j < 2)
  )  # fmt: skip
  i = np.random.default_rng(0).integers(-4, 4, (2, 3, 40)).astype(np.int32)
  return fn, {}, tuple(i)


def extremes():
  fn = lambda p, x: (x.max(-1), x.min((0, 1)), (x + jnp.tanh(x)).max(0))
  return fn, {}, (normal(0, 4, 8),)


def reversals():
  fn = lambda p, x: (x[::-1], x[::-1, ::-1], jnp.maximum(x, x[:, ::-1]))
  return fn, {}, (normal(0, 4, 8),)


def sums():
  fn = lambda p, x, y: (x + y, x - y, x * y, (x + y) * y)
  return fn, {}, (normal(0, 4, 32), 3 * normal(1, 4, 32))


def constants():
  params = {'c': normal(5, 32)}
  fn = lambda p, x: (x + p['c']) * p['c']
  return fn, params, (normal(0, 4, 32),)


def movements():
  def fn(p, x, y):
    a, b = jnp.split(x, 2, axis=1)
    z = jnp.concatenate([a.T, b.T[:, ::2]], axis=1)
    z = jnp.pad(z, ((0, 0), (1, 2)))
    w = jnp.broadcast_to(y[:, None], (4, 3))
    return z, jnp.stack([w, 2 * w]), jnp.where(jnp.arange(3) > 1, w, 1.0)

  return fn, {}, (normal(0, 4, 8), normal(1, 4))


def embed_rows():
  """An embedding whose rows have a scale each, as a tied output layer too."""
  scale = np.exp(normal(3, 12, 1)) / 64
  codes = np.random.default_rng(4).integers(-127, 128, (12, 6), np.int8)
  params = {'rows': qtensor.QTensor(codes, np.float32(scale), None, 256)}

  def fn(p, ids):
    x = p['rows'][ids]
    return jnp.tanh(x) @ p['rows'].T, x

  return fn, params, (np.int32([[3, 0, 11], [7, 7, 1]]),)


def embed():
  params = {'e': normal(0, 11, 6)}
  return lambda p, i: p['e'][i], params, (np.array([[0, 3, 10], [1, 1, 2]]),)


@functools.cache
def rnnt_parts():
  """The streaming step of the repository's recognizer, with centroids."""
  model = rnnt.RNNT(
    12, encoder_width=16, encoder_layers=1, predictor_width=16, embed_width=8,
    joint_width=16, stack=2,
  )  # fmt: skip
  key = jax.random.key(0)
  x = jnp.asarray(normal(0, 2, 12, 10))
  labels = jnp.asarray([[1, 2, 3], [4, 11, 5]])
  lengths = jnp.full(2, 12)
  params = jax.jit(model.init)(key, x, lengths, labels)['params']
  params = jax.tree_util.tree_map_with_path(_encode, params)

  def apply(p, *args, method):
    return model.apply({'params': p}, *args, method=method)

  step = lambda p, c, x: apply(p, c, x, method='encode_chunk')
  predict_step = lambda p, c, u: apply(p, c, u, method='predict_step')
  joint = lambda p, a, b: apply(p, a, b, method='joint')
  zero = lambda method: apply({}, 1, method=method)
  encoder_ranges = predictor_ranges = joint_ranges = integer.uncalibrated()
  enc, pred = normal(1, 1, 6, 16), normal(2, 1, 1, 16)
  start, begin = zero('initial_carry'), zero('initial_prediction')
  return {
    'encoder step': (
      integer.lower(step, params, encoder_ranges, start, x[:1, :2], carry=True),
      [(start, x[:1, 2 * t : 2 * t + 2]) for t in range(6)],
    ),
    'predictor step': (
      integer.lower(
        predict_step, params, predictor_ranges, begin, labels[:1, 0], carry=True
      ),
      [(begin, labels[:1, t]) for t in range(3)],
    ),
    'joint': (
      integer.lower(joint, params, joint_ranges, enc[:1, 0], pred[:1, 0]),
      [(enc[:1, t], pred[:1, 0]) for t in range(6)],
    ),
  }


def _encode(path, x):
  if x.ndim < 2:
    return x
  scale = np.float32(np.abs(x).max() / 127)
  grid = np.asarray(x) / scale
  points = (np.arange(32) + 0.5) / 32
  book = np.sort(np.rint(np.quantile(grid, points))).astype(np.int8)
  codes = np.abs(grid[..., None] - book).argmin(-1).astype(np.uint8)
  return qtensor.QTensor(codes, scale, book, 32)


def _truth(fn):
  return fn, {}, (normal(0, 4, 8),)


TRUTHS = {
  'one hot': (
    lambda p, i: jax.nn.one_hot(i, 8) @ p['w'],
    {'w': normal(1, 8, 5)},
    (np.int32([0, 3, 7, 3]),),
  ),
  'gate': _truth(lambda p, x: (x > 0).astype(jnp.float32) * x),
  'and': _truth(lambda p, x: jnp.where((x > 0) & (x < 1), x, 0)),
  'or': _truth(lambda p, x: jnp.where((x < 0) | (x > 1), x, 0)),
  'xor': _truth(lambda p, x: jnp.where((x > 0) ^ (x > 1), x, 0)),
  'not': _truth(lambda p, x: jnp.where(~(x > 0), x, 0)),
  'argmin': _truth(lambda p, x: jnp.argmin(x, axis=-1)),
}
