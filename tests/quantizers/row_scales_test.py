"""Codebooks with a scale per row, and the fit that makes them."""

import importlib
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from s8bqat_jax import quantizers
from s8bqat_jax.artifacts import packed_file, qtensor
from s8bqat_jax.quantizers import codebook as books
from s8bqat_jax.quantizers import lloyd_max, row_scales
from tests.quantizers import exact_dp, quick

mracos = importlib.import_module('s8bqat_jax.quantizers.mracos')
R, C = 24, 16


@pytest.fixture
def quick_start(monkeypatch):
  """Starts from even centroids: Lloyd-Max takes a while to compile."""
  monkeypatch.setattr(lloyd_max, 'fit', quick.even)


def _uneven(seed=0, spread=1.0, shape=(R, C)):
  """Rows whose lengths differ."""
  rng = np.random.default_rng(seed)
  lengths = np.exp(
    spread * rng.normal(size=(len(shape) - 1) * [1] + [shape[0]])
  )
  w = rng.normal(size=shape) * lengths.T
  return jnp.asarray(w, jnp.float32)


def _book(dtype=jnp.float32, shape=(R, 1)):
  rng = np.random.default_rng(1)
  values = jnp.array([-128, -40, -3, 0, 0, 9, 60, 127], jnp.int8)
  scale = 0.03 * np.exp(rng.normal(size=shape))
  return books.Codebook(values, jnp.asarray(scale, dtype))


@pytest.mark.parametrize(
  'dtype, shape', [(jnp.float32, (R, C)), (jnp.bfloat16, (R, 2, C))]
)
def test_row_scales_are_a_codebook_for_each_row(dtype, shape):
  w = _uneven(shape=shape).astype(dtype) * 4
  book = _book(dtype, (R, *[1] * (len(shape) - 1)))
  functions = books.nearest, books.above, books.snap, books.regions
  all_of = lambda w, book: [function(w, book) for function in functions]
  found = jax.jit(all_of)(w, book)
  one = lambda row, scale: all_of(row, books.Codebook(book.values, scale))
  expected = jax.jit(jax.vmap(one))(w, book.scale.ravel())
  for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected)):
    assert a.dtype == b.dtype
    np.testing.assert_array_equal(a, b)


def test_regions_and_ends_are_the_products_that_ship():
  w, book = _uneven() * 4, _book()
  q = qtensor.check(books.quantize(w, book))
  assert q.scale.shape == (R, 1)
  snapped = qtensor.dequantize(q)
  np.testing.assert_array_equal(books.entries(q.codes, book), snapped)
  np.testing.assert_array_equal(books.nearest(snapped, book), q.codes)
  left, right = books.regions(w, book)
  assert np.all((snapped == left) | (snapped == right))
  low, high = books.ends(book)
  assert low.shape == high.shape == (R, 1)
  values = np.asarray(book.values, np.float32)
  np.testing.assert_array_equal(low, values[0] * np.asarray(book.scale))
  outside = np.asarray(w) >= np.asarray(high)
  assert outside.any() and not outside.all()
  beyond = np.broadcast_to(high, w.shape)[outside]
  np.testing.assert_array_equal(np.asarray(snapped)[outside], beyond)


def test_a_snapped_row_is_at_rest_under_mracos():
  book = _book()
  w, left, right, width = mracos._surroundings(_uneven() * 4, book)
  assert width.shape == (R, 1)
  w = books.snap(w, book)
  at_rest = jax.jit(lambda w: mracos._surroundings(w, book))(w)
  np.testing.assert_array_equal(mracos.slope(*at_rest), 0)
  np.testing.assert_array_equal(mracos.value(*at_rest), 0)
  np.testing.assert_array_equal(mracos.flow(*at_rest, jnp.float32(0.3)), w)


def test_scales_that_do_not_fit_are_errors():
  with pytest.raises(ValueError, match=r'\(24, 1\) do not broadcast to .*\(3,'):
    books.nearest(_uneven()[:3], _book())
  with pytest.raises(ValueError, match='do not broadcast'):
    books.nearest(jnp.ones(C), _book())
  with pytest.raises(ValueError, match='no one list of centroids'):
    books.centroids(_book())
  free = _book()._replace(values=jnp.linspace(-1, 1, 8))
  for function in (books.nearest, books.above, books.regions):
    with pytest.raises(ValueError, match='off the int8 grid has one scale'):
      function(_uneven(), free)


def _error(w, book):
  off = np.asarray(w, np.float64) - np.asarray(books.snap(w, book), np.float64)
  return np.mean(off**2)


