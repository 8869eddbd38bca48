"""The product in machine code: bit for bit the oracle's, whatever the shape."""

import functools

import hypothesis
import jax
import numpy as np
import pytest
from hypothesis import strategies as st
from jax import lax

from s8bqat_jax.integer import dot, native
from s8bqat_jax.integer.requantize import Out

R = np.random.default_rng(0)
OUTS = (
  (Out(3, -128, 127), 40),
  (Out(0, -32767, 32767, 'int16'), 33),
  (Out(0, -(2**31), 2**31 - 1, 'int32'), 0),
)


@pytest.fixture(scope='module')
def library(tmp_path_factory):
  """Builds it if it is not there; skips where it can't run."""
  if not native.available():
    native._FOLDER = tmp_path_factory.mktemp('native')
    native._registered.cache_clear()
    try:
      native.build()
    except RuntimeError as e:
      pytest.skip(str(e)[:200])
    if not native.available():
      pytest.skip('this processor has no AVX-512 VNNI, or AMX')
  yield native
  native._FOLDER = native._SOURCE.parent
  native._registered.cache_clear()


def operands(m, k, n):
  x = R.integers(-128, 128, (m, k)).astype(np.int8)
  w = R.integers(-128, 128, (k, n)).astype(np.int8)
  bias = R.integers(-(2**20), 2**20, n).astype(np.int32)
  multiplier = R.integers(-(2**31) + 1, 2**31 - 1, n).astype(np.int32)
  return x, w, bias, multiplier


def check(x, w, bias, multiplier, dims, zero, out, shift):
  params = {
    'dimension_numbers': dims, 'zeros': (zero, 0), 'shift': shift, 'out': out,
    'site': '',
  }  # fmt: skip
  run = jax.jit(functools.partial(dot.q_dot, **params))
  assert 's8bqat_dot' in run.lower(x, w, bias, multiplier).as_text()
  wanted = dot._oracle(x, w, bias, multiplier, **params)
  np.testing.assert_array_equal(run(x, w, bias, multiplier), wanted)


@hypothesis.settings(max_examples=60, deadline=None)
@hypothesis.given(
  m=st.sampled_from((0, 1, 2, 5, 6, 7, 49, 100)),
  k=st.sampled_from((0, 1, 3, 4, 63, 64, 65, 255, 256, 300)),
  n=st.sampled_from((1, 15, 16, 17, 63, 64, 65, 130)),
  output_major=st.booleans(),
  zero=st.sampled_from((0, -128, 127)),
  kind=st.sampled_from(OUTS),
)
def test_equals_the_oracle(library, m, k, n, output_major, zero, kind):
  x, w, bias, multiplier = operands(m, k, n)
  out, shift = kind
  if not shift:  # The accumulators themselves.
    multiplier = np.ones_like(multiplier)
  w, axis = (w.T.copy(), 1) if output_major else (w, 0)
  check(x, w, bias, multiplier, (((1,), (axis,)), ((), ())), zero, out, shift)


def test_leading_axes_and_constants_lined_up_with_them(library):
  x = R.integers(-128, 128, (3, 20, 4)).astype(np.int8)
  _, w, bias, multiplier = operands(1, 20, 33)
  dims = (((1,), (0,)), ((), ()))  # Not the last axis.
  lined = bias.reshape(1, 1, -1)
  for one in (multiplier.reshape(1, 1, -1), np.int32(12345)):
    check(x, w, lined, one, dims, 7, *OUTS[0])


def test_extremes_wrap_as_int32(library):
  x = np.full((2, 2**17 + 8), -128, np.int8)
  w = np.full((2**17 + 8, 1), -128, np.int8)
  none = np.zeros(1, np.int32)
  dims = (((1,), (0,)), ((), ()))
  check(x, w, none, none + 1, dims, 0, *OUTS[2])


def test_what_it_does_not_cover_is_left_to_xla(library):
  x = R.integers(-128, 128, (2, 3, 8)).astype(np.int8)
  w = R.integers(-128, 128, (2, 8, 5)).astype(np.int8)
  params = {
    'dimension_numbers': (((2,), (1,)), ((0,), (0,))), 'zeros': (1, 2),
    'shift': 40, 'out': OUTS[0][0], 'site': '',
  }  # fmt: skip
  args = x, w, np.int32(4), np.int32(1 << 30)
  run = jax.jit(functools.partial(dot.q_dot, **params))
  assert 's8bqat_dot' not in run.lower(*args).as_text()
  np.testing.assert_array_equal(run(*args), dot._oracle(*args, **params))


def test_weights_of_a_loop_are_packed_once(library):
  _, w, bias, _ = operands(1, 64, 64)
  params = {
    'dimension_numbers': (((1,), (0,)), ((), ())), 'zeros': (0, 0),
    'shift': 38, 'out': OUTS[0][0], 'site': '',
  }  # fmt: skip
  step = lambda x, w: dot.q_dot(x, w, bias, np.int32(1 << 28), **params)
  run = jax.jit(
    lambda x, w: lax.scan(lambda c, _: (step(c, w), None), x, length=5)[0]
  )
  x = R.integers(-128, 128, (8, 64)).astype(np.int8)
  text = run.lower(x, w).compile().as_text()
  entry = text[text.index('ENTRY') :]
  assert text.count('s8bqat_pack') == entry.count('s8bqat_pack') == 1
  with native.disabled():
    wanted = x
    for _ in range(5):
      wanted = step(wanted, w)
  np.testing.assert_array_equal(run(x, w), wanted)


def test_disabled_compiles_without(library):
  x, w, bias, multiplier = operands(3, 4, 5)
  run = lambda: jax.jit(
    lambda x: dot.q_dot(
      x, w, bias, multiplier, dimension_numbers=(((1,), (0,)), ((), ())),
      zeros=(0, 0), shift=40, out=OUTS[0][0], site='',
    )
  ).lower(x).as_text()  # fmt: skip
  with native.disabled():
    assert 's8bqat_dot' not in run()
  assert 's8bqat_dot' in run()


@pytest.fixture
def empty_folder(tmp_path, monkeypatch):
  monkeypatch.setattr(native, '_FOLDER', tmp_path)
  return tmp_path


def test_no_compiler_is_told(empty_folder, monkeypatch):
  monkeypatch.delenv('CXX', raising=False)
  monkeypatch.setenv('PATH', str(empty_folder))
  with pytest.raises(RuntimeError, match='no C.. compiler: none of c..'):
    native.build()


@pytest.mark.parametrize(
  'compiler, said', [('/no/such/compiler', 'cannot run'), ('false', 'failed')]
)
def test_a_failing_compiler_leaves_nothing(
  empty_folder, monkeypatch, compiler, said
):
  monkeypatch.setenv('CXX', compiler)
  with pytest.raises(RuntimeError, match=said):
    native.build()
  assert not list(empty_folder.iterdir())


def test_not_built_is_not_used(empty_folder):
  native._registered.cache_clear()
  try:
    assert not native.available()
  finally:
    native._registered.cache_clear()


def test_a_file_that_is_no_library_is_not_used(empty_folder):
  native.path().write_bytes(b'of another system')
  native._registered.cache_clear()
  try:
    assert not native.available()
  finally:
    native._registered.cache_clear()
