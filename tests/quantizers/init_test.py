"""The package's front page: its names, and its example as it stands there."""

import textwrap
import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from s8bqat_jax import artifacts, quantizers
from s8bqat_jax.artifacts import qtensor
from s8bqat_jax.quantizers import tree as trees


def test_public_names_are_no_modules():
  for name in quantizers.__all__:
    assert not isinstance(getattr(quantizers, name), types.ModuleType)


def _example():
  doc = quantizers.__doc__
  start, end = doc.index('    import jax'), doc.index('`loss(params')
  return textwrap.dedent(doc[start:end])


class Model(nn.Module):
  @nn.compact
  def __call__(self, x):
    return nn.Dense(2)(nn.relu(nn.Dense(8)(x)))


def test_the_example_wraps_a_model_in_under_ten_lines():
  code = _example()
  assert len(code.strip().splitlines()) - code.count('import') < 10
  model, rng = Model(), np.random.default_rng(0)
  x = jnp.asarray(rng.normal(size=(32, 4)), jnp.float32)

  def loss(params, batch, key):
    return jnp.mean((model.apply(params, batch) - batch[:, :2]) ** 2), {}

  params = model.init(jax.random.key(0), x)
  names = {'bits': 4, 'rate': 0.02, 'batches': [x] * 100}
  names |= {'loss': loss, 'params': params}
  exec(code, names)
  shipped = names['shipped']
  encoded = [q for q in trees.named(shipped).values() if qtensor.is_qtensor(q)]
  assert [q.bits for q in encoded] == [4, 4]
  decoded = artifacts.decode(shipped)
  before, after = (loss(p, x, None)[0] for p in (params, decoded))
  assert after < 0.2 * before
