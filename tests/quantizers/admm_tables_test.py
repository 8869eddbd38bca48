"""Tables against brute force and known optima."""

import jax.numpy as jnp
import numpy as np
import pytest

from s8bqat_jax.artifacts import qtensor
from s8bqat_jax.quantizers import admm_tables as tables
from s8bqat_jax.quantizers import codebook as books
from s8bqat_jax.quantizers.uniform import grid

GAUSS = np.random.default_rng(0).normal(size=20_000)


def error(w, values, scale):
  """Mean squared error of the nearest of values * scale, by brute force."""
  entries = np.asarray(values, np.float64) * scale
  off = np.abs(np.asarray(w, np.float64)[:, None] - entries)
  return np.mean(off.min(1) ** 2)


def test_levels():
  assert grid(2) == tables.power_levels(2) == [-1, 1]
  assert grid(3) == tables.power_levels(3) == [-1, 0, 1]
  assert grid(8) == list(range(-4, 4))
  assert tables.power_levels(4) == [-2, -1, 0, 1]
  assert tables.power_levels(8) == [-8, -4, -2, -1, 0, 1, 2, 4]
  for levels in range(2, 17):
    values = tables.power_levels(levels)
    assert len(values) == levels and sorted(set(values)) == values
    assert np.array_equal(np.array(values, np.int8), values)
    assert all(v == 0 or np.log2(abs(v)) % 1 == 0 for v in values)
  with pytest.raises(ValueError, match='16 levels'):
    tables.power_levels(17)


@pytest.mark.parametrize('kind', ['uniform', 'powers_of_two'])
@pytest.mark.parametrize('levels', [2, 3, 16])
@pytest.mark.parametrize('tail', ['gauss', 'laplace', 't3'])
def test_fitted_scale_is_the_best_of_a_dense_search(kind, levels, tail):
  rng = np.random.default_rng(1)
  tails = {'laplace': rng.laplace(size=2000), 't3': rng.standard_t(3, 2000)}
  w = 0.03 * tails.get(tail, GAUSS[:2000])
  book = tables.table(kind).fit([jnp.asarray(w, jnp.float32)], levels)
  scales = np.geomspace(1e-5, 0.2, 1500)
  best = min(error(w, book.values, s) for s in scales)
  assert error(w, book.values, float(book.scale)) <= 1.02 * best


def test_binary_and_ternary_scales_of_a_gaussian():
  fit = tables.table('uniform').fit
  w = [jnp.asarray(GAUSS, jnp.float32)]
  assert float(fit(w, 2).scale) == pytest.approx(0.798, abs=0.01)
  assert float(fit(w, 3).scale) == pytest.approx(1.224, abs=0.03)


@pytest.mark.parametrize('kind', ['uniform', 'powers_of_two', 'lloyd_max'])
def test_improving_lowers_the_error_and_is_done_at_its_own_table(kind):
  table = tables.table(kind)
  parts = [jnp.asarray(x, jnp.float32) for x in np.split(GAUSS[:4000], 2)]
  values = [-100, -30, -5, 5, 30, 100, 110, 127]
  if kind != 'lloyd_max':
    values = tables.power_levels(8)
  for scale in (0.002, 0.02, 0.2):
    book = books.Codebook(jnp.array(values, jnp.int8), jnp.float32(scale))
    errors = []
    for _ in range(4):
      errors.append(error(GAUSS[:4000], book.values, float(book.scale)))
      book = table.improve(parts, book)
    # Rounding centroids to the grid may cost half a step of it.
    slack = float(book.scale) ** 2 / 4 if kind == 'lloyd_max' else 1e-7
    assert np.all(np.diff(errors) <= slack), errors
  entries = books.snap(parts[0], book)
  again = table.improve([entries], book)
  np.testing.assert_allclose(
    books.snap(entries, again), entries, rtol=1e-5, atol=1e-7
  )


def test_a_tensor_on_a_table_with_the_lowest_value_stays_there():
  book = books.Codebook(jnp.array([-128, 0, 127], jnp.int8), jnp.float32(0.01))
  w = jnp.asarray(books.centroids(book))
  again = tables.improve_centroids([w], book)
  np.testing.assert_array_equal(again.values, book.values)
  assert again.scale == book.scale


@pytest.mark.parametrize('kind', ['uniform', 'powers_of_two', 'lloyd_max'])
def test_zeros_and_equal_weights_give_valid_tables(kind):
  table = tables.table(kind)
  for value in (0.0, 0.3, -7.0):
    w = jnp.full((5,), value)
    book = table.fit([w], 4)
    shipped = qtensor.check(table.ship(w, book))
    np.testing.assert_allclose(qtensor.dequantize(shipped), w, rtol=0.02)
    qtensor.check(table.ship(w, table.improve([w], book)))


def test_uniform_tables_ship_without_a_codebook():
  table = tables.table('uniform')
  w = jnp.asarray(GAUSS[:100], jnp.float32)
  book = table.fit([w], 8)
  shipped = qtensor.check(table.ship(w, book))
  assert shipped.codebook is None
  np.testing.assert_array_equal(
    qtensor.dequantize(shipped), books.snap(w, book)
  )


def test_refuses_unknown_tables():
  with pytest.raises(ValueError, match='octal'):
    tables.table('octal')


def test_the_means_of_many_equal_weights_are_those_weights():
  # One running sum in float32 is a tenth off by then.
  w = jnp.full(4_000_000, 0.1, jnp.float32)
  start = books.Codebook(jnp.array([-127, 90], jnp.int8), jnp.float32(0.001))
  better = tables.improve_centroids([w], start)
  assert np.asarray(better.values).tolist() == [-127, 100]
