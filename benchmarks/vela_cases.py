"""Programs that the Ethos-U cost model is fitted to, and judged on."""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from experiments import exporting
from s8bqat_jax import integer
from s8bqat_jax.artifacts import qtensor
from s8bqat_jax.models import rnnt
from s8bqat_jax.quantizers import codebook, lloyd_max

BITS = (8, 5, 4, 2)
LAYERS = 'dense', 'dense over time', 'conv', 'depthwise'
OPERATIONS = 'tables', 'arithmetic', 'reductions', 'movements'
PUBLISHED = (
  pathlib.Path(exporting.__file__).parent / 'models/digits_4bit.safetensors'
)


class Case(NamedTuple):
  """A program to be costed.

  Attributes:
    group: which line of the report it belongs to.
    name: of the case.
    bits: of its weights.
    make: () -> IntegerFunction.
  """

  group: str
  name: str
  bits: int
  make: Callable[[], Any]


@functools.cache
def _codebook(bits: int) -> Any:
  sample = jnp.asarray(np.random.default_rng(0).normal(size=2**14), 'f')
  return lloyd_max.fit(sample, 2**bits, grid='int8')


def weight(shape: tuple[int, ...], bits: int, seed: int) -> qtensor.QTensor:
  """Gaussian weights of so many bits."""
  w = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
  if bits == 8:
    scale = np.abs(w).max() / 127
    return qtensor.QTensor(np.rint(w / scale).astype(np.int8), scale, None, 256)
  return jax.tree.map(
    np.asarray, codebook.quantize(jnp.asarray(w), _codebook(bits))
  )


def _lower(fn, params, *inputs, bits: int, **options) -> Any:
  """Lowers with random weights of so many bits."""
  shapes, tree = jax.tree.flatten(params)
  drawn = [
    weight(s.shape, bits, i) if len(s.shape) > 1 else np.ones(s.shape, 'f')
    for i, s in enumerate(shapes)
  ]
  params = jax.tree.unflatten(tree, drawn)
  return integer.lower(fn, params, integer.uncalibrated(), *inputs, **options)


def _spec(*shape: int) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(shape, jnp.float32)


def dense(rows: int, depth: int, channels: int, bits: int) -> Any:
  fn = lambda p, x: x @ p
  x = np.zeros((rows, depth), np.float32)
  return _lower(fn, _spec(depth, channels), x, bits=bits)


