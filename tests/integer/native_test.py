"""The product in machine code: bit for bit the oracle's, whatever the shape."""

import functools
import os
import pathlib
import shutil
import subprocess
import sys
from concurrent import futures

import hypothesis
import jax
import numpy as np
import pytest
from hypothesis import strategies as st
from jax import export, lax

from s8bqat_jax.integer import dot, native
from s8bqat_jax.integer.requantize import Out

R = np.random.default_rng(0)
MATMUL = (((1,), (0,)), ((), ()))
OUTS = {
  'int8': Out(3, -128, 127),
  'int16': Out(0, -32767, 32767, 'int16'),
  'int32': Out(0, -(2**31), 2**31 - 1, 'int32'),
}


def suits() -> bool:
  """Whether this machine should be able to build and run the library."""
  cpuinfo = pathlib.Path('/proc/cpuinfo')
  flags = cpuinfo.read_text().split() if cpuinfo.exists() else []
  compilers = 'c++', 'g++', 'clang++'
  return (
    'avx512_vnni' in flags
    and 'amx_int8' not in flags
    and any(map(shutil.which, compilers))
  )


@pytest.fixture(scope='session')
def build_folder(tmp_path_factory):
  """One for a process, which can't register a second library."""
  return tmp_path_factory.mktemp('native')


@pytest.fixture(scope='module')
def library(build_folder):
  """Builds it if it is not there; skips where it can't run."""
  if not suits():
    pytest.skip('no C++ compiler, no AVX-512 VNNI, or AMX')
  if not native.available():
    native._FOLDER = build_folder
    native.build()
    native.refusal.cache_clear()
  assert native.available(), native.refusal()
  yield native
  native._FOLDER = native._SOURCE.parent
  native.refusal.cache_clear()


def operands(m, k, n):
  x = R.integers(-128, 128, (m, k)).astype(np.int8)
  w = R.integers(-128, 128, (k, n)).astype(np.int8)
  bias = R.integers(-(2**12), 2**12, n).astype(np.int32)
  multiplier = R.integers(-(2**31) + 1, 2**31 - 1, n).astype(np.int32)
  return x, w, bias, multiplier


def params(dims=MATMUL, zeros=(0, 0), out=OUTS['int8'], shift=40):
  return {
    'dimension_numbers': dims, 'zeros': zeros, 'shift': shift, 'out': out,
    'site': '',
  }  # fmt: skip


def compiles_to(args, **kw) -> bool:
  """Whether a product is native; checks its values either way."""
  run = jax.jit(functools.partial(dot.q_dot, **kw))
  np.testing.assert_array_equal(run(*args), dot._oracle(*args, **kw))
  return 's8bqat_dot' in run.lower(*args).as_text()


@hypothesis.settings(max_examples=60)
@hypothesis.given(
  m=st.sampled_from((0, 1, 2, 5, 6, 7, 49, 100)),
  k=st.sampled_from((0, 1, 3, 4, 63, 64, 65, 255, 256, 300)),
  n=st.sampled_from((16, 17, 63, 64, 65, 130)),
  output_major=st.booleans(),
  zero=st.sampled_from((0, -128, 127, 2**31 - 1)),
  kind=st.sampled_from(sorted(OUTS)),
  extra=st.integers(-2, 2),
)
def test_equals_the_oracle(library, m, k, n, output_major, zero, kind, extra):
  x, w, bias, multiplier = operands(m, k, n)
  # Most results are within the range of their codes, some are not.
  bits = {'int8': 8, 'int16': 16, 'int32': 32}[kind]
  largest = 14 + int(np.ceil(np.log2(k + 1) / 2)) + 31
  shift = min(max(largest - bits + 1 + extra, 0), 62)
  w, axis = (w.T.copy(), 1) if output_major else (w, 0)
  dims = (((1,), (axis,)), ((), ()))
  assert compiles_to(
    (x, w, bias, multiplier), **params(dims, (zero, 0), OUTS[kind], shift)
  )


@pytest.mark.parametrize('shift', [0, 1, 2, 31, 32, 62])
def test_rounds_half_up_at_every_shift(library, shift):
  """Accumulators around 0 by a power of two: every fourth is a tie."""
  x = np.arange(-64, 64, dtype=np.int8)[:, None]
  w = np.ones((1, 16), np.int8)
  multiplier = np.full(16, 1 << min(max(shift - 2, 0), 30), np.int32)
  bias = np.zeros(16, np.int32)
  assert compiles_to((x, w, bias, multiplier), **params(shift=shift))


def test_one_constant_for_all_columns(library):
  x, w, bias, multiplier = operands(3, 20, 70)
  for b, m in (bias[:1], multiplier[:1]), (bias[0], multiplier[0]):
    assert compiles_to((x, w, b, m), **params(shift=36))


