"""Exported .tflite files: LiteRT's interpreter against our own program."""

import collections

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip('ai_edge_litert', reason='needs the export extra')

from s8bqat_jax.export import program, tflite, witness
from s8bqat_jax.export.tflite import runtime
from tests.export import cases

E = cases.elementwise
# The smallest share of codes that equal ours; none may be further off than 1.
CASES = {
  'dense': (cases.dense(), 1.0),
  'relu': (cases.dense_relu(), 1.0),
  'relu6': (cases.dense_relu6(), 1.0),
  'gain of either sign': (cases.dense_gain(), 1.0),
  'weights first': (cases.weights_first(), 0.97),
  'attention': (cases.attention(), 0.95),
  'conv': (cases.conv(), 0.99),
  'grouped conv': (cases.conv(2), 0.99),
  'depthwise conv': (cases.conv(8), 0.99),
  'strided conv': (cases.conv(strides=2), 0.99),
  'dilated conv': (cases.conv(kernel_dilation=2), 0.99),
  'conv over time': (cases.conv_time(), 0.98),
  'conv before a sum': (cases.conv_residual(), 0.6),
  'pools': (cases.pools(), 0.98),
  'mean': (cases.mean(), 0.98),
  'swish before a sum': (cases.swish_residual(), 0.85),
  'mean before a sum': (cases.reduced_residual(), 0.9),
  'sums of scaled values': (cases.scaled_sums(), 0.85),
  'embedding, closed over': (cases.closed_over(), 0.95),
  'sums and products': (cases.sums(), 0.97),
  'constants': (cases.constants(), 0.96),
  'movements': (cases.movements(), 1.0),
  'embedding': (cases.embed(), 1.0),
  'embedding, a scale a row': (cases.embed_rows(), 0.98),
  'sigmoid': (E(jax.nn.sigmoid), 0.98),
  'tanh': (E(jnp.tanh), 0.98),
  'swish': (E(jax.nn.silu), 0.97),
  'gelu': (E(lambda x: jax.nn.gelu(x, approximate=False)), 0.99),
  'tanh gelu': (E(jax.nn.gelu), 0.99),
  'exp': (E(jnp.exp), 0.99),
  'any table': (E(jnp.sin), 1.0),
  'elu': (E(jax.nn.elu), 0.96),
  'softplus': (E(jax.nn.softplus), 1.0),
  'leaky relu': (E(jax.nn.leaky_relu), 0.98),
  'decisions': (cases.decisions(), 0.98),
  'comparisons': (cases.comparisons_of_integers(), 1.0),
  'extremes': (cases.extremes(), 0.98),
  'reversals': (cases.reversals(), 1.0),
}


def ran(fn, inputs):
  """Exports, runs with every value kept; returns (session, exported, ...)."""
  exported = tflite.export(fn)
  session = runtime.Session(exported, keep_all=True)
  codes = fn.quantize(*inputs)
  return exported, session, session(*codes), fn.integers(*codes)


@pytest.mark.parametrize('name', CASES)
def test_operations_agree(name):
  (fn, params, inputs), share = CASES[name]
  fn = cases.lowered(fn, params, *inputs)
  exported, session, theirs, ours = ran(fn, inputs)
  for row in witness.per_op(exported.program, session.value):
    assert row.agreement.largest <= 1, row
    assert row.agreement.identical >= share, row
  for a, b in zip(ours, theirs, strict=True):
    assert a.shape == b.shape and a.dtype == b.dtype
    assert witness.compare(a, b).largest <= 2
  # With delegates, as a user's interpreter would run it.
  for a, b in zip(ours, runtime.Session(exported)(*fn.quantize(*inputs))):
    assert witness.compare(a, b).largest <= 2


def test_decisions_are_exact():
  fn, params, inputs = cases.decisions()
  _, _, theirs, ours = ran(cases.lowered(fn, params, *inputs), inputs)
  for a, b in zip(ours[2:], theirs[2:], strict=True):
    assert a.dtype == b.dtype == np.bool_ and 0 < np.mean(a) < 1
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize('name', cases.TRUTHS)
def test_what_is_made_of_truth_values_is_exact(name):
  fn, params, inputs = cases.TRUTHS[name]
  _, _, theirs, ours = ran(cases.lowered(fn, params, *inputs), inputs)
  for a, b in zip(ours, theirs, strict=True):
    assert witness.compare(a, b).largest <= (1 if name == 'gate' else 0)


