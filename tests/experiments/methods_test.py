"""Methods by name ship what they say, and their options change something."""

import json

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from experiments import cells, methods
from experiments.configs import common
from s8bqat_jax.artifacts import qtensor
from s8bqat_jax.quantizers import Average, Ctx
from s8bqat_jax.quantizers import rules as rule_lib
from s8bqat_jax.quantizers import tree as trees

_RUN = methods.Run(20, lambda step: 1e-2)


@pytest.mark.parametrize(
  'name',
  [n for n, m in methods.METHODS.items() if not n.startswith('float')],
)
def test_methods_encode_what_they_say(name):
  w = np.random.default_rng(0).normal(size=(12, 8)).astype(np.float32)
  params = {'a': {'kernel': w, 'bias': np.ones(8)}, 'ctc_out': {'kernel': w}}
  quantizer = methods.make(name, 2, methods.rules_for(2, ctc=True), _RUN)
  encoded = quantizer.encode(params, quantizer.init(params))
  (q,) = trees.quantized(encoded).values()
  assert q.bits == (8 if name == 'coarse int8' else 2)
  np.testing.assert_array_equal(encoded['ctc_out']['kernel'], w)


def test_an_unknown_method_is_named():
  with pytest.raises(ValueError, match="no method 's9bqat'; methods: float"):
    methods.make('s9bqat', 2, methods.rules_for(2, ctc=False), _RUN)


def _entropy(codes):
  _, counts = np.unique(np.asarray(codes), return_counts=True)
  p = counts / counts.sum()
  return -np.sum(p * np.log2(p))


@pytest.mark.parametrize('bits', methods.CODE_ENTROPY)
def test_a_coarse_step_keeps_its_entropy_while_weights_change(bits):
  rng = np.random.default_rng(0)
  quantizer = methods.make(
    'coarse int8',
    bits,
    methods.rules_for(bits, ctc=False),
    _RUN._replace(steps=100),
  )
  params = {'w': jnp.asarray(rng.normal(size=(300, 300)), jnp.float32)}
  state = quantizer.init(params)
  codes = quantizer.encode(params, state)['w'].codes
  assert abs(_entropy(codes) - methods.CODE_ENTROPY[bits]) < 0.02
  params = {'w': jnp.asarray(rng.laplace(size=(300, 300)), jnp.float32)}
  ctx = Ctx(jnp.int32(49), jax.random.key(0), jnp.float32(1e-3))
  params, state, _ = quantizer.after_update(params, state, ctx)
  codes = quantizer.encode(params, state)['w'].codes
  assert abs(_entropy(codes) - methods.CODE_ENTROPY[bits]) < 0.02


def test_ablations_differ():
  """Every variant of S8BQAT moves weights another way."""
  w = np.random.default_rng(1).normal(size=(16, 16)).astype(np.float32)
  params = {'w': jnp.asarray(w)}
  moved = {}
  for text in (
    '',
    'every=0',
    'every=4',
    'pull=0',
    'power=0',
    'centroids=uniform',
    'coupling=loss',
    'every=4&reading=overwrite',
  ):
    options = dict(cells.parse(f'x/s8bqat:2?{text}').options)
    quantizer = methods.make(
      's8bqat', 2, methods.rules_for(2, ctc=False), _RUN, options
    )
    state = quantizer.init(params)
    found = params
    for i in (2, 3):  # every fourth step is the second of these
      ctx = Ctx(jnp.int32(i), jax.random.key(0), jnp.float32(1e-2))
      seen = quantizer.views(found, state, ctx)['main']['w']
      penalty = quantizer.penalty(found, state, ctx)
      found, state, _ = quantizer.after_update(found, state, ctx)
      moved.setdefault(text, []).append((found['w'], seen, penalty))
  base = moved.pop('')
  for text, other in moved.items():
    same = all(
      np.array_equal(a, b) for x, y in zip(base, other) for a, b in zip(x, y)
    )
    assert not same, f'{text} changes nothing'


def test_a_final_phase_says_whose_codes_it_freezes():
  said = {
    (name, freeze): methods.final_phase(name, freeze)
    for name in ('admm', 'float continued', 'ptq uniform')
    for freeze in (methods.LAST, methods.AVERAGED)
  }
  averaged = said.pop(('admm', methods.AVERAGED))
  assert set(said.values()) == {methods.FINAL_PHASE}
  for phase, expected in ((averaged, True), (methods.FINAL_PHASE, False)):
    config = common.default()
    config.method = {'final_phase': phase}
    # As a folder's config.json has it.
    stored = ml_collections.ConfigDict(json.loads(config.to_json()))
    for of in (config, stored):
      assert methods.run_of(of).averaged == expected
      assert methods.run_of(of).steps == config.train.steps
  with pytest.raises(ValueError, match="freeze is 'best', expected 'last' or"):
    methods.final_phase('admm', 'best')


@pytest.mark.parametrize('averaged', [False, True])
def test_a_run_says_whose_codes_freeze(averaged):
  w = jax.random.normal(jax.random.key(0), (16, 8))
  run, rules = _RUN._replace(averaged=averaged), rule_lib.as_rules(3)
  quantizer = methods.make('ptq lloyd-max', 3, rules, run)
  frozen = methods.make('straight-through', 3, rules, run)
  params = {'w': w}
  state = frozen.init(params)
  average = Average({'w': -w}, state.learned)
  last = jnp.int32(run.free_steps - 1)
  ctx = Ctx(last, jax.random.key(0), jnp.float32(1e-2), average)
  new, state, _ = frozen.after_update(params, state, ctx)
  assert frozen.metrics(new, state)['frozen'] == 1
  own = quantizer.init(params)
  expected = quantizer.encode({'w': -w if averaged else w}, own)
  np.testing.assert_array_equal(new['w'], qtensor.decode(expected)['w'])