def test_leading_axes_and_constants_lined_up_with_them(library):
  x = R.integers(-128, 128, (3, 20, 4)).astype(np.int8)
  _, w, bias, multiplier = operands(1, 20, 33)
  lined = bias.reshape(1, 1, -1)
  for one in (multiplier.reshape(1, 1, -1), np.int32(12345678)):
    args = x, w, lined, one  # The contracted axis is not the last.
    assert compiles_to(args, **params(zeros=(7, 0), shift=36))


def test_extremes_wrap_as_int32(library):
  x = np.full((2, 2**17 + 8), -128, np.int8)
  w = np.full((2**17 + 8, 16), -128, np.int8)
  none, one = np.zeros(1, np.int32), np.ones(1, np.int32)
  assert compiles_to((x, w, none, one), **params(out=OUTS['int32'], shift=0))


def test_many_threads_at_once(library):
  """Calls wait for the last of their panels, whoever computes it."""
  x, w, bias, multiplier = operands(64, 512, 1024)
  kw = params(shift=42)
  run = jax.jit(functools.partial(dot.q_dot, **kw))
  wanted = dot._oracle(x, w, bias, multiplier, **kw)

  def work(_):
    return all(
      np.array_equal(run(x, w, bias, multiplier), wanted) for _ in range(25)
    )

  with futures.ThreadPoolExecutor(4) as pool:
    assert all(pool.map(work, range(4)))


X, W, BIAS, MULTIPLIER = operands(3, 20, 32)
LEFT_TO_XLA = {
  'batched': (
    (X.reshape(1, 3, 20), W.reshape(1, 20, 32), BIAS, MULTIPLIER),
    params((((2,), (1,)), ((0,), (0,)))),
  ),
  'two contracted axes': (
    (X.reshape(3, 4, 5), W.reshape(4, 5, 32), BIAS, MULTIPLIER),
    params((((1, 2), (0, 1)), ((), ()))),
  ),
  'two contracted axes of one matrix': (
    (np.ones((2, 20, 32), np.int8), W, BIAS[0], MULTIPLIER[0]),
    params((((1, 2), (0, 1)), ((), ()))),
  ),
  'weights of a zero point': ((X, W, BIAS, MULTIPLIER), params(zeros=(1, 2))),
  'int16': ((X.astype(np.int16), W, BIAS, MULTIPLIER), params()),
  'few columns': ((X, W[:, :3], BIAS[:3], MULTIPLIER[:3]), params()),
  'constants per row': ((X, W, BIAS[:3, None], MULTIPLIER[:3, None]), params()),
  'a bias of int16': ((X, W, BIAS.astype(np.int16), MULTIPLIER), params()),
  'codes of uint8': (
    (X, W, BIAS, MULTIPLIER), params(out=Out(0, 0, 200, 'uint8'))
  ),
}  # fmt: skip


@pytest.mark.parametrize('case', LEFT_TO_XLA)
def test_the_rest_is_left_to_xla(library, case):
  args, kw = LEFT_TO_XLA[case]
  assert not compiles_to(args, **kw)


def test_an_exported_program_is_xlas(library):
  run = jax.jit(functools.partial(dot.q_dot, **params()))
  args = X, W, BIAS, MULTIPLIER
  exported = export.export(run)(*args)
  assert 's8bqat_dot' not in exported.mlir_module()
  again = export.deserialize(exported.serialize())
  np.testing.assert_array_equal(again.call(*args), run(*args))


