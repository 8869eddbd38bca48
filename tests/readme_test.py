"""The README's code runs as it stands, on a toy model of one's own."""

import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np

from s8bqat_jax import artifacts

README = pathlib.Path(__file__).parents[1] / 'README.md'


def test_the_snippet_trains_and_saves(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (code,) = re.findall(r'```python\n(.*?)```', README.read_text(), re.DOTALL)
  x = jax.random.normal(jax.random.key(0), (32, 6))

  def loss(params, batch, key):
    del key
    return jnp.mean((jnp.tanh(batch @ params['w']) - batch) ** 2), {}

  names = {'loss': loss, 'params': {'w': 0.1 * x[:6]}, 'batches': [x] * 20}
  exec(compile(code, 'README.md', 'exec'), names)
  saved = artifacts.load('model.safetensors').tree['w']
  shipped = names['method'].encode(
    names['state'].params, names['state'].quantizer
  )['w']
  assert saved.bits == 4
  np.testing.assert_array_equal(saved.codes, shipped.codes)
  before = loss(names['params'], x, None)[0]
  after = loss({'w': artifacts.dequantize(saved)}, x, None)[0]
  assert after < before
  statements = [x for x in code.splitlines() if x and 'import' not in x]
  assert len(statements) < 10