@pytest.mark.parametrize('part', ['encoder step', 'predictor step', 'joint'])
def test_recognizer_parts_agree(part):
  fn, inputs = cases.rnnt_parts()[part]
  exported = tflite.export(fn)
  session = runtime.Session(exported, keep_all=True)
  rows = []
  for x in inputs:
    session(*fn.quantize(*x))
    rows += witness.per_op(exported.program, session.value)
  for kind, agreement in witness.summary(rows).items():
    # LiteRT interpolates a 16-bit tanh, ours is rounded.
    share = 0.6 if kind == 'q_lut int16' else 0.9
    assert agreement.largest <= 1 and agreement.identical >= share, kind


def test_recurrence_stays_close():
  """Both run on their own states; a code of c is worth 2^-8 of one of h."""
  fn, inputs = cases.rnnt_parts()['encoder step']
  session = runtime.Session(tflite.export(fn))
  *state, _ = fn.quantize(*inputs[0])
  ours, theirs = list(state), list(state)
  for x in inputs * 3:
    feats = fn.quantize(*x)[-1]
    ours = fn.integers(*ours[: len(state)], feats)
    theirs = session(*theirs[: len(state)], feats)
  for a, b in zip(ours, theirs):
    step = 1 if a.dtype == np.int8 else 2**8
    assert witness.compare(a, b).largest <= 3 * step


def test_weights_stay_centroids():
  weight = {'w': cases.centroids(0, (64, 32), 8)}
  fn = cases.lowered(lambda p, x: x @ p['w'], weight, cases.normal(1, 2, 64))
  data = tflite.export(fn).data
  stored = np.asarray(weight['w'].codebook)[weight['w'].codes].T.tobytes()
  assert stored in data


def test_scan_is_unrolled_and_a_long_one_refused():
  def fn(p, x):
    return jax.lax.scan(lambda h, v: (jnp.tanh(h + v),) * 2, x[0], x)

  x = cases.normal(0, 3, 8)
  _, _, theirs, ours = ran(cases.lowered(fn, {}, x), (x,))
  for a, b in zip(ours, theirs, strict=True):
    assert witness.compare(a, b).largest <= 1
  long = cases.normal(0, program.MAX_UNROLLED + 1, 2)
  with pytest.raises(program.UnsupportedExport, match='65 steps'):
    tflite.export(cases.lowered(fn, {}, long))


def test_what_cannot_be_said_is_named():
  model = nn.LayerNorm()
  x = cases.normal(0, 4, 8)
  fn = cases.lowered(model.apply, model.init(jax.random.key(0), x), x)
  with pytest.raises(program.UnsupportedExport, match='q_layernorm'):
    tflite.export(fn)

  def branch(p, i, x):
    return jax.lax.cond(i > 0, lambda v: v, lambda v: jnp.tanh(v), x)

  i = np.int32(1)
  fn = cases.lowered(branch, {}, i, x, batches=[(i, x), (np.int32(0), x)])
  with pytest.raises(program.UnsupportedExport, match='cond'):
    tflite.export(fn)

  masked = lambda p, x: jax.nn.softmax(jnp.where(jnp.arange(8) < 5, x, -1e9))
  with pytest.raises(program.UnsupportedExport, match='masked'):
    tflite.export(cases.lowered(masked, {}, x))


def test_outputs_may_be_inputs_or_constants():
  fn = lambda p, x: (x, p['c'] + 0 * p['c'], jnp.tanh(x))
  params = {'c': cases.normal(1, 3)}
  x = cases.normal(0, 2, 3)
  _, _, theirs, ours = ran(cases.lowered(fn, params, x), (x,))
  assert len(theirs) == 3
  for a, b in zip(ours, theirs, strict=True):
    np.testing.assert_array_equal(a, b)


def test_dead_operations_are_dropped_and_names_are_unique():
  fn = lambda p, x: (jnp.sin(x), jnp.tanh(x))[1]
  x = cases.normal(0, 2, 3)
  read = program.read(cases.lowered(fn, {}, x))
  assert [op.name for op in read.ops] == ['q_lut']
  parts = program.read(cases.rnnt_parts()['encoder step'][0])
  names = collections.Counter(v.name for op in parts.ops for v in op.outs)
  assert max(names.values()) == 1
