"""Sensitivity scores against float64 NumPy and brute force."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from s8bqat_jax.sensitivity import scores

BITS = {'hidden/kernel': (2, 4, 8), 'out': (2, 4, 8)}


def _quantize(name, w, bits):
  scale = jnp.max(jnp.abs(w)) / (2 ** (bits - 1) - 0.5)
  return jnp.round(w / scale) * scale


def _logits(params, batch):
  return jnp.tanh(batch @ params['hidden']['kernel']) @ params['out']


@pytest.fixture(scope='module')
def problem():
  keys = jax.random.split(jax.random.key(0), 5)
  params = {
    'hidden': {'kernel': jax.random.normal(keys[0], (4, 8))},
    'out': jax.random.normal(keys[1], (8, 5)),
  }
  return params, [jax.random.normal(k, (2, 3, 4)) for k in keys[2:]]


def _numpy_kl(params, changed, x):
  def logp(p):
    hidden = np.tanh(np.float64(x) @ np.float64(p['hidden']['kernel']))
    return scipy.special.log_softmax(hidden @ np.float64(p['out']), -1)

  p, q = logp(params), logp(changed)
  return np.sum(np.exp(p) * (p - q), -1)


def test_kl_matches_numpy(problem):
  params, batches = problem
  result = scores.kl_sensitivity(_logits, params, batches, _quantize, BITS)
  for b in (2, 4, 8):
    changed = {
      'hidden': params['hidden'],
      'out': _quantize('out', params['out'], b),
    }
    expected = np.array([_numpy_kl(params, changed, x) for x in batches])
    np.testing.assert_allclose(
      result.scores['out'][b], expected.mean(), rtol=1e-3, atol=1e-6
    )
    np.testing.assert_allclose(
      result.stderr['out'][b],
      expected.mean((1, 2)).std(ddof=1) / 3**0.5,
      rtol=1e-2,
      atol=1e-6,
    )
  hidden = result.scores['hidden/kernel']
  assert hidden[2] > hidden[4] > hidden[8] >= -1e-7


def test_kl_compiles_the_model_twice(problem):
  params, batches = problem
  traced = []

  def logits_fn(p, batch):
    traced.append(1)
    return _logits(p, batch)

  scores.kl_sensitivity(logits_fn, params, batches, _quantize, BITS)
  assert len(traced) == 2


def test_kl_ignores_padding_and_masked_classes(problem):
  params, batches = problem
  weights = jnp.array([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0]])

  def logits_fn(p, batch):
    logits = _logits(p, batch)
    logits = jnp.where(weights[..., None] > 0, logits, 7 * logits)
    return logits.at[..., 1].set(-jnp.inf), weights

  result = scores.kl_sensitivity(
    logits_fn, params, batches[:1], _quantize, {'out': (2,)}
  )
  kept = [0, 2, 3, 4]
  changed = dict(params, out=_quantize('out', params['out'], 2)[:, kept])
  expected = _numpy_kl(
    dict(params, out=params['out'][:, kept]), changed, batches[0]
  )
  np.testing.assert_allclose(
    result.scores['out'][2],
    np.sum(expected * weights) / 3,
    rtol=1e-4,
  )
  assert np.isnan(result.stderr['out'][2])


def test_trace_scores_match_the_formula(problem):
  params, _ = problem
  trace = {'hidden': {'kernel': 3.0}, 'out': -1.0}
  result = scores.trace_scores(trace, params, _quantize, BITS)
  kernel = np.asarray(params['hidden']['kernel'], np.float64)
  error = np.asarray(_quantize('', params['hidden']['kernel'], 4)) - kernel
  np.testing.assert_allclose(
    result['hidden/kernel'][4], 3.0 / 32 * np.sum(error**2), rtol=1e-6
  )
  assert result['out'] == {2: 0.0, 4: 0.0, 8: 0.0}


def test_trace_predicts_the_loss_of_a_quadratic():
  # With H = h I the second-order loss change is exactly h/2 |error|^2.
  w = jnp.linspace(-1.0, 1.0, 31)
  omega = scores.trace_scores({'w': 31 * 5.0}, {'w': w}, _quantize, {'w': (3,)})
  change = 2.5 * jnp.sum((_quantize('w', w, 3) - w) ** 2)
  np.testing.assert_allclose(omega['w'][3] / 2, change, rtol=1e-5)


def test_the_diagonal_predicts_what_the_trace_cannot():
  """Curved where errors are small: a table with short frequent rows."""
  length_R = jnp.array([0.1, 0.1, 2.0, 2.0])
  w = length_R[:, None] * jnp.linspace(-1.0, 1.0, 8)
  curvature = jnp.array([50.0, 80.0, 0.5, 0.1])[:, None] * jnp.ones(8)
  quantize = lambda name, w, bits: (
    length_R[:, None] * jnp.round(w / length_R[:, None])
  )
  loss = lambda w: 0.5 * jnp.sum(curvature * w**2)
  # The part of second order; that of first order is no curvature's.
  error = quantize('w', w, 1) - w
  change = loss(w + error) - loss(w) - jnp.vdot(jax.grad(loss)(w), error)
  bits = {'w': (1,)}
  omega = scores.diagonal_scores({'w': curvature}, {'w': w}, quantize, bits)
  np.testing.assert_allclose(omega['w'][1] / 2, change, rtol=1e-5)
  trace = {'w': jnp.sum(curvature)}
  blind = scores.trace_scores(trace, {'w': w}, quantize, bits)
  assert blind['w'][1] / 2 > 5 * change
  # Alike everywhere, it is the trace.
  flat = {'w': jnp.full((4, 8), 3.0)}
  np.testing.assert_allclose(
    scores.diagonal_scores(flat, {'w': w}, quantize, bits)['w'][1],
    scores.trace_scores({'w': 96.0}, {'w': w}, quantize, bits)['w'][1],
    rtol=1e-6,
  )


def test_a_diagonal_lost_in_noise_counts_as_its_error():
  w = jnp.linspace(-1.0, 1.0, 8)
  noise = {'w': jnp.full(8, -1.0)}
  bits = {'w': (2,)}
  run = lambda **k: scores.diagonal_scores(
    noise, {'w': w}, _quantize, bits, **k
  )['w'][2]
  assert run() == 0
  squares = jnp.mean((_quantize('w', w, 2) - w) ** 2)
  np.testing.assert_allclose(run(stderr={'w': 2.0}), 2 * squares, rtol=1e-6)


class TestBadInput:
  def test_unknown_tensor(self, problem):
    params, batches = problem
    with pytest.raises(ValueError, match='hiden'):
      scores.kl_sensitivity(
        _logits, params, batches, _quantize, {'hiden/kernel': (2,)}
      )

  def test_empty_corpus(self, problem):
    with pytest.raises(ValueError, match='batches is empty'):
      scores.kl_sensitivity(_logits, problem[0], [], _quantize, BITS)

  def test_nan_names_tensor_and_bits(self, problem):
    params, batches = problem
    broken = lambda name, w, bits: w * (jnp.nan if bits == 4 else 1)
    with pytest.raises(FloatingPointError, match="'out' at 4 bits"):
      scores.kl_sensitivity(_logits, params, batches, broken, {'out': (2, 4)})

  def test_wrong_shape_from_quantize(self, problem):
    params, batches = problem
    flat = lambda name, w, bits: w.ravel()
    with pytest.raises(ValueError, match=r'\(40,\); expected float32\(8, 5\)'):
      scores.kl_sensitivity(_logits, params, batches, flat, {'out': (2,)})

  def test_weights_of_the_wrong_shape(self, problem):
    params, batches = problem
    fn = lambda p, batch: (_logits(p, batch), jnp.ones(7))
    with pytest.raises(ValueError, match=r'\(7,\).*expected \(2, 3\)'):
      scores.kl_sensitivity(fn, params, batches, _quantize, BITS)

  def test_all_padding(self, problem):
    params, batches = problem
    fn = lambda p, batch: (_logits(p, batch), jnp.zeros((2, 3)))
    with pytest.raises(ValueError, match='batch 0 has no position'):
      scores.kl_sensitivity(fn, params, batches, _quantize, BITS)

  def test_trace_of_another_model(self, problem):
    with pytest.raises(ValueError, match='differ in structure'):
      scores.trace_scores({'out': 1.0}, problem[0], _quantize, BITS)
    with pytest.raises(ValueError, match='differ in structure'):
      scores.diagonal_scores({'out': 1.0}, problem[0], _quantize, BITS)


def test_kl_of_a_small_change_is_not_lost_in_rounding(problem):
  params, batches = problem
  nudge = lambda name, w, bits: w * (1 + 10.0**-bits)
  found = scores.kl_sensitivity(
    _logits, params, batches, nudge, {'out': (0, 2, 4)}
  )
  for b in (0, 2, 4):
    changed = {**params, 'out': nudge('out', params['out'], b)}
    expected = np.mean([_numpy_kl(params, changed, x) for x in batches])
    assert found.scores['out'][b] >= 0
    np.testing.assert_allclose(found.scores['out'][b], expected, rtol=5e-3)
