"""The int8 product as machine code, for processors with AVX-512 VNNI.

XLA's CPU backend computes an int8 product without the processor's instruction
for it, and a matrix-vector product slower than float32. `dot.cc` is the same
product, requantization included, bit for bit. It is built on demand,

  python -m s8bqat_jax.integer.native

beside its source, by the system's C++ compiler, and from then on used where
the processor suits and XLA has nothing to partition. Without it, on other
processors, over several devices and in exported programs XLA's product stays;
what `jax.experimental.serialize_executable` writes needs it on the reader's
side too, unless it was compiled under `disabled`.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import math
import os
import pathlib
import platform
import shlex
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from concurrent import futures

import jax
import jax.numpy as jnp
import jaxlib
import numpy as np

from s8bqat_jax.integer import requantize

_SOURCE = pathlib.Path(__file__).with_name('dot.cc')
_FOLDER = _SOURCE.parent  # of what is built
_used = True
_PACK, _DOT = 's8bqat_pack', 's8bqat_dot'
COLUMNS = 64  # of a packed panel, as in the source
_SYMBOLS = 'S8bqatPack', 'S8bqatDot', 'S8bqatPeak', 'S8bqatSuits'
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
    RuntimeError: there is no compiler, it fails, or what it made does not
      load.
  """
  target = path()
  with contextlib.suppress(OSError):
    _load(target)
    return target
  if platform.machine() not in ('x86_64', 'AMD64'):
    raise RuntimeError(
      f'the native product is for x86-64 with AVX-512 VNNI, and this is '
      f"{platform.machine()}; integer programs run on XLA's own product"
    )
  try:
    with tempfile.TemporaryDirectory(
      dir=_FOLDER, prefix='_building-'
    ) as folder:
      made = pathlib.Path(folder) / target.name
      include = ['-isystem', jax.ffi.include_dir()]
      command = [*_compiler(), *_OPTIONS, *include, str(_SOURCE)]
      subprocess.run(
        [*command, '-o', str(made)], check=True, capture_output=True, text=True
      )
      try:
        _load(made)
      except OSError as e:
        raise RuntimeError(f'{shlex.join(command)} made no library: {e}') from e
      made.replace(target)
  except subprocess.CalledProcessError as e:
    raise RuntimeError(
      f'{shlex.join(e.cmd)} failed:\n{e.stderr[-2000:]}'
    ) from e
  except OSError as e:
    raise RuntimeError(f'cannot build {target}: {e}') from e
  for other in set(_FOLDER.glob('_dot-*.so')) - {target}:
    other.unlink(missing_ok=True)  # Of an older source or jaxlib.
  refusal.cache_clear()
  return target


def _compiler() -> list[str]:
  """The command of the C++ compiler."""
  try:
    asked = shlex.split(os.environ.get('CXX', ''))
  except ValueError as e:
    raise RuntimeError(f'CXX={os.environ["CXX"]!r} is no command: {e}') from e
  if asked:
    return asked
  for name in _COMPILERS:
    if found := shutil.which(name):
      return [found]
  raise RuntimeError(
    f'no C++ compiler: none of {", ".join(_COMPILERS)} is on PATH; install '
    "one or set CXX. Without it integer programs run on XLA's own product"
  )


def _load(file: pathlib.Path) -> ctypes.CDLL:
  """Loads the library; an OSError says why a file is none."""
  if not file.exists():
    raise FileNotFoundError(f'{file} does not exist')
  library = ctypes.CDLL(str(file))
  absent = [name for name in _SYMBOLS if not hasattr(library, name)]
  if absent:
    raise OSError(f'{file} has no {", ".join(absent)}')
  return library


def available() -> bool:
  """Whether programs compiled now use the library."""
  return _used and refusal() is None


@contextlib.contextmanager
def disabled() -> Iterator[None]:
  """Programs compiled inside use XLA's product, and do so ever after."""
  global _used
  before, _used = _used, False
  try:
    yield
  finally:
    _used = before


@functools.cache
def refusal() -> str | None:
  """Registers the library, or returns why it can't be used here."""
  if not _SOURCE.exists():
    return f'{_SOURCE} does not exist'
  try:
    library = _load(path())
  except OSError as e:
    return str(e)
  if not library.S8bqatSuits():
    return 'the processor has no AVX-512 VNNI, or it has AMX, which XLA uses'
  for name, handler in (_PACK, library.S8bqatPack), (_DOT, library.S8bqatDot):
    capsule = jax.ffi.pycapsule(handler)
    jax.ffi.register_ffi_target(name, capsule, platform='cpu')
  return None


def peak(rounds: int = 1 << 21) -> float:
  """Returns GOP/s of the processor's int8 instruction, on every core at once.

  Operands are registers: no product of matrices can be quicker.

  Args:
    rounds: of 24 instructions, by every core.
  """
  run = _load(path()).S8bqatPeak
  run.argtypes, run.restype = [ctypes.c_int64], ctypes.c_int64
  with futures.ThreadPoolExecutor() as pool:
    cores = len(os.sched_getaffinity(0))
    list(pool.map(run, [rounds] * cores))  # until they run at full speed
    start = time.perf_counter()
    done = sum(pool.map(run, [rounds] * cores))
  return done / (time.perf_counter() - start) / 1e9


def _pack(w: jax.Array, output_major: bool) -> jax.Array:
  """Weights as `dot` reads them, apart so that XLA takes it out of a loop."""
  k, n = w.shape[::-1] if output_major else w.shape
  # Groups of four weights, and of all of a column their sum.
  rows = COLUMNS * math.ceil(k / COLUMNS) // 4 + 1
  shape = math.ceil(n / COLUMNS), rows, COLUMNS
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
