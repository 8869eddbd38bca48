"""The penalty and its flow against float64 formulas and an ODE solver."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import integrate

from s8bqat_jax.quantizers.mracos import flow, pressure_schedule, slope, value

CENTROIDS = np.array([-1.3, -0.4, -0.1, 0.0, 0.35, 1.1])
WIDTH = np.diff(CENTROIDS).mean()
POWERS = (0.0, 1.0, 2.0)


def neighbors(w):
  i = np.searchsorted(CENTROIDS, w, side='right')
  return CENTROIDS[np.maximum(i - 1, 0)], CENTROIDS[np.minimum(i, 5)]


def nearest(w):
  return CENTROIDS[np.argmin(np.abs(w[:, None] - CENTROIDS), axis=1)]


def value_by_definition(w, power):
  """sin(pi |w - q| / d), brute force over all centroids."""
  left, right = neighbors(w)
  d, distance = right - left, np.abs(w - nearest(w))
  inner = (WIDTH / np.pi) ** (2 - power) * (d / np.pi) ** power
  inner = inner * np.sin(np.pi * distance / np.where(d > 0, d, 1))
  outside = (w < CENTROIDS[0]) | (w > CENTROIDS[-1])
  beyond = WIDTH / np.pi * distance + distance**2 / 2
  return np.where(outside, beyond, inner)


@functools.cache
def _compiled(function, power):
  return jax.jit(lambda *args: function(*args, power))


def run(function, w, *time, power=2.0):
  """Calls a function of mracos in float64."""
  with jax.enable_x64(True):
    args = (*map(jnp.asarray, (w, *neighbors(w), WIDTH, *time)),)
    return np.asarray(_compiled(function, power)(*args))


def _pull(w, left, right, width, power):
  return jax.grad(lambda w: value(w, left, right, width, power).sum())(w)


@pytest.mark.parametrize('power', POWERS)
def test_value_is_the_definition(power):
  w = np.linspace(-1.9, 1.9, 501)
  np.testing.assert_allclose(
    run(value, w, power=power), value_by_definition(w, power), atol=1e-14
  )


def test_zero_at_every_centroid_and_largest_midway():
  middle = (CENTROIDS[1:] + CENTROIDS[:-1]) / 2
  np.testing.assert_array_equal(run(value, CENTROIDS), 0)
  np.testing.assert_allclose(
    run(value, middle), (np.diff(CENTROIDS) / np.pi) ** 2
  )


@pytest.mark.parametrize('power', POWERS)
def test_gradient_is_the_derivative(power):
  rng = np.random.default_rng(0)
  w = rng.uniform(-1.8, 1.8, 300)
  kinks = np.concatenate([CENTROIDS, (CENTROIDS[1:] + CENTROIDS[:-1]) / 2])
  w = w[np.abs(w[:, None] - kinks).min(1) > 1e-3]
  grad = run(_pull, w, power=power)
  e = 1e-6
  numeric = value_by_definition(w + e, power) - value_by_definition(
    w - e, power
  )
  np.testing.assert_allclose(grad, numeric / (2 * e), atol=1e-8)


def test_gradient_vanishes_at_centroids_and_points_to_them_beside():
  grad = jax.jit(lambda *args: _pull(*args, 2.0))
  for scale in (1.0, 3e-4, 70.0):
    q = jnp.asarray(CENTROIDS * scale, jnp.float32)
    for left, right in ((q[:-1], q[1:]),):
      width = jnp.mean(right - left)
      for at in (left, right):
        assert not np.any(grad(at, left, right, width))
      inch = (right - left) * 1e-3
      assert np.all(grad(left + inch, left, right, width) > 0)
      assert np.all(grad(right - inch, left, right, width) < 0)


def ode_end(w0, time, power):
  """Integrates dw/dt = -dR/dw in float64 until `time` or the centroid."""
  left, right = neighbors(np.array([w0]))
  d = (right - left)[0]
  q = nearest(np.array([w0]))[0]
  if CENTROIDS[0] < w0 < CENTROIDS[-1]:
    weight = (WIDTH / np.pi) ** (2 - power) * (d / np.pi) ** power

    def fall(_, w):
      return (
        -weight * np.pi / d * np.cos(np.pi * abs(w - q) / d) * np.sign(w - q)
      )
  else:

    def fall(_, w):
      return -(WIDTH / np.pi + np.abs(w - q)) * np.sign(w - q)

  def arrival(_, w):
    return (w - q)[0] * np.sign(w0 - q)

  arrival.terminal = True
  out = integrate.solve_ivp(
    fall, (0, time), [w0], events=arrival, rtol=1e-11, atol=1e-13
  )
  return q if out.status == 1 else out.y[0, -1]


@pytest.mark.parametrize('power', POWERS)
def test_flow_is_the_gradient_flow(power):
  rng = np.random.default_rng(1)
  w = rng.uniform(-1.7, 1.7, 40)
  for time in (0.05, 0.7, 3.0):
    got = run(flow, w, time, power=power)
    want = np.array([ode_end(w0, time, power) for w0 in w])
    np.testing.assert_allclose(got, want, atol=1e-8)


def test_outliers_come_home_within_the_usual_total():
  w = np.array([-1.3 - 16 * WIDTH, 1.1 + 16 * WIDTH])
  np.testing.assert_array_equal(run(flow, w, 4.0), nearest(w))
  assert np.all(run(flow, w, 3.0) != nearest(w))


_flow = jax.jit(flow)


def test_flow_in_float32_and_in_many_small_steps():
  w = np.linspace(-1.7, 1.7, 202)
  left, right = (jnp.asarray(x, jnp.float32) for x in neighbors(w))
  width = jnp.float32(WIDTH)
  many = jnp.asarray(w, jnp.float32)
  for _ in range(400):
    many = _flow(many, left, right, width, 2.0 / 400)
  want = run(flow, w, 2.0)
  np.testing.assert_allclose(many, want, atol=1e-4)


def test_flow_lands_on_the_centroid_and_stays():
  w = np.linspace(-1.7, 1.7, 202)
  left, right = (jnp.asarray(x, jnp.float32) for x in neighbors(w))
  w = jnp.asarray(w, jnp.float32)
  width = jnp.float32(WIDTH)
  landed = _flow(w, left, right, width, 30.0)
  assert np.all((landed == left) | (landed == right))
  again = _flow(landed, left, right, width, 0.1)
  np.testing.assert_array_equal(again, landed)
  unmoved = _flow(w, left, right, width, 0.0)
  np.testing.assert_array_equal(unmoved, w)


def test_flow_for_ever_decides_all_but_the_exact_middle():
  left, right = jnp.zeros(3), jnp.ones(3)
  w = jnp.array([0.5, np.nextafter(np.float32(0.5), np.float32(0)), 0.6])
  for time in (1e3, 1e30):
    np.testing.assert_array_equal(
      _flow(w, left, right, jnp.float32(1), time), [0.5, 0.0, 1.0]
    )


def test_a_codebook_of_equal_centroids_pulls_nothing():
  @jax.jit
  def under_all_powers(w, *codebook):
    return [
      (
        value(w, *codebook, power),
        slope(w, *codebook, power),
        flow(w, *codebook, 1.0, power),
      )
      for power in POWERS
    ]

  w = jnp.array([-1.0, 0.5, 2.0])
  same, zero = jnp.full(3, 0.5), jnp.float32(0)
  for penalty, pull, moved in under_all_powers(w, same, same, zero):
    assert not np.any(penalty)
    assert not np.any(pull)
    np.testing.assert_array_equal(moved, w)


def test_pressure_times_learning_rate_sums_to_the_total():
  rate = optax.warmup_cosine_decay_schedule(0.0, 3e-3, 20, 200)
  for learning_rate in (1e-3, rate):
    schedule = pressure_schedule(4.0, 200, learning_rate)
    steps = np.arange(200)
    pressure = np.asarray(jax.vmap(schedule)(steps))
    rates = learning_rate
    if callable(learning_rate):
      rates = np.asarray(jax.vmap(learning_rate)(steps))
    assert np.sum(pressure * rates) == pytest.approx(4.0, rel=1e-5)
    # Quadratic up to 80% of the steps, then level.
    assert pressure[79] / pressure[159] == pytest.approx(0.25, rel=1e-5)
    np.testing.assert_allclose(pressure[159:], pressure[159])


def test_pressure_refuses_what_has_no_sum():
  with pytest.raises(ValueError, match='total_steps'):
    pressure_schedule(4.0, 0, 1e-3)
  with pytest.raises(ValueError, match='learning_rate'):
    pressure_schedule(4.0, 10, 0.0)
  with pytest.raises(ValueError, match='pushes weights away'):
    pressure_schedule(-1.0, 10, 0.1)
  with pytest.raises(ValueError, match='until'):
    pressure_schedule(4.0, 10, 1e-3, until=1.5)
