"""The README's code runs as it stands, on a toy model of one's own."""

import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np

from s8bqat_jax import artifacts

README = pathlib.Path(__file__).parents[1] / 'README.md'


def test_the_snippets_train_save_and_run_in_integers(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  code, integers = re.findall(
    r'```python\n(.*?)```', README.read_text('utf-8'), re.DOTALL
  )
  x = jax.random.normal(jax.random.key(0), (32, 6))

  def forward(params, x):
    return jnp.tanh(x @ params['w'])

  def loss(params, batch, key):
    del key
    x, y = batch
    return jnp.mean((forward(params, x) - y) ** 2), {}

  batch = (x, x)
  names = {'loss': loss, 'params': {'w': 0.1 * x[:6]}, 'batches': [batch] * 20}
  exec(compile(code, 'README.md', 'exec'), names)
  saved = artifacts.load('model.safetensors').tree['w']
  shipped = names['method'].encode(
    names['state'].params, names['state'].quantizer
  )['w']
  assert saved.bits == 4
  np.testing.assert_array_equal(saved.codes, shipped.codes)
  before = loss(names['params'], batch, None)[0]
  decoded = artifacts.decode(artifacts.load('model.safetensors').tree)
  assert loss(decoded, batch, None)[0] < before
  statements = [x for x in code.splitlines() if x and 'import' not in x]
  assert len(statements) < 10
  names['forward'] = forward
  exec(compile(integers, 'README.md', 'exec'), names)
  np.testing.assert_allclose(names['outputs'], forward(decoded, x), atol=0.02)
