"""The shipped Ethos-U presets: they cost anything, and as Vela was found to."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from benchmarks import vela_cases
from experiments import results
from s8bqat_jax.integer import lower, uncalibrated
from s8bqat_jax.npu import ethos
from tests.export import cases


class Perceptron(nn.Module):
  function: str

  @nn.compact
  def __call__(self, x):
    return nn.Dense(8)(getattr(jax.nn, self.function)(nn.Dense(32)(x)))


class Images(nn.Module):
  @nn.compact
  def __call__(self, x):
    y = nn.relu(nn.Conv(8, (3, 3))(x))
    y = nn.relu(y + nn.Conv(8, (3, 3), feature_group_count=8)(y))
    y = nn.avg_pool(nn.max_pool(y, (2, 2), (2, 2)), (2, 2))
    return nn.Dense(5)(y.mean((1, 2)))


class Block(nn.Module):
  @nn.compact
  def __call__(self, x):
    mask = nn.make_causal_mask(jnp.ones(x.shape[:2]))
    y = nn.MultiHeadDotProductAttention(4)(nn.LayerNorm()(x), mask=mask)
    x = x + y
    y = nn.Dense(16)(nn.gelu(nn.Dense(64)(nn.LayerNorm()(x))))
    return jax.nn.log_softmax(x + y)


FOREIGN = {
  **{f: (Perceptron(f), (3, 16)) for f in ('gelu', 'tanh', 'silu', 'elu')},
  'images': (Images(), (1, 12, 12, 3)),
  'attention': (Block(), (1, 6, 16)),
}


@pytest.mark.parametrize('name', FOREIGN)
def test_every_preset_costs_anybodys_model(name):
  model, shape = FOREIGN[name]
  x = cases.normal(0, *shape)
  params = model.init(jax.random.key(0), x)
  fn = lower(model.apply, params, uncalibrated(), x)
  for machine in ethos.machines().values():
    found = ethos.latency(fn, machine)
    assert math.isfinite(found.cycles) and found.cycles > 0
    assert found.weight_bytes > 0
    costs = {o.op: o.cycles for o in found.ops}
    dear = {'q_dot', 'q_conv', 'q_softmax', 'q_layernorm', 'q_log_softmax'}
    assert all(costs[name] > 0 for name in dear.intersection(costs))


def measured(group):
  """{name: (case, {machine: Vela's cycles})} of what was not fitted."""
  rows = [r for r in results.read('cost_model')['rows'] if r['method'] == group]
  assert rows
  found = {}
  for case in vela_cases.unseen():
    if case.group == group and case.bits == 8:
      found[case.name] = (
        case,
        {
          r['system']: r['metrics']['vela_cycles']
          for r in rows
          if (r['case'], r['bits']) == (case.name, 8)
        },
      )
  return found


def share(case, machine, cycles):
  """Our cycles as a share of Vela's."""
  return ethos.latency(case.make(), ethos.machines()[machine]).cycles / cycles


# The largest error allowed, as a share of Vela's cycles.
TOLERANCES = {'ethos-u55-128': 0.1, 'ethos-u65-512': 0.25, 'ethos-u85-512': 0.3}


def test_attention_costs_what_vela_found():
  for case, found in measured('attention').values():
    assert found.keys() == TOLERANCES.keys()
    for machine, cycles in found.items():
      ratio = share(case, machine, cycles)
      assert abs(ratio - 1) < TOLERANCES[machine], (case.name, machine)


# After a product, which a gelu would vanish in, and alone.
@pytest.mark.parametrize(
  'name',
  ['product, tanh', 'product, silu', 'tanh', 'silu', 'gelu', 'exp', 'sigmoid'],
)
def test_tables_cost_what_vela_found(name):
  case, found = measured('tables')[f'{name} 24x192']
  assert found.keys() == TOLERANCES.keys()
  for machine, cycles in found.items():
    ratio = share(case, machine, cycles)
    assert abs(ratio - 1) < TOLERANCES[machine], machine


def test_a_gelu_after_a_product_is_free_and_a_tanh_is_not():
  """Vela fuses a gelu into a product, and computes a tanh by itself."""
  product, gelu, tanh = (
    vela_cases.perceptron(f, 32, 64, 8)
    for f in (lambda x: x, jax.nn.gelu, jnp.tanh)
  )
  for machine in ethos.machines().values():
    costs = [ethos.latency(f, machine).cycles for f in (product, gelu, tanh)]
    assert costs[0] == pytest.approx(costs[1], rel=1e-6) and costs[1] < costs[2]
    alone = ethos.latency(vela_cases.alone(jax.nn.gelu, (32, 64)), machine)
    assert alone.cycles > 0
