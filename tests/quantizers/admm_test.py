"""ADMM on problems whose answer is known."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from s8bqat_jax import quantizers
from s8bqat_jax.artifacts import qtensor
from s8bqat_jax.quantizers import Rule


def ctx(step, rate=0.1):
  return quantizers.Ctx(jnp.int32(step), jax.random.key(0), jnp.float32(rate))


def least_squares(seed, rows=40, n=6):
  """A correlated regression whose best ternary weights are known."""
  rng = np.random.default_rng(seed)
  mixing = np.eye(n) + 0.5 * rng.normal(size=(n, n))
  x = rng.normal(size=(rows, n)) @ mixing
  y = x @ rng.normal(size=n)
  best = np.inf
  for q in itertools.product((-1, 0, 1), repeat=n):
    z = x @ np.array(q)
    if z.any():
      best = min(best, np.mean((z * (z @ y) / (z @ z) - y) ** 2))
  return jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32), best


@pytest.mark.parametrize('coupling', ['flow', 'loss'])
def test_residuals_vanish_and_the_answer_beats_rounding(coupling):
  steps, rate = 1500, 0.02

  @jax.jit
  def solve(x, y):
    def loss(params, *_):
      return jnp.mean((x @ params['w'][:, 0] - y) ** 2), {}

    rho = quantizers.pressure_schedule(250.0, steps, rate)
    quantizer = quantizers.admm(
      [Rule('w', 'ternary')],
      rho=rho,
      table='uniform',
      every=5,
      coupling=coupling,
    )
    start = {'w': jnp.linalg.lstsq(x, y[:, None])[0]}
    step = quantizers.make_step(
      quantizers.on_main(loss),
      optax.sgd(rate),
      quantizer,
      learning_rate=rate,
    )
    state = jax.lax.scan(
      lambda s, _: (step.update(s, None)[0], None),
      step.init(start),
      None,
      steps,
    )[0]
    encode = quantizer.encode
    rounded = qtensor.decode(encode(start, quantizer.init(start)))
    shipped = qtensor.decode(encode(state.params, state.quantizer))
    metrics = quantizer.metrics(state.params, state.quantizer)
    return loss(rounded)[0], loss(shipped)[0], metrics

  ours, rounding, optimum = [], [], []
  for seed in range(12):
    x, y, best = least_squares(seed)
    before, after, metrics = solve(x, y)
    assert metrics['primal'] < 1e-3, (seed, metrics)
    assert metrics['dual'] < 1e-3, (seed, metrics)
    ours.append(float(after))
    rounding.append(float(before))
    optimum.append(best)
  # The problem is not convex, so not always the optimum, but near it.
  gap = np.mean(ours) - np.mean(optimum)
  assert -1e-4 < gap < 0.5 * (np.mean(rounding) - np.mean(optimum))


def groups_params():
  rng = np.random.default_rng(0)
  return {
    name: jnp.asarray(rng.normal(size=(8, 5)) * size, jnp.float32)
    for name, size in (('a', 1.0), ('b', 1.1), ('c', 0.2))
  }


def test_a_group_shares_one_table():
  params = groups_params()
  for groups, tables in (
    ([Rule('.*', 2)], 3),
    ([Rule('[ab]', 2, 'first'), Rule('c', 2)], 2),
    ([Rule('.*', 2, 'model')], 1),
  ):
    quantizer = quantizers.admm(groups, rho=1.0, table='uniform', every=1)
    state = quantizer.init(params)
    _, state, _ = jax.jit(quantizer.after_update)(params, state, ctx(0))
    shipped = quantizer.encode(params, state)
    assert len({float(q.scale) for q in shipped.values()}) == tables


def test_a_group_of_unequal_levels_is_refused():
  rules = [Rule('a', 2, 'g'), Rule('.*', 3, 'g')]
  quantizer = quantizers.admm(rules, rho=1.0)
  with pytest.raises(ValueError, match="'g'.*4.*levels.*8"):
    quantizer.init(groups_params())


def test_a_new_rho_leaves_the_multipliers_alone():
  params = groups_params()
  rho = lambda step: 1.0 + step
  quantizer = quantizers.admm(1, rho=rho, table='uniform', every=1)
  state = quantizer.init(params)
  _, state, _ = quantizer.after_update(params, state, ctx(0))
  first = state.carried
  shipped = qtensor.decode(quantizer.encode(params, state))
  # After one step from u = 0 the multiplier is rho (T - G), with the rho of
  # that step, 1, although the next one is 2. T moved towards G by e^-0.1.
  assert float(first.rho) == 2.0
  for name, w in params.items():
    start = qtensor.decode(quantizer.encode(params, quantizer.init(params)))
    moved = start[name] + np.exp(-0.1) * (w - start[name])
    dual = shipped[name] - first.target[name]
    np.testing.assert_allclose(
      first.rho * dual, moved - shipped[name], atol=2e-2
    )


def test_penalty_is_the_augmented_term():
  params = groups_params()
  quantizer = quantizers.admm(1, rho=3.0, table='uniform', coupling='loss')
  state = quantizer.init(params)
  shipped = qtensor.decode(quantizer.encode(params, state))
  target = {n: shipped[n] - 0.1 for n in params}  # a dual of 0.1
  state = state._replace(carried=state.carried._replace(target=target))
  want = sum(1.5 * np.sum((params[n] - shipped[n] + 0.1) ** 2) for n in params)
  got = quantizer.penalty(params, state, ctx(0))
  np.testing.assert_allclose(got, want, rtol=1e-5)


def test_refuses_unknown_arguments():
  with pytest.raises(ValueError, match='coupling'):
    quantizers.admm(2, rho=1.0, coupling='tight')
  with pytest.raises(ValueError, match='every'):
    quantizers.admm(2, rho=1.0, every=0)


def test_a_group_of_two_dtypes_ships_each_in_its_own():
  params = {
    'a': jnp.asarray(np.random.default_rng(0).normal(size=(4, 4)), 'float32'),
    'b': jnp.ones((4, 4), jnp.bfloat16),
  }
  quantizer = quantizers.admm([quantizers.Rule('.*', 2, 'model')], rho=1.0)
  shipped = qtensor.decode(quantizer.encode(params, quantizer.init(params)))
  assert shipped['a'].dtype == jnp.float32
  assert shipped['b'].dtype == jnp.bfloat16


def test_a_projection_of_float64_weights_keeps_its_state_in_float32():
  with jax.enable_x64(True):
    w = {'w': jnp.asarray(np.random.default_rng(0).normal(size=(6, 4)))}
    assert w['w'].dtype == np.float64
    method = quantizers.admm(2, rho=1.0, table='uniform', every=1)
    _, state, _ = method.after_update(w, method.init(w), ctx(0))
  assert state.carried.target['w'].dtype == np.float32