def conv(
  frames: int,
  inputs: int,
  channels: int,
  width: int,
  bits: int,
  groups: int = 1,
) -> Any:
  kernel = _spec(width, inputs // groups, channels)
  x = np.zeros((1, frames, inputs), np.float32)
  return _lower(functools.partial(_conv, groups=groups), kernel, x, bits=bits)


def _conv(kernel, x, groups):
  return jax.lax.conv_general_dilated(
    x, kernel, (1,), 'SAME', dimension_numbers=('NWC', 'WIO', 'NWC'),
    feature_group_count=groups,
  )  # fmt: skip


def recognizer(part: str, width: int, layers: int, bits: int) -> Any:
  """One streaming step of the repository's transducer."""
  model = rnnt.RNNT(
    64, encoder_width=width, encoder_layers=layers, predictor_width=width,
    embed_width=32, joint_width=width, stack=2,
  )  # fmt: skip
  feats = np.zeros((1, 2, 40), np.float32)
  one = np.ones((1, 1), np.int32)
  params = jax.eval_shape(
    lambda: model.init(jax.random.key(0), feats, np.array([2]), one)
  )['params']
  apply = lambda p, *a, method: model.apply({'params': p}, *a, method=method)
  inputs: Any
  options: dict[str, Any] = {'carry': True}
  if part == 'encoder':
    method = 'encode_chunk'
    inputs = (model.apply({}, 1, method='initial_carry'), feats)
  elif part == 'predictor':
    method = 'predict_step'
    inputs = (model.apply({}, 1, method='initial_prediction'), one[0])
  else:
    method = 'joint'
    inputs = (np.zeros((1, width), np.float32),) * 2
    # Logits of 16 bits, as a shipped recognizer's.
    options = {'output_bits': 16}
  fn = functools.partial(apply, method=method)
  return _lower(fn, params, *inputs, bits=bits, **options)


def mlp(rows: int, width: int, layers: int, bits: int) -> Any:
  """Products and gelus with residuals."""

  def fn(p, x):
    for up, down in p:
      x = x + jax.nn.gelu(x @ up) @ down
    return x

  params = [(_spec(width, 4 * width), _spec(4 * width, width))] * layers
  return _lower(fn, params, np.zeros((rows, width), np.float32), bits=bits)


def separable(
  frames: int, channels: int, width: int, blocks: int, bits: int
) -> Any:
  """QuartzNet's blocks, BatchNorm folded: depthwise, pointwise, residual."""

  def fn(p, x):
    for deep, point in p:
      y = _conv(deep, x, channels)
      x = jax.nn.relu(x + _conv(point, y, 1))
    return x

  block = (_spec(width, 1, channels), _spec(1, channels, channels))
  x = np.zeros((1, frames, channels), np.float32)
  return _lower(fn, [block] * blocks, x, bits=bits)


def attention(length: int, width: int, heads: int, bits: int) -> Any:
  """Self-attention of several heads with a residual."""
  split = (length, heads, width // heads)

  def fn(p, x):
    q, k, v = ((x @ w).reshape(split).transpose(1, 0, 2) for w in p[:3])
    scores = q @ k.transpose(0, 2, 1) / np.sqrt(split[-1])
    mixed = (jax.nn.softmax(scores) @ v).transpose(1, 0, 2)
    return x + mixed.reshape(length, width) @ p[3]

  weights = [_spec(width, width)] * 4
  return _lower(fn, weights, np.zeros((length, width), np.float32), bits=bits)


def perceptron(fn: Callable, rows: int, width: int, bits: int) -> Any:
  """Two products and a function between them."""
  two = lambda p, x: fn(x @ p[0]) @ p[1]
  weights = [_spec(width, width)] * 2
  return _lower(two, weights, np.zeros((rows, width), np.float32), bits=bits)


def residual(rows: int, width: int, bits: int) -> Any:
  """A product that is added to what it read."""
  x = np.zeros((rows, width), np.float32)
  return _lower(lambda p, x: x + x @ p, _spec(width, width), x, bits=bits)


def alone(fn: Callable, *shapes: tuple[int, ...]) -> Any:
  """A function of what the program reads."""
  inputs = [np.zeros(s, np.float32) for s in shapes]
  return _lower(lambda p, *x: fn(*x), [], *inputs, bits=8)


def inside(fn: Callable, *shapes: tuple[int, ...]) -> Any:
  """A function of what the program made, for a product."""
  inputs = [np.zeros(s, np.float32) for s in shapes]
  made = jax.eval_shape(fn, *inputs)
  weight = _spec(made.shape[-1], 16)
  whole = lambda p, *x: fn(*map(jnp.tanh, x)) @ p
  return _lower(whole, weight, *inputs, bits=8)


TABLES: dict[str, Callable] = {
  'tanh': jnp.tanh, 'sigmoid': jax.nn.sigmoid, 'silu': jax.nn.silu,
  'gelu': jax.nn.gelu, 'exp': jnp.exp, 'sine': jnp.sin,
}  # fmt: skip
# Of two values.
_ARITHMETIC: dict[str, Callable] = {
  'add': lambda x, y: x + y,
  'mul': lambda x, y: x * y,
  'add three': lambda x, y: x + y + jnp.tanh(x),
  'mul a sum': lambda x, y: (x + y) * y,
  'silu of a sum': lambda x, y: jax.nn.silu(x + y),
  'sigmoid of a sum': lambda x, y: jax.nn.sigmoid(x + y),
  'relu of a sum': lambda x, y: jax.nn.relu(x + y),
}
_REDUCTIONS: dict[str, Callable] = {
  'softmax': jax.nn.softmax,
  'mean of rows': lambda x: x.mean(-1),
  'mean of columns': lambda x: x.mean(0),
  'mean of sums': lambda x: (x + jnp.tanh(x)).mean(0),
  'maximum': lambda x: x.max(-1),
  'max pool': lambda x: nn.max_pool(x[None], (2,), (2,))[0],
  'average pool': lambda x: nn.avg_pool(x[None], (2,), (2,))[0],
}
_MOVEMENTS: dict[str, Callable] = {
  'transpose': lambda x: x.T,
  'join': lambda x: jnp.concatenate([x, jnp.tanh(x)], -1),
  'pad': lambda x: jnp.pad(x, ((1, 1), (0, 0))),
  'slice': lambda x: x[1:, : x.shape[1] // 2],
  'repeat': lambda x: jnp.broadcast_to(x[:, None], (len(x), 2, x.shape[1])),
}


def _operations(shapes: tuple[tuple[int, int], ...]) -> Iterator[Case]:
  """Single operations on [rows, width], which no weights take part in."""
  for shape in shapes:
    size = '{}x{}'.format(*shape)

    def case(group, name, make, size=size):
      return Case(group, f'{name} {size}', 8, make)

    for name, fn in TABLES.items():
      make = functools.partial(perceptron, fn, *shape, 8)
      yield case('tables', f'product, {name}', make)
      yield case('tables', name, functools.partial(alone, fn, shape))
    for group, found, count in (
      ('arithmetic', _ARITHMETIC, 2),
      ('reductions', _REDUCTIONS, 1),
      ('movements', _MOVEMENTS, 1),
    ):
      for name, fn in found.items():
        make = functools.partial(alone, fn, *[shape] * count)
        yield case(group, name, make)
        make = functools.partial(inside, fn, *[shape] * count)
        yield case(group, f'{name} inside', make)


def _sequences(
  frames: tuple[int, ...], shapes: tuple[tuple[int, int], ...], bits
) -> Iterator[Case]:
  """Products over more frames than a step has, also before a sum."""
  for b in bits:
    for m in frames:
      for k, n in shapes:
        make = functools.partial(dense, m, k, n, b)
        yield Case('dense over time', f'{m}x{k}x{n}', b, make)
        make = functools.partial(residual, m, n, b)
        yield Case('dense over time', f'{m}x{n} and a sum', b, make)


_DENSE_FIT = (
  (64, 64), (96, 384), (256, 256), (160, 1024), (512, 2048), (1024, 256),
  (640, 640), (1280, 128), (256, 1024), (2048, 512),
)  # fmt: skip
_DENSE_SEEN_NOT = ((128, 128), (192, 768), (320, 512), (768, 320), (384, 1536))
_CONV_FIT = (
  (32, 64, 64, 3), (64, 64, 128, 5), (64, 256, 256, 3), (128, 128, 64, 1),
  (16, 512, 512, 1), (100, 64, 256, 1), (32, 256, 128, 7), (200, 80, 64, 3),
  (48, 64, 96, 5), (80, 128, 256, 1), (128, 96, 128, 3), (24, 192, 384, 1),
  (48, 160, 160, 3),
)  # fmt: skip
_CONV_SEEN_NOT = (
  (64, 96, 96, 3), (100, 128, 128, 5), (40, 256, 512, 1), (80, 160, 64, 7),
  (24, 320, 320, 1),
)  # fmt: skip
_DEPTHWISE_FIT = (
  (64, 64, 11), (64, 256, 33), (128, 128, 7), (32, 512, 15), (200, 64, 3),
  (100, 256, 11), (32, 128, 33), (48, 96, 9), (128, 160, 17), (80, 256, 5),
  (64, 192, 25), (100, 96, 7),
)  # fmt: skip
_DEPTHWISE_SEEN_NOT = (
  (64, 128, 15), (100, 192, 21), (40, 80, 9), (128, 320, 25),
)  # fmt: skip


def fitted() -> Iterator[Case]:
  """What the constants are fitted to."""
  return _cases(
    _DENSE_FIT, _CONV_FIT, _DEPTHWISE_FIT,
    # Narrow ones on both sides of the published predictor's 32.
    networks=(
      (16, 1), (48, 1), (64, 1), (192, 2), (384, 1), (640, 1), (1024, 1),
    ),
    mlps=((1, 96, 1), (8, 192, 2), (1, 384, 1), (8, 320, 1)),
    separables=((64, 64, 11, 2), (32, 128, 33, 1), (100, 96, 7, 2)),
    bits=(8, 4, 2),
  )  # fmt: skip


def fitted_later() -> Iterator[Case]:
  """What the kinds are fitted to that those before lack."""
  yield from _operations(
    (
      (2, 64),
      (8, 64),
      (8, 256),
      (5, 512),
      (32, 128),
      (64, 256),
      (128, 512),
      (16, 1024),
      (100, 80),
      (256, 64),
    )  # fmt: skip
  )
  for t, d, h in (
    (16, 64, 4), (32, 128, 2), (64, 128, 4), (8, 256, 8), (100, 192, 3),
    (48, 320, 5), (200, 64, 2),
  ):  # fmt: skip
    make = functools.partial(attention, t, d, h, 8)
    yield Case('attention', f'{t}x{d}, {h} heads', 8, make)
  yield from _sequences(
    (16, 64, 200),
    ((64, 64), (256, 256), (128, 512), (512, 128), (160, 640)),
    (8, 4),
  )
  for t, c, k, n in ((64, 64, 11, 2), (32, 128, 33, 1), (100, 96, 7, 2)):
    make = functools.partial(separable, t, c, k, n, 8)
    yield Case('QuartzNet blocks', f'{t}x{c} width {k} x{n}', 8, make)


def unseen() -> Iterator[Case]:
  """What it is judged on."""
  yield from _cases(
    _DENSE_SEEN_NOT, _CONV_SEEN_NOT, _DEPTHWISE_SEEN_NOT,
    networks=((32, 1), (96, 2), (128, 1), (256, 2), (512, 2), (768, 1)),
    mlps=((1, 128, 2), (8, 256, 1), (1, 512, 2)),
    separables=((64, 96, 15, 2), (48, 160, 21, 3)),
    bits=BITS,
  )  # fmt: skip
  yield from _operations(((4, 96), (24, 192), (48, 320), (12, 768)))
  for t, d, h in ((24, 96, 2), (50, 256, 4), (96, 160, 4)):
    for b in (8, 4):
      make = functools.partial(attention, t, d, h, b)
      yield Case('attention', f'{t}x{d}, {h} heads', b, make)
  yield from _sequences(
    (24, 100), ((96, 192), (320, 96), (384, 384)), (8, 4, 2)
  )
  published = functools.cache(lambda: exporting.functions(PUBLISHED))
  for part in ('encoder', 'predictor', 'joint'):
    make = functools.partial(lambda part: published()[part], part)
    yield Case('published model', f'{PUBLISHED.stem} {part}', 4, make)


def _cases(
  denses, convs, depthwises, *, networks, mlps, separables, bits
) -> Iterator[Case]:
  for b in bits:
    for k, n in denses:
      for m in (1, 8):
        make = functools.partial(dense, m, k, n, b)
        yield Case('dense', f'{m}x{k}x{n}', b, make)
    for w, layers in networks:
      for part in ('encoder', 'predictor', 'joint'):
        make = functools.partial(recognizer, part, w, layers, b)
        yield Case(f'RNN-T {part} step', f'{layers}x{w}', b, make)
    for m, w, layers in mlps:
      make = functools.partial(mlp, m, w, layers, b)
      yield Case('MLP', f'{m}x{w}x{layers}', b, make)
    for t, c, n, k in convs:
      make = functools.partial(conv, t, c, n, k, b)
      yield Case('conv', f'{t}x{c}x{n} width {k}', b, make)
    for t, c, k in depthwises:
      make = functools.partial(conv, t, c, c, k, b, c)
      yield Case('depthwise', f'{t}x{c} width {k}', b, make)
    for t, c, k, n in separables:
      make = functools.partial(separable, t, c, k, n, b)
      yield Case('QuartzNet blocks', f'{t}x{c} width {k} x{n}', b, make)
