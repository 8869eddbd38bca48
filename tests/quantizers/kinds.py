"""The same small weights as the three kinds of params tree there are."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

KINDS = ('linen', 'nnx', 'plain')
NAMES = ['dense/bias', 'dense/kernel', 'head/kernel']
WEIGHTS = ['dense/kernel', 'head/kernel']


class _Linen(nn.Module):
  @nn.compact
  def __call__(self, x):
    x = nn.Dense(6, name='dense')(x)
    return nn.Dense(3, use_bias=False, name='head')(jnp.tanh(x))


class _Nnx(nnx.Module):
  def __init__(self, rngs):
    self.dense = nnx.Linear(16, 6, rngs=rngs)
    self.head = nnx.Linear(6, 3, use_bias=False, rngs=rngs)

  def __call__(self, x):
    return self.head(jnp.tanh(self.dense(x)))


def make(kind: str):
  """Returns params named NAMES: a model's own, or a plain dict."""
  if kind == 'linen':
    params = _Linen().init(jax.random.key(0), jnp.zeros((1, 16)))
    assert set(params) == {'params'}
  elif kind == 'nnx':
    params = nnx.state(_Nnx(nnx.Rngs(0)), nnx.Param)
  else:
    params = {
      'dense': {'bias': jnp.zeros(6), 'kernel': jnp.zeros((16, 6))},
      'head': {'kernel': jnp.zeros((6, 3))},
    }
  rng = np.random.default_rng(0)
  return jax.tree.map(
    lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32), params
  )


def apply(kind: str):
  """Returns (params, x) -> the outputs of the network that `make` is of."""
  if kind == 'linen':
    return _Linen().apply
  if kind == 'nnx':
    graph = nnx.graphdef(_Nnx(nnx.Rngs(0)))
    return lambda params, x: nnx.merge(graph, params)(x)

  def plain(params, x):
    x = jnp.tanh(x @ params['dense']['kernel'] + params['dense']['bias'])
    return x @ params['head']['kernel']

  return plain
