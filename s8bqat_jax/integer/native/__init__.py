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

import ctypes
import functools
import hashlib
import os
import pathlib
import shlex
import shutil
import subprocess
import tempfile

import jax
import jaxlib
import numpy as np

from s8bqat_jax.integer import requantize

_SOURCE = pathlib.Path(__file__).with_name('dot.cc')
_TARGET = 's8bqat_dot'
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
  return _SOURCE.with_name(f'_dot-{digest}.so')


def build() -> pathlib.Path:
  """Compiles the library if it is not there; returns its path.

  Raises:
    RuntimeError: there is no compiler, or it fails.
  """
  target = path()
  if target.exists():
    return target
  compiler = shlex.split(os.environ.get('CXX', '')) or [
    found for name in _COMPILERS if (found := shutil.which(name))
  ][:1]
  if not compiler:
    raise RuntimeError(
      f'no C++ compiler: none of {", ".join(_COMPILERS)} is on PATH; install '
      'one or set CXX. Without it integer programs run on XLA\'s own product'
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


@functools.cache
def available() -> bool:
  """Whether the library is built and this processor suits; registers it."""
  if not path().exists():
    return False
  try:
    library = ctypes.CDLL(str(path()))
  except OSError:  # Of another system, on a shared disk.
    return False
  if not library.S8bqatSuits():
    return False
  handler = jax.ffi.pycapsule(library.S8bqatDot)
  jax.ffi.register_ffi_target(_TARGET, handler, platform='cpu')
  return True


def dot(
  x_MxK: jax.Array,
  w_KxN: jax.Array,
  bias: jax.Array,
  multiplier: jax.Array,
  *,
  zero: int,
  shift: int,
  out: requantize.Out,
) -> jax.Array:
  """Returns requantize((x - zero) w + bias), int32 sums modulo 2^32.

  Args:
    x_MxK: int8.
    w_KxN: int8.
    bias: int32, one or [N].
    multiplier: int32, one or [N].
    zero: of x.
    shift: of the requantization.
    out: what the result may be.

  Returns:
    [M, N] of `out.dtype`.
  """
  shape = x_MxK.shape[0], w_KxN.shape[1]
  call = jax.ffi.ffi_call(_TARGET, jax.ShapeDtypeStruct(shape, out.dtype))
  numbers = {
    'zero_x': zero,
    'shift': shift,
    'zero': out.zero,
    'low': out.low,
    'high': out.high,
  }
  numbers = {name: np.int32(value) for name, value in numbers.items()}
  return call(x_MxK, w_KxN, bias, multiplier, **numbers)
