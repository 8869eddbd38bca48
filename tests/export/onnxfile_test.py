"""Exported ONNX files: ONNX Runtime against our own program."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip('onnxruntime', reason='needs the export extra')
pytest.importorskip('onnx', reason='needs the export extra')

from s8bqat_jax.export import onnxfile, program, witness
from s8bqat_jax.export.onnxfile import runtime
from tests.export import cases

E = cases.elementwise


def layernorm(offset=0.0):
  model = nn.LayerNorm()
  x = offset + cases.normal(0, 4, 24)
  return model.apply, model.init(jax.random.key(0), x), (x,)


def masked_softmax():
  mask = jnp.asarray([[True] * 5 + [False] * 3, [False] * 8])
  fn = lambda p, x: jax.nn.softmax(jnp.where(mask, x, -1e9))
  return fn, {}, (cases.normal(0, 2, 8),)


# 8-bit products rescale in float32, so a code may differ by one.
FAST = {
  'dense': cases.dense(),
  'relu': cases.dense_relu(),
  'relu6': cases.dense_relu6(),
  'gain of either sign': cases.dense_gain(),
  'weights first': cases.weights_first(),
  'conv': cases.conv(),
  'grouped conv': cases.conv(2),
  'depthwise conv': cases.conv(8),
  'strided conv': cases.conv(strides=2),
  'dilated conv': cases.conv(kernel_dilation=2),
  'conv over time': cases.conv_time(),
  'pools': cases.pools(),
}
EXACT = {
  'attention': cases.attention(),
  'mean': cases.mean(),
  'sums and products': cases.sums(),
  'constants': cases.constants(),
  'movements': cases.movements(),
  'embedding': cases.embed(),
  'swish': E(jax.nn.silu),
  'any table': E(jnp.sin),
  'elu': E(jax.nn.elu),
  'layernorm': layernorm(),
  'layernorm far from zero': layernorm(30.0),
  'masked softmax': masked_softmax(),
}


def agreement(fn, *inputs):
  exported = onnxfile.export(fn)
  codes = fn.quantize(*inputs)
  theirs, ours = runtime.Session(exported)(*codes), fn.integers(*codes)
  for a, b in zip(ours, theirs, strict=True):
    assert a.dtype == b.dtype
  return witness.pooled([witness.compare(a, b) for a, b in zip(ours, theirs)])


@pytest.mark.parametrize('name', FAST)
def test_fast_products_agree_but_for_ties(name):
  fn, params, inputs = FAST[name]
  found = agreement(cases.lowered(fn, params, *inputs), *inputs)
  assert found.largest <= 1 and found.identical >= 0.99


@pytest.mark.parametrize('name', EXACT)
def test_everything_else_is_exact(name):
  fn, params, inputs = EXACT[name]
  found = agreement(cases.lowered(fn, params, *inputs), *inputs)
  assert found.identical == 1.0


@pytest.mark.parametrize('part', ['encoder step', 'predictor step', 'joint'])
def test_recognizer_parts_agree(part):
  fn, inputs = cases.rnnt_parts()[part]
  exported = onnxfile.export(fn, keep_all=True)
  session = runtime.Session(exported)
  rows = []
  for x in inputs:
    session(*fn.quantize(*x))
    rows += witness.per_op(exported.program, session.value)
  for kind, found in witness.summary(rows).items():
    if kind == 'q_dot int8':
      assert found.largest <= 1 and found.identical >= 0.97
    else:
      assert found.identical == 1.0, kind


def test_what_cannot_be_said_is_named():
  x = cases.normal(0, 4, 8)
  fn = cases.lowered(lambda p, x: jax.nn.log_softmax(x), {}, x)
  with pytest.raises(program.UnsupportedExport, match='q_log_softmax'):
    onnxfile.export(fn)


def test_outputs_may_be_inputs_or_constants():
  fn = lambda p, x: (x, p['c'] + 0 * p['c'])
  params = {'c': cases.normal(1, 3)}
  x = cases.normal(0, 2, 3)
  assert agreement(cases.lowered(fn, params, x), x).identical == 1.0


def test_sessions_take_codes_in_order():
  fn = cases.lowered(
    lambda p, x, y: x - y, {}, *[cases.normal(i, 4) for i in (0, 1)]
  )
  session = runtime.Session(onnxfile.export(fn))
  with pytest.raises(ValueError):
    session(np.zeros(4, np.int8))
