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


def unpadded_averages():
  fn = lambda p, x: nn.avg_pool(
    x, (3, 2), (2, 1), 'SAME', count_include_pad=False
  )
  return fn, {}, (1 + cases.normal(0, 2, 9, 7, 4),)


def per_head():
  params = {'w': cases.normal(1, 3, 16, 8), 'b': cases.normal(2, 3, 8)}
  fn = lambda p, x: (
    jnp.einsum('bhj,hjk->bhk', x, p['w']),
    jnp.einsum('bhj,hjk->bhk', x, p['w']) + p['b'],
  )
  return fn, params, (1 + cases.normal(0, 2, 3, 16),)


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
  'swish before a sum': cases.swish_residual(),
  'mean before a sum': cases.reduced_residual(),
  'embedding, closed over': cases.closed_over(),
  'sums and products': cases.sums(),
  'constants': cases.constants(),
  'movements': cases.movements(),
  'embedding': cases.embed(),
  'embedding, a scale a row': cases.embed_rows(),
  'unpadded averages': unpadded_averages(),
  'a product per head': per_head(),
  'decisions': cases.decisions(),
  'comparisons': cases.comparisons_of_integers(),
  'extremes': cases.extremes(),
  'reversals': cases.reversals(),
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


@pytest.mark.parametrize('name', cases.TRUTHS)
def test_what_is_made_of_truth_values_is_exact(name):
  fn, params, inputs = cases.TRUTHS[name]
  found = agreement(cases.lowered(fn, params, *inputs), *inputs)
  assert found.identical == 1.0


def on(fn, *inputs):
  """Our codes and ONNX Runtime's, of the same inputs."""
  lowered = cases.lowered(fn, {}, *inputs)
  codes = [np.asarray(x) for x in lowered.quantize(*inputs)]
  session = runtime.Session(onnxfile.export(lowered))
  return [np.asarray(x) for x in lowered.integers(*codes)], session(*codes)


@pytest.mark.parametrize('width', [8, 64, 256])
def test_layernorm_of_quiet_rows_is_exact(width):
  model = nn.LayerNorm(use_bias=False, use_scale=False)
  x = cases.normal(0, 4, width)
  lowered = cases.lowered(lambda p, x: model.apply({}, x), {}, x)
  codes = np.zeros((4, width), np.int8)
  codes[:, 0] = 1, 2, 3, 100
  (found,) = runtime.Session(onnxfile.export(lowered))(codes)
  np.testing.assert_array_equal(found, lowered.integers(codes)[0])


def test_comparisons_of_unsigned_integers():
  i = np.array([3_000_000_000, 1, 5], np.uint32)
  j = np.array([7, 7, 4_000_000_000], np.uint32)
  fn = lambda p, x, i, j: jnp.where(i < j, x, 2 * x) + jnp.where(i != j, x, 0)
  ours, found = on(fn, cases.normal(0, 3), i, j)
  np.testing.assert_array_equal(found[0], ours[0])


@pytest.mark.parametrize(
  'fn, shape',
  [
    (lambda p, x: jnp.sin(x[:, None]) + x[:, None], (2, 0)),
    (lambda p, x: jnp.sin(x).reshape(2, -1, 3), (2, 0, 3)),
  ],
)
def test_empty_axes(fn, shape):
  lowered = cases.lowered(
    fn,
    {},
    np.zeros(shape, np.float32),
    batches=[(np.ones([n or 1 for n in shape], np.float32),)],
  )
  codes = np.zeros(shape, np.int8)
  (found,) = runtime.Session(onnxfile.export(lowered))(codes)
  (ours,) = lowered.integers(codes)
  assert found.shape == ours.shape and found.dtype == ours.dtype


def test_products_that_contract_all_axes():
  w = cases.normal(1, 8, 6)
  fn = lambda p, x: jnp.einsum('ij,ij->', x, w)
  ours, found = on(fn, cases.normal(0, 8, 6))
  assert np.abs(found[0].astype(int) - ours[0]).max() <= 1


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
  x, y = np.int8([100, 50, 0, -50]), np.int8([-20, 0, 20, 40])
  for codes in ((x, y), (y, x)):
    np.testing.assert_array_equal(session(*codes)[0], fn.integers(*codes)[0])
  assert np.any(fn.integers(x, y)[0] != fn.integers(y, x)[0])
  with pytest.raises(ValueError):
    session(np.zeros(4, np.int8))
