"""The fitted cost model: it recovers a machine, and reads programs rightly."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from s8bqat_jax.npu import ethos, fit, vela
from tests.export import cases

TRUTH = ethos.Ethos(
  'made up', 1e9, 256,
  {
    'weight bytes': [1.02, 0.01, 0.5],
    'dense compute': [100.0, 1.0, 2.0, 0.0, 0.05, 1.1],
    'dense weights': [50.0, 0.3, 1.0, 2.0, 0.0],
    'dense maps': [0.0, 20.0, 0.0, 0.0, 0.0],
    'tanh': [80.0, 0.5, 2.0, 0.0],
  },
)  # fmt: skip


def work(kind, rows, depth, channels, bits=0.0):
  results = rows * (channels or 1)
  area = depth * channels
  return ethos.Work(
    None, kind, rows, depth, channels, results, bits * area / 8, area,
    rows * depth, 0,
  )  # fmt: skip


def sweep(seed):
  r = np.random.default_rng(seed)
  found = []
  for _ in range(60):
    m, k, n = (int(2 ** r.uniform(0, 4)), *(int(2 ** r.uniform(5, 10)),) * 2)
    found.append(
      work('dense', m, k, int(n * r.uniform(0.5, 2)), r.uniform(2, 7))
    )
    found.append(work('tanh', int(2 ** r.uniform(3, 10)), 0, 0))
  return found


class _Named:
  name = op = 'made up'
  site = 'made up'
  outs = ()


def cost(w, machine):
  return ethos.cost(w._replace(op=_Named), machine).cycles


def samples_of_truth():
  return [
    fit.Sample(w, cost(w, TRUTH), round(ethos.weight_bytes(w, TRUTH)))
    for w in sweep(0)
  ]


def test_a_machine_is_recovered_from_its_own_costs():
  found = fit.fit('found', 1e9, 256, samples_of_truth())
  errors = [cost(w, found) / cost(w, TRUTH) - 1 for w in sweep(1)]
  assert np.mean(np.abs(errors)) < 0.03


def test_what_no_sample_has_costs_nothing():
  found = fit.fit('found', 1e9, 256, samples_of_truth())
  # The sweep reads and writes within the chip only.
  outside = work('dense', 4, 64, 64, 4.0)._replace(outside_out=4 * 64)
  inside = outside._replace(outside_out=0)
  assert cost(outside, found) == cost(inside, found)


def test_products_and_what_lies_outside_are_counted():
  weight = {'w': cases.centroids(0, (64, 32), 4)}
  fn = lambda p, x: jnp.tanh(x @ p['w'])
  dense, table = ethos.works(cases.lowered(fn, weight, cases.normal(1, 8, 64)))
  assert (dense.rows, dense.depth, dense.channels) == (8, 64, 32)
  assert dense.macs == 8 * 64 * 32
  assert (dense.outside_in, dense.outside_out) == (8 * 64, 0)
  counts = np.bincount(np.asarray(weight['w'].codes).ravel())
  p = counts / counts.sum()
  bits = -64 * 32 * np.sum(p * np.log2(p))
  assert dense.entropy_bytes == pytest.approx(bits / 8)
  assert table.kind == 'lut tanh int8->int8'
  assert (table.outside_in, table.outside_out) == (0, 8 * 32)


def test_a_product_of_two_values_has_channels_of_its_own():
  fn = lambda p, x, y: (jnp.vdot(x, y), jnp.einsum('bik,bjk->bij', x, y))
  inputs = cases.normal(0, 2, 3, 8), cases.normal(1, 2, 3, 8)
  found = ethos.works(cases.lowered(fn, {}, *inputs))
  products = [(w.rows, w.depth, w.channels) for w in found if w.macs]
  assert sorted(products) == [(1, 48, 1), (6, 8, 3)]


def test_kinds_that_were_not_fitted_are_named():
  fn = cases.lowered(lambda p, x: jnp.sin(x), {}, cases.normal(0, 2, 3))
  with pytest.raises(ValueError, match='no constants for .lut any'):
    ethos.latency(fn, TRUTH)


def test_an_unknown_table_costs_the_dearest_of_its_types():
  fn = cases.lowered(lambda p, x: jnp.sin(x), {}, cases.normal(0, 2, 3))
  (work,) = ethos.works(fn)
  types = work.kind.removeprefix('lut any ')

  def cycles(**fitted):
    constants = {f'lut {k} {types}': v for k, v in fitted.items()}
    return ethos.cost(work, TRUTH._replace(constants=constants)).cycles

  cheap, dear = [5.0, 0.0, 0.0, 0.0], [5.0, 1.0, 0.0, 0.0]
  assert cycles(tanh=cheap, zigzag=dear) == cycles(logistic=dear) == 5 + 6
  # What was fused in the sweep says nothing about one that stands alone.
  with pytest.raises(ValueError, match='no constants for .lut any'):
    cycles(gelu=[0.0] * 4)


def test_a_sum_makes_the_product_before_it_sixteen_bits():
  weight = {'w': cases.normal(0, 32, 32)}
  x = cases.normal(1, 4, 32)
  alone = cases.lowered(lambda p, x: x @ p['w'], weight, x)
  summed = cases.lowered(lambda p, x: x + x @ p['w'], weight, x)
  assert [w.kind for w in ethos.works(alone)] == ['dense']
  assert ethos.works(summed)[0].kind == 'dense int16'


def test_an_unknown_movement_costs_the_dearest_of_its_name():
  fitted = {'squeeze int8': [3.0, 0, 0, 0], 'squeeze int32': [7.0, 0, 0, 0]}
  other = {'pad int8': [9.0, 0, 0, 0], 'add int8->int8': [99.0, 0, 0, 0]}
  machine = TRUTH._replace(constants={**fitted, **other})
  assert cost(work('squeeze int16', 4, 0, 0), machine) == 7
  # Of a name that was never fitted: the dearest movement.
  assert cost(work('slice int8', 4, 0, 0), machine) == 9
  assert cost(work('mul int8->int8', 4, 0, 0), machine) == 99
  # A product has no such kin.
  with pytest.raises(ValueError, match='no constants for .dense int16'):
    cost(work('dense int16', 4, 8, 8), TRUTH)


def test_an_unknown_reduction_costs_the_dearest_of_them():
  rows = [0.0, 1.0, 0, 0, 10.0, 0, 0]
  fitted = {'softmax int8->int8': rows, 'sum int8->int8': [0.5] + [0.0] * 6}
  machine = TRUTH._replace(constants={**TRUTH.constants, **fitted})
  x = cases.normal(0, 4, 24)
  fn = cases.lowered(
    lambda p, x: nn.LayerNorm(use_bias=False, use_scale=False).apply({}, x),
    {},
    x,
  )
  (op,) = ethos.latency(fn, machine).ops
  assert op.op == 'q_layernorm' and op.cycles == 4 * 24 + 4 * 10
  sums = cases.lowered(lambda p, x: x.mean(-1), {}, x)
  assert ethos.latency(sums, machine).cycles == 0.5


def test_longer_sequences_fall_back_on_steps():
  weight = {'w': cases.normal(0, 64, 32)}
  product = lambda p, x: x @ p['w']
  step, sequence = (
    ethos.works(cases.lowered(product, weight, cases.normal(1, n, 64)))[0]
    for n in (8, 9)
  )
  assert (step.kind, sequence.kind) == ('dense', 'dense of rows')
  assert ethos.cost(sequence, TRUTH) == ethos.cost(
    sequence._replace(kind='dense'), TRUTH
  )


def test_a_table_is_fused_into_a_product_that_it_alone_reads():
  weight = {'w': cases.normal(0, 16, 16)}
  x = cases.normal(1, 4, 16)

  def kinds(fn):
    works = ethos.works(cases.lowered(fn, weight, x))
    return [w.kind for w in works if w.kind.startswith('lut')]

  tanh = 'lut tanh int8->int8'
  assert kinds(lambda p, x: jnp.tanh(x @ p['w'])) == [tanh]
  assert kinds(lambda p, x: jnp.tanh(x)) == [f'{tanh} alone']

  def both(p, x):
    y = x @ p['w']
    return y, jnp.tanh(y)

  assert kinds(both) == [f'{tanh} alone']


def test_reductions_are_counted():
  fn = cases.lowered(
    lambda p, x: (jax.nn.softmax(x), x.max(0)), {}, cases.normal(0, 2, 3, 5)
  )
  by_kind = {w.kind: (w.rows, w.depth, w.macs) for w in ethos.works(fn)}
  assert by_kind == {
    'softmax int8->int8': (6, 5, 0), 'reduce_max int8': (15, 2, 0),
  }  # fmt: skip


def test_fused_rows_count_for_the_product():
  fn = lambda p, x: jnp.tanh(x @ p['w'])
  weight = {'w': cases.normal(0, 64, 32)}
  works = ethos.works(cases.lowered(fn, weight, cases.normal(1, 8, 64)))
  row = vela.VelaOp('Tanh', True, 70.0, 70.0, 9.0, 0, works[1].op.outs[0].name)
  report = vela.VelaReport('ethos-u85-512', 1e9, 70.0, 1000, (row,))
  dense, table = fit.samples(works, report)
  assert (dense.cycles, table.cycles) == (70.0, 0)
  assert dense.encoded == 1000
  # What follows a product in several steps shares the first one only.
  steps = [row._replace(cycles=c) for c in (70.0, 20.0)]
  report = report._replace(ops=tuple(steps))
  dense, table = fit.samples(works, report)
  assert (dense.cycles, table.cycles) == (70.0, 20.0)


def test_rows_of_other_names_belong_to_what_they_lead_to():
  x = cases.normal(0, 4, 8)
  fn = cases.lowered(lambda p, x: jax.nn.softmax(jnp.tanh(x)), {}, x)
  works = ethos.works(fn)
  tanh, softmax = (w.op.outs[0].name for w in works)

  def row(operator, name, cycles, on_npu=True):
    return vela.VelaOp(operator, on_npu, cycles, cycles, 0.0, 0, name)

  rows = (
    row('Tanh', f'{tanh}/1', 1.0),
    row('Gather', 'output', 2.0, on_npu=False),
    row('Softmax', f'{tanh}_softmax_0', 4.0),
    row('Softmax', softmax, 8.0),
  )
  report = vela.VelaReport('ethos-u55-128', 1e9, 15.0, 0, rows)
  found = [(s.cycles, s.whole) for s in fit.samples(works, report)]
  assert found == [(3.0, False), (12.0, True)]


def test_known_constants_stay():
  known = {'tanh': [1.0, 2.0, 3.0, 4.0]}
  found = fit.fit('found', 1e9, 256, samples_of_truth(), known)
  assert found.constants['tanh'] == known['tanh']
  errors = [
    cost(w, found) / cost(w, TRUTH) - 1 for w in sweep(1) if w.kind == 'dense'
  ]
  assert np.mean(np.abs(errors)) < 0.03


@pytest.mark.parametrize('name', vela.TARGETS)
def test_shipped_constants_cost_the_streaming_step(name):
  machine = ethos.machines()[name]
  for part in ('encoder step', 'predictor step', 'joint'):
    fn, _ = cases.rnnt_parts()[part]
    found = ethos.latency(fn, machine)
    assert math.isfinite(found.milliseconds) and found.milliseconds > 0
    assert found.weight_bytes > 0 and name in str(found)
