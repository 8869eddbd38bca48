"""Settings that must stand before jax is imported.

Every test sees eight CPU devices. XLA skips its costly optimizations, because
tests compile much and run it once; JAX_DISABLE_MOST_OPTIMIZATIONS=0 make test
compiles as users do.
"""

import os
import pathlib

import pytest

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ.setdefault('JAX_DISABLE_MOST_OPTIMIZATIONS', '1')
_FLAG = '--xla_force_host_platform_device_count=8'
if _FLAG not in os.environ.get('XLA_FLAGS', ''):
  os.environ['XLA_FLAGS'] = f'{os.environ.get("XLA_FLAGS", "")} {_FLAG}'.strip()


@pytest.fixture(scope='session')
def real_data() -> pathlib.Path:
  """The folder of real corpora; tests that need it skip without it."""
  beside = pathlib.Path(__file__).parents[2] / 'shared' / 'data'
  folder = pathlib.Path(os.environ.get('S8BQAT_DATA', beside))
  if not folder.is_dir():
    pytest.skip('no real corpora: set S8BQAT_DATA to the folder that has them')
  return folder
