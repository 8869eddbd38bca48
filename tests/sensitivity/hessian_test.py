"""Hessian traces and eigenvalues against the full Hessian."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from s8bqat_jax.sensitivity import hessian


def _mlp_params(key):
  keys = jax.random.split(key, 3)
  return {
    'first': {
      'kernel': jax.random.normal(keys[0], (4, 6)),
      'bias': jnp.zeros(6),
    },
    'second': jax.random.normal(keys[1], (6, 3)),
  }


def _batches(key, count):
  return [
    (jax.random.normal(k, (5, 4)), jax.random.randint(k, (5,), 0, 3))
    for k in jax.random.split(key, count)
  ]


def _loss(params, batch):
  x_Bx4, label_B = batch
  hidden = jnp.tanh(x_Bx4 @ params['first']['kernel'] + params['first']['bias'])
  logp = jax.nn.log_softmax(hidden @ params['second'])
  return -jnp.mean(jnp.take_along_axis(logp, label_B[:, None], -1))


def _full_hessian(loss_fn, params, batches):
  flat, unravel = ravel_pytree(params)
  mean = lambda f: sum(loss_fn(unravel(f), b) for b in batches) / len(batches)
  return np.asarray(jax.jit(jax.hessian(mean))(flat), np.float64)


def _block_traces(hessian_PxP, params):
  sizes = [leaf.size for leaf in jax.tree.leaves(params)]
  return [
    d.sum() for d in np.split(np.diag(hessian_PxP), np.cumsum(sizes)[:-1])
  ]


@pytest.fixture(scope='module')
def problem():
  params = _mlp_params(jax.random.key(0))
  batches = _batches(jax.random.key(1), 3)
  return params, batches, _full_hessian(_loss, params, batches)


def test_traces_match_the_full_hessian_within_their_standard_errors(problem):
  params, batches, full = problem
  result = hessian.hessian_trace(
    _loss, params, batches, jax.random.key(2), rtol=1e-9, max_probes=1200
  )
  assert jax.tree.structure(result.trace) == jax.tree.structure(params)
  assert result.probes == 1200 and not result.converged
  trace_L = np.array(jax.tree.leaves(result.trace))
  stderr_L = np.array(jax.tree.leaves(result.stderr))
  z_L = (trace_L - _block_traces(full, params)) / stderr_L
  assert np.all(np.abs(z_L) < 4.5), z_L
  # Honest errors are neither zero nor huge.
  assert np.all(stderr_L < 0.1 * np.abs(trace_L).max())


def test_only_the_tensors_that_are_named_are_waited_for(problem):
  params, batches, _ = problem
  run = lambda names: hessian.hessian_trace(
    _loss, params, batches, jax.random.key(2), max_probes=6000, names=names
  )
  everything, one = run(None), run(['second'])
  assert one.converged and one.probes < everything.probes
  with pytest.raises(ValueError, match="names has .'third'.*'first/bias'"):
    run(['second', 'third'])


def test_the_diagonal_is_that_of_the_full_hessian(problem):
  params, batches, full = problem
  result = hessian.hessian_trace(
    _loss, params, batches, jax.random.key(2), rtol=1e-9, max_probes=3000
  )
  assert jax.tree.structure(result.diagonal) == jax.tree.structure(params)
  found = ravel_pytree(result.diagonal)[0]
  off = np.sqrt(np.sum(full**2, 1) - np.diag(full) ** 2)
  assert np.all(np.abs(found - np.diag(full)) < 6 * off / 3000**0.5 + 1e-6)
  for total, of in zip(
    jax.tree.leaves(result.trace), jax.tree.leaves(result.diagonal)
  ):
    np.testing.assert_allclose(of.sum(), total, rtol=1e-4)


def test_standard_error_covers_the_truth_as_often_as_it_says(problem):
  params, batches, full = problem
  truth = np.array(_block_traces(full, params))
  inside, total = 0, 0
  for seed in range(60):
    result = hessian.hessian_trace(
      _loss, params, batches, jax.random.key(seed), rtol=1e-9, max_probes=48
    )
    z = np.array(jax.tree.leaves(result.trace)) - truth
    inside += np.sum(np.abs(z) < 2 * np.array(jax.tree.leaves(result.stderr)))
    total += len(z)
  # About 95%; the three tensors of a run are correlated, so a wide interval.
  assert 0.88 < inside / total <= 1.0


def test_diagonal_hessian_is_exact_after_one_sweep():
  params = {'a': jnp.arange(1.0, 5.0), 'b': jnp.array(2.0)}
  loss = lambda p, batch: batch * (jnp.sum(p['a'] ** 3) + 7 * p['b'] ** 2)
  result = hessian.hessian_trace(
    loss, params, [1.0, 3.0], jax.random.key(0), max_probes=1
  )
  np.testing.assert_allclose(result.trace['a'], 2 * 6 * 10.0, rtol=1e-6)
  np.testing.assert_allclose(result.trace['b'], 2 * 14.0, rtol=1e-6)
  np.testing.assert_allclose(result.stderr['a'], 0, atol=1e-4)
  assert result.probes == 8


def test_stops_by_standard_error(problem):
  params, batches, _ = problem
  loose = hessian.hessian_trace(
    _loss, params, batches, jax.random.key(3), rtol=0.5, max_probes=4000
  )
  tight = hessian.hessian_trace(
    _loss, params, batches, jax.random.key(3), rtol=0.1, max_probes=4000
  )
  assert loose.converged and tight.converged
  assert loose.probes < tight.probes < 4000
  largest = max(abs(t) for t in jax.tree.leaves(tight.trace))
  for t, s in zip(*map(jax.tree.leaves, (tight.trace, tight.stderr))):
    assert s <= 0.1 * max(abs(t), 0.01 * largest)


def test_zero_curvature_converges():
  loss = lambda p, batch: jnp.sum(p['w']) * batch
  result = hessian.hessian_trace(
    loss, {'w': jnp.ones(3)}, [1.0], jax.random.key(0)
  )
  assert result.converged and result.trace['w'] == 0


def test_same_key_same_answer_and_no_second_trace(problem):
  params, batches, _ = problem
  traced = []

  def loss(p, batch):
    traced.append(1)
    return _loss(p, batch)

  first = hessian.hessian_trace(
    loss, params, batches, jax.random.key(4), max_probes=12
  )
  before = len(traced)
  second = hessian.hessian_trace(
    loss, params, batches, jax.random.key(4), max_probes=12
  )
  assert jax.tree.leaves(first.trace) == jax.tree.leaves(second.trace)
  assert len(traced) <= before + 1  # the shape check alone


@jax.custom_vjp
def _reverse_only(x):
  return jnp.sin(x)


# The forward rule calls the function itself, as many do: jvp(grad) then meets
# the custom_vjp and raises.
_reverse_only.defvjp(
  lambda x: (_reverse_only(x), x), lambda x, g: (g * jnp.cos(x),)
)


def test_custom_vjp_falls_back_to_reverse_over_reverse():
  params = {'w': jnp.arange(1.0, 4.0), 'v': jnp.ones((2, 2))}

  def loss(p, batch):
    return batch * jnp.sum(_reverse_only(p['w']) * jnp.sum(p['v'] ** 2))

  def plain(p, batch):
    return batch * jnp.sum(jnp.sin(p['w']) * jnp.sum(p['v'] ** 2))

  with pytest.raises(TypeError, match='custom_vjp'):
    jax.jvp(jax.grad(lambda p: loss(p, 1.0)), (params,), (params,))
  key = jax.random.key(0)
  fallback = hessian.hessian_trace(loss, params, [1.0], key, max_probes=64)
  forward = hessian.hessian_trace(plain, params, [1.0], key, max_probes=64)
  np.testing.assert_allclose(
    jax.tree.leaves(fallback.trace), jax.tree.leaves(forward.trace), rtol=1e-5
  )


def test_top_eigenvalue_matches_the_full_hessian(problem):
  params, batches, full = problem
  result = hessian.top_eigenvalue(
    _loss, params, batches, jax.random.key(5), rtol=1e-3
  )
  expected = np.linalg.eigvalsh(full)[-1]
  assert abs(result.value - expected) < 2e-3 * expected
  assert result.iterations < 30


def test_top_eigenvalue_of_one_parameter():
  loss = lambda p, batch: 1.5 * p**2 * batch
  result = hessian.top_eigenvalue(
    loss, jnp.array(0.3), [1.0], jax.random.key(0)
  )
  assert result.iterations == 1
  np.testing.assert_allclose(result.value, 3.0, rtol=1e-6)


def test_top_eigenvalue_in_no_iterations():
  with pytest.raises(ValueError, match='max_iterations must be at least 1'):
    hessian.top_eigenvalue(
      _loss, {'w': jnp.ones(2)}, [1.0], jax.random.key(0), max_iterations=0
    )


@pytest.mark.parametrize(
  'fn', [hessian.hessian_trace, hessian.top_eigenvalue], ids=['trace', 'top']
)
class TestBadInput:
  def test_no_batches(self, fn):
    with pytest.raises(ValueError, match='batches is empty'):
      fn(_loss, {'w': jnp.ones(2)}, [], jax.random.key(0))

  def test_no_tensors(self, fn):
    for params in ({}, {'w': jnp.zeros((0, 3))}):
      with pytest.raises(ValueError, match='no tensors'):
        fn(lambda p, b: jnp.float32(0), params, [1.0], jax.random.key(0))

  def test_integer_tensor_is_named(self, fn):
    params = {'w': jnp.ones(2), 'table': jnp.arange(3)}
    with pytest.raises(TypeError, match="'table' has dtype int32"):
      fn(lambda p, b: jnp.sum(p['w']), params, [1.0], jax.random.key(0))

  def test_loss_not_scalar(self, fn):
    with pytest.raises(TypeError, match=r'shape \(2,\)'):
      fn(lambda p, b: p['w'] ** 2, {'w': jnp.ones(2)}, [1], jax.random.key(0))

  def test_loss_with_aux(self, fn):
    with pytest.raises(TypeError, match='auxiliary'):
      fn(
        lambda p, b: (jnp.sum(p['w'] ** 2), 1),
        {'w': jnp.ones(2)},
        [1],
        jax.random.key(0),
      )

  def test_nan_in_a_probe(self, fn):
    # sqrt has an infinite second derivative at zero.
    loss = lambda p, b: jnp.sum(jnp.sqrt(p['root'])) + jnp.sum(p['fine'] ** 2)
    params = {'fine': jnp.ones(2), 'root': jnp.zeros(2)}
    with pytest.raises(FloatingPointError, match='finite'):
      fn(loss, params, [1.0], jax.random.key(0))


def test_nan_names_the_tensor_and_the_batch():
  loss = lambda p, b: jnp.sum(jnp.sqrt(p['root'] + b)) + jnp.sum(p['ok'] ** 2)
  params = {'ok': jnp.ones(2), 'root': jnp.zeros(2)}
  with pytest.raises(FloatingPointError, match="batch 1, among them 'root'"):
    hessian.hessian_trace(loss, params, [1.0, 0.0], jax.random.key(0))
