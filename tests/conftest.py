"""Settings that must stand before jax is imported.

Every test sees eight CPU devices. XLA skips its costly optimizations, because
tests compile much and run it once, and its emitters of fused loops, which are
most of what is left; JAX_DISABLE_MOST_OPTIMIZATIONS=0 make test compiles as
users do. What one process has compiled, the others of the same run read:
workers, notebooks, commands.
"""

import importlib.metadata
import os
import pathlib
import tempfile
from collections.abc import Callable

import hypothesis
import pytest

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ.setdefault('JAX_DISABLE_MOST_OPTIMIZATIONS', '1')
if 'JAX_COMPILATION_CACHE_DIR' not in os.environ:
  _compiled = tempfile.TemporaryDirectory(prefix='s8bqat_jax_compiled_')
  os.environ['JAX_COMPILATION_CACHE_DIR'] = _compiled.name
  os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0.1'
_FLAGS = ['--xla_force_host_platform_device_count=8']
# Later versions have no such flag, and end the process that names it.
_quick = os.environ['JAX_DISABLE_MOST_OPTIMIZATIONS'] not in ('0', 'false', '')
if _quick and importlib.metadata.version('jaxlib').startswith('0.10.'):
  _FLAGS.append('--xla_cpu_use_fusion_emitters=false')
_given = os.environ.get('XLA_FLAGS', '').split()
os.environ['XLA_FLAGS'] = ' '.join(
  [*_given, *(flag for flag in _FLAGS if flag not in _given)]
)


# Examples compile, write files and share the cores with other tests.
hypothesis.settings.register_profile('any machine', deadline=None)
hypothesis.settings.load_profile('any machine')


@pytest.fixture(scope='session')
def corpora() -> Callable[[str], pathlib.Path]:
  """Returns name -> folder of a real corpus; skips a test without it."""
  beside = pathlib.Path(__file__).parents[2] / 'shared' / 'data'
  root = pathlib.Path(os.environ.get('S8BQAT_DATA', beside))

  def folder(name):
    if not (root / name).is_dir():
      pytest.skip(
        f'no corpus {name}: set S8BQAT_DATA to the folder that has it'
      )
    return root / name

  return folder
