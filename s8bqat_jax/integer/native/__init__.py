"""The int8 product as machine code, for processors with AVX-512 VNNI.

XLA's CPU backend computes an int8 product without the processor's instruction
for it, and a matrix-vector product slower than float32. `dot.cc` is the same
product, requantization included, bit for bit: with it a program runs faster
and computes nothing else. It is built on demand,

  python -m s8bqat_jax.integer.native

beside its source, by the system's C++ compiler, and used from then on where
the processor suits. Without it, or on other processors, XLA's product stays.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import math
import os
import pathlib
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import jaxlib
import numpy as np

from s8bqat_jax.integer import requantize

_SOURCE = pathlib.Path(__file__).with_name('dot.cc')
_FOLDER = _SOURCE.parent  # of what is built
_used = True
_PACK, _DOT = 's8bqat_pack', 's8bqat_dot'
_COLUMNS = 64  # of a packed panel, as in the source
_COMPILERS = 'c++', 'g++', 'clang++'
_OPTIONS = (
  '-std=c++17',
  '-O3',
  '-fPIC',
  '-shared',
  *(f'-mavx512{part}' for part in ('f', 'bw', 'dq', 'vl', 'vnni')),
)


def path() -> pathlib.Path:
  """Returns where the library for this source and this jaxlib lies."""
  made_of = [_SOURCE.read_text(), jaxlib.__version__, *_OPTIONS]
  digest = hashlib.sha256('\0'.join(made_of).encode()).hexdigest()[:12]
  return _FOLDER / f'_dot-{digest}.so'


def build() -> pathlib.Path:
  """Compiles the library if it is not there; returns its path.

  Raises:
    RuntimeError: there is no compiler, or it fails.
  """
  target = path()
  if target.exists():
    return target
  compiler = (
    shlex.split(os.environ.get('CXX', ''))
    or [found for name in _COMPILERS if (found := shutil.which(name))][:1]
  )
  if not compiler:
    raise RuntimeError(
      f'no C++ compiler: none of {", ".join(_COMPILERS)} is on PATH; install '
      "one or set CXX. Without it integer programs run on XLA's own product"
    )
  with tempfile.TemporaryDirectory(dir=target.parent) as folder:
    made = pathlib.Path(folder) / target.name
    include = ['-isystem', jax.ffi.include_dir()]
    command = [*compiler, *_OPTIONS, *include, str(_SOURCE), '-o', str(made)]
    try:
      subprocess.run(command, check=True, capture_output=True, text=True)
    except OSError as e:
      raise RuntimeError(f'cannot run {shlex.join(compiler)}: {e}') from e
    except subprocess.CalledProcessError as e:
      raise RuntimeError(
        f'{shlex.join(command)} failed:\n{e.stderr[-2000:]}'
      ) from e
    made.replace(target)
  return target


def available() -> bool:
  """Whether programs compiled now use the library."""
  return _used and _registered()


@contextlib.contextmanager
def disabled() -> Iterator[None]:
  """Programs that are first compiled inside use XLA's product."""
  global _used
  before, _used = _used, False
  try:
    yield
  finally:
    _used = before


@functools.cache
def _registered() -> bool:
  """Registers the library if it is built and this processor suits."""
  if not path().exists():
    return False
  try:
    library = ctypes.CDLL(str(path()))
  except OSError:  # Of another system, on a shared disk.
    return False
  if not library.S8bqatSuits():
    return False
  for name, handler in (_PACK, library.S8bqatPack), (_DOT, library.S8bqatDot):
    capsule = jax.ffi.pycapsule(handler)
    jax.ffi.register_ffi_target(name, capsule, platform='cpu')
  return True


def _pack(w: jax.Array, output_major: bool) -> jax.Array:
  """Weights as `dot` reads them, apart so that XLA takes it out of a loop."""
  k, n = w.shape[::-1] if output_major else w.shape
  # Groups of four weights, and of all of a column their sum.
  rows = _COLUMNS * math.ceil(k / _COLUMNS) // 4 + 1
  shape = math.ceil(n / _COLUMNS), rows, _COLUMNS
  call = jax.ffi.ffi_call(_PACK, jax.ShapeDtypeStruct(shape, jnp.int32))
  return call(w, output_major=output_major)


def dot(
  x_MxK: jax.Array,
  w: jax.Array,
  bias: jax.Array,
  multiplier: jax.Array,
  *,
  output_major: bool,
  zero: int,
  shift: int,
  out: requantize.Out,
) -> jax.Array:
  """Returns requantize((x - zero) w + bias), int32 sums modulo 2^32.

  Args:
    x_MxK: int8.
    w: int8 [K, N], or [N, K] if `output_major`.
    bias: int32 [1] or [N].
    multiplier: int32 [1] or [N].
    output_major: how `w` lies.
    zero: of x.
    shift: of the requantization.
    out: what the result may be.

  Returns:
    [M, N] of `out.dtype`.
  """
  shape = x_MxK.shape[0], w.shape[0 if output_major else 1]
  if x_MxK.shape[0] > 1:
    w = _pack(w, output_major)
  call = jax.ffi.ffi_call(_DOT, jax.ShapeDtypeStruct(shape, out.dtype))
  numbers = {
    'zero_x': zero,
    'shift': shift,
    'zero': out.zero,
    'low': out.low,
    'high': out.high,
  }
  attributes = {name: np.int32(value) for name, value in numbers.items()}
  return call(
    x_MxK, w, bias, multiplier, output_major=output_major, **attributes
  )
