import subprocess
import sys
import textwrap

import pytest

from s8bqat_jax.training import host_memory

# In a process of its own: the setting lasts as long as the process.
_PROGRAM = textwrap.dedent("""
  import concurrent.futures
  import importlib.util
  import resource
  import sys
  import numpy as np
  # Alone: what imports jax takes seconds.
  spec = importlib.util.spec_from_file_location('host_memory', sys.argv[3])
  host_memory = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(host_memory)

  def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
      np.ones(int(sys.argv[1]))
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

  cold = faults()
  assert host_memory.reuse_host_memory()
  with concurrent.futures.ThreadPoolExecutor(1) as thread:
    run = lambda: thread.submit(faults).result()
    if sys.argv[2] == 'first thread':
      run = faults
    run()
    print(cold, run())
""")


@pytest.mark.skipif(
  not sys.platform.startswith('linux'), reason='a setting of glibc'
)
# An arena of a thread has 64 MB.
@pytest.mark.parametrize('megabytes', [32, 96])
@pytest.mark.parametrize('where', ['first thread', 'other thread'])
def test_freed_memory_is_used_again_without_page_faults(megabytes, where):
  size = str(125_000 * megabytes)
  command = [sys.executable, '-c', _PROGRAM, size, where, host_memory.__file__]
  found = subprocess.run(command, capture_output=True, text=True, check=True)
  cold, warm = map(int, found.stdout.split())
  # Huge pages make fewer faults of the same clearing, so only ratios count.
  assert cold > 10
  assert warm < cold / 5
