"""Every test sees eight CPU devices, set before jax is imported."""

import os
import pathlib

import pytest

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
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


@pytest.fixture(scope='module')
def quick_compilation():
  """For modules that compile large programs and run them a few times."""
  import jax  # After the flags above.

  before = jax.config.read('jax_disable_most_optimizations')
  jax.config.update('jax_disable_most_optimizations', True)
  yield
  jax.config.update('jax_disable_most_optimizations', before)