def test_a_partitioned_program_is_xlas(library):
  """In a process of its own, which needs several devices."""
  code = """
import functools, jax, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
from s8bqat_jax.integer import native, dot
from tests.integer import native_test as t
native._FOLDER = native._SOURCE.__class__(__FOLDER__)
assert native.available(), native.refusal()
mesh = jax.make_mesh((2,), ('d',))
x = jax.device_put(np.tile(t.X, (2, 1)), NamedSharding(mesh, P('d')))
kw = t.params()
run = jax.jit(functools.partial(dot.q_dot, **kw))
args = x, t.W, t.BIAS, t.MULTIPLIER
assert 's8bqat_dot' not in run.lower(*args).as_text()
y = run(*args)
assert y.sharding.spec[0] == 'd', y.sharding
np.testing.assert_array_equal(y, dot._oracle(*map(np.asarray, args), **kw))
shard = jax.jit(jax.shard_map(lambda x: dot.q_dot(x, *args[1:], **kw),
                mesh=mesh, in_specs=P('d'), out_specs=P('d')))
assert 's8bqat_dot' in shard.lower(x).as_text()
np.testing.assert_array_equal(shard(x), y)
"""
  done = subprocess.run(
    [
      sys.executable,
      '-c',
      code.replace('__FOLDER__', repr(str(native._FOLDER))),
    ],
    env=os.environ | {'XLA_FLAGS': '--xla_force_host_platform_device_count=2'},
    cwd=pathlib.Path(__file__).parents[2],
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr[-2000:]


def test_weights_of_a_loop_are_packed_once(library):
  _, w, bias, _ = operands(1, 64, 64)
  kw = params(shift=38)
  step = lambda x, w: dot.q_dot(x, w, bias, np.int32(1 << 28), **kw)
  run = jax.jit(
    lambda x, w: lax.scan(lambda c, _: (step(c, w), None), x, length=5)[0]
  )
  x = R.integers(-128, 128, (8, 64)).astype(np.int8)
  text = run.lower(x, w).compile().as_text()
  entry = text[text.index('ENTRY') :]
  assert text.count('s8bqat_pack') == entry.count('s8bqat_pack') == 1
  wanted = x
  for _ in range(5):
    wanted = dot._oracle(wanted, w, bias, np.int32(1 << 28), **kw)
  np.testing.assert_array_equal(run(x, w), wanted)


def test_the_peak_is_a_speed(library):
  assert 1 < native.peak(rounds=1 << 12) < 1e6


def test_disabled_compiles_without(library):
  lower = lambda: (
    jax.jit(functools.partial(dot.q_dot, **params()))
    .lower(X, W, BIAS, MULTIPLIER)
    .as_text()
  )
  with native.disabled():
    assert 's8bqat_dot' not in lower()
  assert 's8bqat_dot' in lower()


@pytest.fixture
def empty_folder(tmp_path, monkeypatch):
  folder = tmp_path / 'native'
  folder.mkdir()
  monkeypatch.setattr(native, '_FOLDER', folder)
  native.refusal.cache_clear()
  yield folder
  native.refusal.cache_clear()


@pytest.fixture
def x86(monkeypatch):
  monkeypatch.setattr(native.platform, 'machine', lambda: 'x86_64')


def compiler(folder, body) -> str:
  """Returns the path of a compiler that does what `body` says."""
  script = folder.parent / 'compiler'
  script.write_text(f'#!/bin/sh\nfor out; do :; done\n{body}\n')
  script.chmod(0o755)
  return str(script)


def test_not_built_is_not_used(empty_folder):
  assert not native.available()
  assert 'does not exist' in native.refusal()


def test_what_does_not_load_is_not_used(empty_folder):
  native.path().write_bytes(b'of another system')
  assert not native.available()


def test_without_its_source_nothing_is_used(empty_folder, monkeypatch):
  monkeypatch.setattr(native, '_SOURCE', empty_folder / 'dot.cc')
  assert 'dot.cc does not exist' in native.refusal()


def test_no_compiler_is_told(empty_folder, monkeypatch, x86):
  monkeypatch.delenv('CXX', raising=False)
  monkeypatch.setenv('PATH', str(empty_folder))
  with pytest.raises(RuntimeError, match='no C.. compiler: none of c..'):
    native.build()


def test_other_processors_are_told(empty_folder, monkeypatch):
  monkeypatch.setattr(native.platform, 'machine', lambda: 'arm64')
  with pytest.raises(RuntimeError, match='x86-64.*arm64'):
    native.build()


@pytest.mark.parametrize(
  'body, said',
  [
    ('echo "dot.cc: no such intrinsic" >&2; exit 1', 'no such intrinsic'),
    ('exit 0', 'made no library: .*does not exist'),
    ('echo junk > "$out"', 'made no library'),
  ],
)
def test_a_failing_compiler_leaves_nothing(
  empty_folder, monkeypatch, x86, body, said
):
  monkeypatch.setenv('CXX', compiler(empty_folder, body))
  with pytest.raises(RuntimeError, match=said):
    native.build()
  assert not list(empty_folder.iterdir())


@pytest.mark.parametrize(
  'command, said', [('/no/compiler', 'cannot build'), ("'", 'is no command')]
)
def test_cxx_is_checked(empty_folder, monkeypatch, x86, command, said):
  monkeypatch.setenv('CXX', command)
  with pytest.raises(RuntimeError, match=said):
    native.build()
  assert not list(empty_folder.iterdir())


def test_a_folder_that_takes_no_file_is_told(empty_folder, monkeypatch, x86):
  monkeypatch.setenv('CXX', compiler(empty_folder, 'exit 0'))
  monkeypatch.setattr(native, '_FOLDER', empty_folder / 'absent')
  with pytest.raises(RuntimeError, match='cannot build.*absent'):
    native.build()
