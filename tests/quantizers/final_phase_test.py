"""The final phase: one snap, frozen codes, float leftovers that still train."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from s8bqat_jax import quantizers
from s8bqat_jax.artifacts import qtensor
from s8bqat_jax.quantizers import codebook
from tests.quantizers.quick import even

METHODS = {
  'centroids': quantizers.centroids(2, fit=even),
  'mracos': quantizers.mracos(2, pressure=1.0, coupling='loss', fit=even),
  'learnable': quantizers.learnable('ternary'),
}


@pytest.mark.parametrize('method', METHODS)
def test_codes_freeze_and_leftovers_train(method):
  rng = np.random.default_rng(0)
  x = jnp.asarray(rng.normal(size=(64, 6)), jnp.float32)
  y = x @ jnp.asarray(rng.normal(size=(6, 3)), jnp.float32) + 1.0
  params = {
    'kernel': jnp.asarray(rng.normal(size=(6, 3)), jnp.float32),
    'bias': jnp.zeros(3),
  }
  quantizer = quantizers.with_final_phase(METHODS[method], 20, start=0.5)
  step = quantizers.make_step(
    quantizers.on_main(
      lambda p, *_: (jnp.mean((x @ p['kernel'] + p['bias'] - y) ** 2), {})
    ),
    optax.adamw(0.05),
    quantizer,
    learning_rate=0.05,
    average_decay=0.5,
  )
  state = step.init(params)
  update = jax.jit(step.update)

  @jax.jit
  def inspect(params, own, step):
    ctx = quantizers.Ctx(step, jax.random.key(0), jnp.float32(0.05))
    return (
      quantizer.encode(params, own),
      quantizer.views(params, own, ctx)['main'],
      quantizer.penalty(params, own, ctx),
      quantizer.metrics(params, own)['frozen'],
    )

  history = []
  for i in range(20):
    state, metrics = update(state, None)
    shipped, view, penalty, frozen = inspect(
      state.params, state.quantizer, state.step
    )
    history.append((shipped, metrics))
    assert frozen == (i >= 9)
    # What adapts to the codes starts from there, not from all that was before.
    # XLA may compute one number twice, and round it in two ways.
    restarted = np.allclose(
      state.average['bias'], state.params['bias'], rtol=1e-5, atol=0
    )
    assert restarted == (i == 9)
    assert (state.average_age['bias'] == 0) == (i == 9)
    assert np.any(state.opt_state[0].mu['bias']) == (i != 9)
    if frozen:
      what_ships = qtensor.decode(shipped)
      for tree in (view, state.params, state.average):
        np.testing.assert_array_equal(tree['kernel'], what_ships['kernel'])
      assert penalty == 0
  at_freezing, end = history[9][0], history[-1][0]
  jax.tree.map(
    np.testing.assert_array_equal, at_freezing['kernel'], end['kernel']
  )
  assert np.all(end['bias'] != at_freezing['bias'])
  assert history[-1][1]['loss'] < history[10][1]['loss']


@pytest.mark.parametrize('method', METHODS)
def test_buffers_can_be_donated(method):
  quantizer = quantizers.with_final_phase(METHODS[method], 20)
  state = quantizer.init({'kernel': jnp.ones((4, 2))})
  donated = jax.jit(
    lambda state: jax.tree.map(lambda x: x, state), donate_argnums=0
  )
  jax.block_until_ready(donated(state))


def trained_to_freezing(quantizer, params, average_decay):
  """The states before and after the step that freezes, the sixth of ten."""
  step = quantizers.make_step(
    quantizers.on_main(
      lambda p, *_: (sum(jnp.sum((x - 1) ** 2) for x in p.values()), {})
    ),
    optax.sgd(1e-2),
    quantizer,
    learning_rate=1e-2,
    learned_tx=optax.adam(1e-2),
    average_decay=average_decay,
  )
  state, update = step.init(params), jax.jit(step.update)
  for _ in range(6):
    before, (state, _) = state, update(state, None)
  return before, state


def around(start, averaged=True):
  rules = [quantizers.Rule('[wv]', bits=3), quantizers.Rule('b', bits=None)]
  return quantizers.with_final_phase(
    quantizers.learnable(rules), 10, start, averaged
  )


def within(start, averaged=True):
  own = quantizers.with_final_phase(
    quantizers.learnable(3), 10, start, averaged
  )
  return quantizers.by_path(
    [('w', own), ('v', quantizers.learnable('ternary'))]
  )


@pytest.mark.parametrize(
  'average_decay, averaged', [(None, True), (0.9, True), (0.9, False)]
)
@pytest.mark.parametrize('make', [around, within])
def test_what_is_frozen_is_what_would_have_shipped(
  average_decay, averaged, make
):
  params = {
    n: jax.random.normal(jax.random.key(i), (16, 8))
    for i, n in enumerate('wvb')
  }
  quantizer = make(0.6, averaged)
  before, state = trained_to_freezing(quantizer, params, average_decay)
  _, free = trained_to_freezing(make(1), params, average_decay)
  encode = jax.jit(quantizer.encode)
  found = encode(*quantizers.averaged(state))
  latest = encode(free.params, free.quantizer)
  if average_decay is None or not averaged:
    jax.tree.map(np.testing.assert_array_equal, found['w'], latest['w'])
    return
  expected = encode(*quantizers.averaged(before))
  jax.tree.map(np.testing.assert_array_equal, found['w'], expected['w'])
  assert np.any(latest['w'].codes != expected['w'].codes)
  if make is around:  # What stays in floats is where those codes were found.
    np.testing.assert_array_equal(state.params['b'], before.average['b'])


def test_refuses_bad_fractions():
  with pytest.raises(ValueError, match='start'):
    quantizers.with_final_phase(METHODS['centroids'], 20, start=85)
  with pytest.raises(ValueError, match='total_steps'):
    quantizers.with_final_phase(METHODS['centroids'], 0)


def test_learned_state_rests_though_its_optimizer_has_momentum():
  w = jax.random.normal(jax.random.key(0), (16, 8))
  quantizer = quantizers.with_final_phase(quantizers.learnable(3), 20, 0.5)
  step = quantizers.make_step(
    quantizers.on_main(lambda p, b, key: (jnp.sum((p['w'] - 1) ** 2), {})),
    optax.sgd(1e-2),
    quantizer,
    learning_rate=1e-2,
    learned_tx=optax.adam(1e-2),
  )
  state, update, learned = step.init({'w': w}), jax.jit(step.update), []
  for _ in range(14):
    state, _ = update(state, None)
    learned.append(np.asarray(state.quantizer.learned['w']))
  assert learned[3] != learned[2]
  np.testing.assert_array_equal(learned[11], learned[13])
  metrics = quantizer.metrics(state.params, state.quantizer)
  assert metrics['frozen'] == 1 and metrics['distance'] < 1e-6


def test_moved_by_element_and_a_penalty_of_another_dtype():
  """Both keep the contract, so they must keep it in here too."""

  def after_update(w, state, spec, ctx):
    del spec, ctx
    snapped = codebook.snap(w, state.carried)
    near = jnp.abs(w - snapped) < 0.02
    return jnp.where(near, snapped, w), state, near

  def penalty(w, state, spec, ctx):
    del state, spec, ctx
    return jnp.sum(w * w)

  member = quantizers.lift_tensor(
    2,
    init=lambda w, spec: quantizers.State(carried=even(w, spec.levels)),
    quantize=lambda w, state, spec: codebook.quantize(w, state.carried),
    penalty=penalty,
    after_update=after_update,
  )
  w = jax.random.normal(jax.random.key(0), (8, 4), jnp.bfloat16)
  quantizers.check_quantizer(quantizers.with_final_phase(member, 2), {'w': w})