@pytest.mark.parametrize('levels, share', [(2, 0.8), (8, 0.7)])
def test_rows_that_differ_lose_less_than_under_any_one_scale(
  levels, share, quick_start
):
  """With two levels a scale is all that a row has."""
  w = _uneven()
  book = row_scales.fit(w, levels)
  assert book.values.dtype == jnp.int8 and book.values.shape == (levels,)
  assert book.scale.shape == (R, 1) and book.scale.dtype == w.dtype
  qtensor.check(books.quantize(w, book))
  assert _error(w, book) < share * exact_dp.free(np.ravel(w), levels)


def test_no_table_is_worse_than_that_of_one_scale():
  rng = np.random.default_rng(0)
  on_grid = rng.choice([-0.3, 0.2], (R, C))
  sparse = rng.normal(size=(R, C)) * (rng.random((R, C)) < 0.1)
  even, columns = (
    rng.normal(size=(R, C)),
    rng.normal(size=(R, C)) * np.arange(C),
  )
  for w in (on_grid, sparse, even, columns):
    w = jnp.asarray(w, jnp.float32)
    one = _error(w, lloyd_max.fit(w, 2))
    assert _error(w, row_scales.fit(w, 2)) <= one * (1 + 1e-6)


def _brute_force(w, levels):
  """The least error of two free values and row scales, over all codes."""
  best = np.inf
  for codes in itertools.product(range(levels), repeat=w.size):
    # For fixed codes: alternating least squares, converged.
    codes = np.array(codes).reshape(w.shape)
    v, s = np.linspace(-1, 1.1, levels), np.ones((len(w), 1))
    for _ in range(60):
      q = v[codes]
      norm = np.sum(q * q, 1, keepdims=True)
      s = np.maximum(np.sum(w * q, 1, keepdims=True), 0) / norm
      for k in range(levels):
        of = codes == k
        count = np.sum(of * s * s)
        v[k] = np.sum(of * s * w) / count if count else v[k]
    best = min(best, np.mean((w - s * v[codes]) ** 2))
  return best


@pytest.mark.parametrize('seed', range(2))
def test_tiny_tensors_are_fitted_as_well_as_by_trying_all_codes(seed):
  w = np.asarray(_uneven(seed, shape=(3, 3)))
  best = _brute_force(w.astype(np.float64), 2)
  assert _error(jnp.asarray(w), row_scales.fit(w, 2)) <= 1.02 * best


def test_given_the_codes_each_scale_is_that_of_least_squares(quick_start):
  w = _uneven()
  book = row_scales.fit(w, 8)
  base = _error(w, book)
  codes = books.nearest(w, book)
  q = np.asarray(book.values, np.float64)[np.asarray(codes)]
  x = np.asarray(w, np.float64)
  best = np.sum(x * q, 1) / np.sum(q * q, 1)
  assert base <= np.mean((x - q * best[:, None]) ** 2) * (1 + 1e-2)


def test_improving_lowers_the_error_until_it_rests():
  w, book = _uneven(), _book()
  errors = [_error(w, book)]
  for _ in range(12):
    book = row_scales.improve(w, book)
    errors.append(_error(w, book))
  # Rounding values to the grid may cost half a step.
  slack = float(jnp.max(book.scale)) ** 2 / 4
  assert np.all(np.diff(errors) <= slack) and errors[-1] < 0.5 * errors[0]
  snapped = books.snap(w, book)
  again = row_scales.improve(snapped, book)
  np.testing.assert_allclose(books.snap(snapped, again), snapped, rtol=1e-5)


@pytest.mark.parametrize('levels', [2, 8])
def test_rows_of_zeros_ship_as_zeros(levels, quick_start):
  w = _uneven().at[3].set(0).at[7].set(0)
  q = qtensor.check(books.quantize(w, row_scales.fit(w, levels)))
  shipped = np.asarray(qtensor.dequantize(q))
  assert np.abs(shipped[[3, 7]]).max() < 1e-30
  nothing = row_scales.fit(jnp.zeros((R, C)), levels)
  assert np.abs(books.snap(jnp.zeros((R, C)), nothing)).max() < 1e-30
  # A row that comes to life gets a scale again.
  woken = w.at[3].set(_uneven(5)[0])
  book = row_scales.fit(w, levels)
  for _ in range(4):
    book = row_scales.improve(woken, book)
  assert _error(woken[3:4], book._replace(scale=book.scale[3:4])) < np.mean(
    np.square(woken[3])
  )


def test_one_row_is_fitted_as_one_tensor_and_one_column_is_exact():
  w = _uneven(shape=(1, R * C))
  one = row_scales.fit(w, 2)
  assert one.scale.shape == (1, 1)
  assert _error(w, one) <= _error(w, lloyd_max.fit(w, 2)) * (1 + 1e-6)
  w = _uneven(shape=(R * C, 1))
  column = row_scales.fit(w, 2)
  np.testing.assert_allclose(books.snap(w, column), w, rtol=1e-5)


