import subprocess
import sys
import textwrap

import pytest

# In a process of its own: the setting lasts as long as the process.
_PROGRAM = textwrap.dedent("""
  import resource
  import numpy as np
  from s8bqat_jax import training

  def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
      np.ones(4_000_000)  # 32 MB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

  cold = faults()
  assert training.reuse_host_memory()
  faults()
  print(cold, faults())
""")


@pytest.mark.skipif(
  not sys.platform.startswith('linux'), reason='a setting of glibc'
)
def test_freed_memory_is_used_again_without_page_faults():
  found = subprocess.run(
    [sys.executable, '-c', _PROGRAM], capture_output=True, text=True, check=True
  ).stdout
  cold, warm = map(int, found.split())
  # Huge pages make fewer faults of the same clearing, so only ratios count.
  assert cold > 10
  assert warm < cold / 5
