"""The bit search: contract, direction of the logits, what is read off."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from s8bqat_jax.artifacts import qtensor
from s8bqat_jax.quantizers import rules, types
from s8bqat_jax.quantizers import step as step_lib
from s8bqat_jax.quantizers.check import check_quantizer
from s8bqat_jax.quantizers.uniform import mse_scale, quantize
from s8bqat_jax.sensitivity import allocation
from s8bqat_jax.sensitivity import bit_search as search

CHOICES = (1, 2, 4, 8)
CTX = types.Ctx(jnp.int32(0), jax.random.key(0), jnp.float32(0.1))


def _params(seed=0):
  keys = jax.random.split(jax.random.key(seed), 2)
  return {
    'fine': jax.random.normal(keys[0], (8, 16)),
    'rough': jax.random.normal(keys[1], (16, 8)),
    'bias': jnp.zeros(8),
  }


def test_keeps_the_contract():
  quantizer = search.search(
    (rules.Rule('fine', 8), rules.Rule('rough', 1)),
    choices=(1, 4),
    price=0.1,
    temperature=optax.linear_schedule(2.0, 0.1, 10),
    gumbel=True,
  )
  check_quantizer(quantizer, _params(), steps=(3,))


def test_gumbel_draws_anew_each_step_and_alike_in_view_and_penalty():
  params = _params()
  quantizer = search.search(8, choices=(1, 8), price=1.0, gumbel=True)
  state = quantizer.init(params)
  bits = {
    float(quantizer.penalty(params, state, CTX._replace(key=jax.random.key(i))))
    for i in range(3)
  }
  assert len(bits) == 3
  # The view's share of 8 bits, recovered from the view, gives the penalty.
  params = {'fine': params['fine']}
  state = quantizer.init(params)
  seen = quantizer.views(params, state, CTX)['main']['fine']
  one, eight = (
    qtensor.dequantize(quantize(w, mse_scale(w, n), n))
    for w, n in ((params['fine'], 2), (params['fine'], 256))
  )
  share = jnp.sum((seen - one) * (eight - one)) / jnp.sum((eight - one) ** 2)
  np.testing.assert_allclose(
    quantizer.penalty(params, state, CTX), 1 + 7 * share, rtol=1e-4
  )


def test_view_is_the_mixture():
  quantizer = search.search(8, choices=(1, 4), price=0.0, temperature=0.5)
  params = _params()
  state = quantizer.init(params)
  state.learned['logits']['fine'] = jnp.array([0.3, -0.2])
  seen = quantizer.views(params, state, CTX)['main']
  share = np.exp([0.6, -0.4]) / np.exp([0.6, -0.4]).sum()
  w = params['fine']
  grids = [
    np.asarray(qtensor.dequantize(quantize(w, mse_scale(w, n), n)))
    for n in (2, 16)
  ]
  expected = share[0] * grids[0] + share[1] * grids[1]
  np.testing.assert_allclose(seen['fine'], expected, rtol=1e-5, atol=1e-6)
  assert seen['bias'] is params['bias']


def test_cold_view_is_what_ships():
  quantizer = search.search(8, price=0.0, temperature=1e-3)
  params = _params()
  state = quantizer.init(params)
  state.learned['logits'].update(
    fine=jnp.array([0.0, 0.1, 3.0, 0.2]), rough=jnp.array([2.0, 0, 0, 0])
  )
  seen = quantizer.views(params, state, CTX)['main']
  shipped = qtensor.decode(quantizer.encode(params, state))
  for name in ('fine', 'rough'):
    np.testing.assert_allclose(seen[name], shipped[name], rtol=1e-5)
    levels = {'fine': 16, 'rough': 2}[name]
    assert len(np.unique(shipped[name])) <= levels
  found = search.found_bits(8, params, state, choices=CHOICES)
  assert found == {'fine': 4, 'rough': 1}


def test_what_was_searched_is_read_by_the_same_choices():
  params = _params()
  state = search.search(8, price=0.1, choices=(4, 6, 8)).init(params)
  state.learned['logits']['fine'] = jnp.array([3.0, 0.0, 0.0])
  found = search.found_bits(8, params, state, choices=(4, 6, 8))
  assert found['fine'] == 4
  for read in (search.found_bits, search.search_scores):
    with pytest.raises(ValueError, match=r'3 logits for the widths \[1, 2, 4'):
      read(8, params, state, choices=CHOICES)


def test_penalty_counts_expected_bits_per_weight():
  params = _params()
  quantizer = search.search(8, choices=(2, 8), price=0.25)
  state = quantizer.init(params)
  np.testing.assert_allclose(quantizer.penalty(params, state, CTX), 0.25 * 5)
  np.testing.assert_allclose(
    quantizer.metrics(params, state)['expected_bits'], 5
  )


def test_groups_share_one_choice_and_scores_feed_allocate():
  params = {f'layer_{i}': {'q': jnp.ones((4, 4))} for i in range(2)}
  params['out'] = jnp.ones((4, 4))
  grouped = (rules.Rule(r'layer_\d+/.*', 8, 'layers'), rules.Rule('out', 4))
  quantizer = search.search(grouped, price=0.1)
  state = quantizer.init(params)
  assert set(state.learned['logits']) == {'layers', 'out'}
  state.learned['logits']['layers'] = jnp.array([0.0, 0.0, 0.0, 5.0])
  state.learned['logits']['out'] = jnp.array([0.0, 1.0, 0.0])
  assert search.found_bits(grouped, params, state, choices=CHOICES) == {
    'layer_0/q': 8,
    'layer_1/q': 8,
    'out': 2,
  }
  scores = search.search_scores(grouped, params, state, choices=CHOICES)
  for of in scores.values():  # more bits never harm
    assert list(of.values()) == sorted(of.values(), reverse=True)
    assert abs(of[max(of)]) < 1e-6
  sizes = {n: {b: 2 * b for b in s} for n, s in scores.items()}
  result = allocation.allocate(scores, sizes, 24)
  # The whole budget is spent, although no layer is likeliest to need 2 bits.
  assert result.bytes == 24
  assert sorted(result.bits.values()) == [2, 2, 8]


def test_spends_bits_where_the_loss_needs_them():
  """Two equal tensors, one of them a hundred times as important."""
  params = _params()
  target = jax.tree.map(jnp.copy, params)

  def loss(params, batch, key):
    off = jax.tree.map(lambda a, b: jnp.mean((a - b) ** 2), params, target)
    return 10 * off['fine'] + 0.01 * off['rough'], {}

  quantizer = search.search(
    8, price=0.02, temperature=optax.exponential_decay(1.0, 100, 0.1)
  )
  step = step_lib.make_step(
    step_lib.on_main(loss),
    optax.sgd(0.0),
    quantizer,
    learning_rate=0.0,
    learned_tx=optax.adam(0.05),
  )
  state, update = step.init(params), jax.jit(step.update)
  for _ in range(150):
    state, _ = update(state, ())
  found = search.found_bits(8, params, state.quantizer, choices=CHOICES)
  assert found['fine'] == 8 or found['fine'] == 4
  assert found['rough'] == 1


def test_steps_of_half_precision_weights_are_learned():
  params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), _params())
  quantizer = search.search(4, choices=(2,), price=0.0)
  loss = lambda p, batch, key: (
    sum(jnp.sum(jnp.float32(x) ** 2) for x in jax.tree.leaves(p)),
    {},
  )
  step = step_lib.make_step(
    step_lib.on_main(loss), optax.sgd(0.0), quantizer, learning_rate=0.0
  )
  state, update = step.init(params), jax.jit(step.update)
  for _ in range(3):
    state, _ = update(state, None)
  factors = state.quantizer.learned['factors']
  assert all(np.all(x != 1) for x in jax.tree.leaves(factors))
  seen = quantizer.views(params, state.quantizer, CTX)[types.MAIN]
  assert {x.dtype for x in jax.tree.leaves(seen)} == {jnp.dtype('bfloat16')}


def test_more_weights_than_an_int32_counts():
  half = jax.ShapeDtypeStruct((2**15, 2**15), jnp.bfloat16)
  params = {'a': half, 'b': half}
  quantizer = search.search(4, choices=(2,), price=1.0)
  state = jax.eval_shape(quantizer.init, params)
  jax.eval_shape(lambda p, s: quantizer.penalty(p, s, CTX), params, state)
  jax.eval_shape(quantizer.metrics, params, state)


def test_no_weights_to_search():
  quantizer = search.search([rules.Rule('.*', None)], price=1.0)
  params = _params()
  found = quantizer.metrics(params, quantizer.init(params))
  assert found == {'distance': 0}


def test_bad_choices():
  with pytest.raises(ValueError, match=r'choices=\(2, 16\)'):
    search.search(8, choices=(16, 2), price=1.0)
  with pytest.raises(ValueError, match='within its 4 levels'):
    search.search(2, choices=(4, 8), price=1.0).init(_params())
  mixed = (rules.Rule('fine', 8, 'g'), rules.Rule('rough', 2, 'g'))
  with pytest.raises(ValueError, match="group 'g'"):
    search.search(mixed, price=1.0).init(_params())