@pytest.mark.parametrize('size', [1e-33, 1e36])
def test_the_scale_of_the_weights_does_not_matter(size, quick_start):
  w = _uneven(spread=0.3)
  base = row_scales.fit(w, 4).scale
  found = row_scales.fit(w * size, 4).scale
  np.testing.assert_allclose(np.asarray(found, float) / size, base, rtol=2e-3)


def test_under_jit_and_vmap_the_fit_is_the_same_and_nan_gives_nan(quick_start):
  bad = _uneven().at[2, 3].set(jnp.nan)
  stack = jnp.stack([_uneven(0), bad, _uneven(1)])
  many = jax.jit(jax.vmap(lambda w: row_scales.fit(w, 2)))(stack)
  for i in (0, 2):
    alone = row_scales.fit(stack[i], 2)
    np.testing.assert_array_equal(many.values[i], alone.values)
    np.testing.assert_allclose(many.scale[i], alone.scale, rtol=1e-6)
  assert np.isnan(many.scale[1]).all()


@pytest.mark.parametrize('dtype', [jnp.bfloat16, jnp.float16])
def test_low_precision_keeps_its_dtype_and_stays_finite(dtype, quick_start):
  w = _uneven().astype(dtype)
  book = row_scales.fit(w, 8)
  assert book.scale.dtype == dtype
  qtensor.check(books.quantize(w, book))
  assert _error(w, book) < 0.6 * _error(w, lloyd_max.fit(w, 8))


def test_what_has_no_rows_and_what_is_not_finite_is_refused():
  with pytest.raises(ValueError, match=r'two axes or more, got shape \(5,\)'):
    row_scales.fit(jnp.ones(5), 4)
  with pytest.raises(ValueError, match='2..256, got 1'):
    row_scales.fit(jnp.ones((2, 2)), 1)
  with pytest.raises(ValueError, match='NaN or infinity'):
    row_scales.fit(_uneven().at[2, 3].set(jnp.nan), 2)


def test_row_scales_come_back_from_a_file_and_are_counted(
  tmp_path, quick_start
):
  w = _uneven()
  book = row_scales.fit(w, 8)
  q = books.quantize(w, book)
  one = books.quantize(w / book.scale, book._replace(scale=jnp.float32(1)))
  path = tmp_path / 'rows.safetensors'
  for entropy_code in (False, True):
    packed_file.save(path, {'embed': q}, entropy_code=entropy_code)
    back = packed_file.load(path).tree['embed']
    for a, b in zip(jax.tree.leaves(back), jax.tree.leaves(q), strict=True):
      assert a.dtype == b.dtype and a.shape == b.shape
      np.testing.assert_array_equal(a, b)
  for size in (packed_file.packed_bytes, packed_file.encoded_bytes):
    more = size({'embed': q}) - size({'embed': one})
    # Beside the scales themselves, their shape in the header; codes are alike.
    assert 4 * (R - 1) <= more <= 4 * (R - 1) + 16


@pytest.mark.usefixtures('quick_start')
class TestMembers:
  @pytest.mark.parametrize('member', ['s8bqat', 'admm'])
  def test_keeps_the_contract(self, member):
    """Straight-through, the flow of MRACos, ADMM and the final phase."""
    fit = row_scales.fit
    made = {
      's8bqat': quantizers.s8bqat(
        2, total_steps=10, learning_rate=0.01, fit=fit
      ),
      'admm': quantizers.with_final_phase(
        quantizers.admm(2, rho=1.0, every=1, fit=fit), 10
      ),
    }[member]
    quantizers.check_quantizer(
      made, {'embed': _uneven()}, ships_what_it_sees=member == 's8bqat'
    )

  def test_a_group_has_no_rows_in_common(self):
    params = {'embed': _uneven(), 'out': _uneven()}
    shared = [quantizers.Rule('.*', 2, 'model')]
    member = quantizers.admm(shared, rho=1.0, fit=row_scales.fit)
    with pytest.raises(ValueError, match='share a table have no rows'):
      member.init(params)
    with pytest.raises(ValueError, match="fit is for the table 'lloyd_max'"):
      quantizers.admm(2, rho=1.0, table='uniform', fit=row_scales.fit)

  def test_admm_scales_follow_their_rows(self):
    params = {'embed': _uneven()}
    member = quantizers.admm(3, rho=1.0, every=1, fit=row_scales.fit)
    state = member.init(params)
    grown = {'embed': params['embed'].at[2].multiply(3.0)}
    ctx = quantizers.Ctx(jnp.int32(0), jax.random.key(0), jnp.float32(0.0))
    _, state, _ = member.after_update(grown, state, ctx)
    before = member.encode(params, member.init(params))['embed'].scale
    after = member.encode(grown, state)['embed'].scale
    assert 1.3 < float(after[2, 0] / before[2, 0]) < 3
    rest = np.delete(np.asarray(after / before), 2)
    np.testing.assert_allclose(rest, 1, atol=0.1)
