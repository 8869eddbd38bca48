"""The RNN-T loss against a dense one, and against fast_rnnt: time and memory.

One process measures everything in turn, round by round, each side after a run
that is not timed and with the memory that the side before it left to the
process given back: value and gradient with respect to encoder, prediction
network and joint weights,
logits = tanh(enc W + pred P) O, in float32. The joint is the tanh and O: the
two projections run once per frame and once per label, as in `models.rnnt`.

  ours       `losses.rnnt_loss`: logits of a few label states at a time
  dense      `losses.rnnt_loss_from_logits`: the [B, T, U + 1, V] tensor, but
             with our gather and our scan over diagonals, hence a strong peer
  fast_rnnt  its exact loss `rnnt_loss`, on the dense logits of PyTorch

Memory is the growth of the process's peak resident memory while a fresh
process computes one value and gradient, compiled code apart; for JAX also the
temporary bytes XLA plans. fast_rnnt needs PyTorch and is a source distribution
whose own build downloads pybind11; unpacked, it is compiled here (ninja, a C++
compiler) with the pybind11 that PyTorch has:

  pip download --no-deps --no-binary :all: fast_rnnt==1.3
  tar xzf fast_rnnt-1.3.tar.gz
  python -m benchmarks.rnnt_loss --fast_rnnt=fast_rnnt-1.3

Without it the rows of fast_rnnt are listed as not run. `--shapes` measures some
shapes; the rows of others stay, if the same revision measured them.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from experiments import results
from s8bqat_jax import losses, training

_ROUNDS = flags.DEFINE_integer('rounds', 3, 'Timed runs of each side.')
_FAST_RNNT = flags.DEFINE_string(
  'fast_rnnt', '', 'Unpacked source distribution of fast_rnnt.'
)
_SHAPES = flags.DEFINE_list('shapes', None, 'Shapes to measure; all if unset.')
_MEMORY = flags.DEFINE_string(
  'memory', '', 'Internal: SYSTEM/SHAPE, print its peak memory and exit.'
)

# B, T, U, V, the joint's width H, and labels of the longest transcript. The
# second is a batch of task A's training, padded as its bucket is.
SHAPES = {
  'B16 T40 U25 V32': (16, 40, 25, 32, 128, 25),
  'B32 T101 U44 (30) V256': (32, 101, 44, 256, 56, 30),
  'B4 T400 U80 V1024': (4, 400, 80, 1024, 256, 80),
  'B8 T250 U60 V4096': (8, 250, 60, 4096, 128, 60),
}
SYSTEMS = ('ours', 'dense', 'fast_rnnt')


def inputs(shape):
  B, T, U, V, H, longest = shape
  rng = np.random.default_rng(0)
  draw = lambda *s: np.float32(0.1) * rng.standard_normal(s, np.float32)
  weights = {'W': draw(H, H), 'P': draw(H, H), 'O': draw(H, V)}
  labels = rng.integers(1, V, size=(B, U)).astype(np.int32)
  # Half of the rows are full, the others down to half as long.
  shrink_B = np.minimum(1, np.linspace(1.5, 0.5, B))
  lengths = [np.array(n * shrink_B, np.int32) for n in (T, longest)]
  return (weights, draw(B, T, H), draw(B, U + 1, H)), (labels, *lengths)


def ours(weights, enc, pred, *rest):
  joint = lambda enc, pred: jnp.tanh(enc + pred) @ weights['O']
  enc, pred = enc @ weights['W'], pred @ weights['P']
  return losses.rnnt_loss(joint, enc, pred, *rest)


def dense_logits(weights, enc, pred):
  enc, pred = enc @ weights['W'], pred @ weights['P']
  return jnp.tanh(enc[:, :, None] + pred[:, None]) @ weights['O']


def dense(weights, enc, pred, *rest):
  return losses.rnnt_loss_from_logits(dense_logits(weights, enc, pred), *rest)


def jax_run(loss, shape):
  """A function of no arguments: (value, gradients); and temp bytes."""
  args, rest = inputs(shape)
  # Sizes are arguments, so that nothing folds into the program.
  grad = jax.value_and_grad(
    lambda args, rest: loss(*args, *rest).mean(), argnums=0
  )
  args, rest = jax.device_put((args, rest))
  compiled = jax.jit(grad).lower(args, rest).compile()
  run = lambda: jax.block_until_ready(compiled(args, rest))
  memory = compiled.memory_analysis()
  return run, memory.temp_size_in_bytes if memory else None


def import_fast_rnnt():
  """Its Python files as they are; its C++ compiled once, in its own folder."""
  if not _FAST_RNNT.value:
    return importlib.import_module('fast_rnnt')
  from torch.utils import cpp_extension

  root = pathlib.Path(_FAST_RNNT.value).resolve()
  if '_fast_rnnt' not in sys.modules:
    build = root / 'build_for_benchmark'
    build.mkdir(exist_ok=True)
    sources = []
    for name in [
      'csrc/mutual_information_cpu.cu',
      'python/csrc/fast_rnnt.cu',
      'python/csrc/mutual_information.cu',
    ]:
      # Plain C++ in spite of the suffix, as its CMake file knows.
      copy = build / (name.replace('/', '_').removesuffix('.cu') + '.cc')
      source = root / 'fast_rnnt' / name
      if not copy.exists() or copy.read_bytes() != source.read_bytes():
        shutil.copy(source, copy)
      sources.append(str(copy))
    sys.modules['_fast_rnnt'] = cpp_extension.load(
      '_fast_rnnt',
      sources,
      extra_include_paths=[str(root)],
      extra_cflags=['-O3'],
      build_directory=str(build),
    )
  sys.path.insert(0, str(root / 'fast_rnnt' / 'python'))
  return importlib.import_module('fast_rnnt')


def torch_run(shape):
  """The same through fast_rnnt's exact loss."""
  import torch

  fast_rnnt = import_fast_rnnt()
  torch.set_num_threads(len(os.sched_getaffinity(0)))
  (weights, enc, pred), (labels, enc_lengths, label_lengths) = inputs(shape)
  tensor = lambda x: torch.tensor(x, requires_grad=True)
  weights = {k: tensor(v) for k, v in weights.items()}
  leaves = [*weights.values(), tensor(enc), tensor(pred)]
  labels = torch.tensor(labels, dtype=torch.int64)
  boundary = torch.zeros([len(enc), 4], dtype=torch.int64)
  boundary[:, 2] = torch.tensor(label_lengths)
  boundary[:, 3] = torch.tensor(enc_lengths)

  def run():
    *_, enc_t, pred_t = leaves
    hidden = torch.tanh(
      (enc_t @ weights['W'])[:, :, None] + (pred_t @ weights['P'])[:, None]
    )
    logits = hidden @ weights['O']
    loss = fast_rnnt.rnnt_loss(
      logits=logits,
      symbols=labels,
      termination_symbol=0,
      boundary=boundary,
      reduction='mean',
    )
    names = ['W', 'P', 'O']
    grads = torch.autograd.grad(loss, leaves)
    return loss.item(), (
      dict(zip(names, [g.numpy() for g in grads[:3]], strict=True)),
      grads[3].numpy(),
      grads[4].numpy(),
    )

  return run, None


def make(system, shape):
  if system == 'fast_rnnt':
    return torch_run(shape)
  return jax_run({'ours': ours, 'dense': dense}[system], shape)


def peak_memory(system, name):
  """Peak resident bytes of one run in a fresh process, above its start."""
  done = subprocess.run(
    [
      *[sys.executable, '-m', 'benchmarks.rnnt_loss'],
      f'--memory={system}/{name}',
      f'--fast_rnnt={_FAST_RNNT.value}',
    ],
    capture_output=True,
    text=True,
  )
  if done.returncode:
    raise RuntimeError(f'{system} at {name} failed:\n{done.stderr[-2000:]}')
  return json.loads(done.stdout.splitlines()[-1])


def print_peak_memory(system, name):
  run, _ = make(system, SHAPES[name])
  # A first run at a tiny size loads what a library loads once.
  make(system, (1, 2, 1, 4, 4, 1))[0]()
  # Compiling peaked higher than a small run does: Linux forgets the peak.
  pathlib.Path('/proc/self/clear_refs').write_text('5')
  before = _status('VmRSS')
  run()
  print(json.dumps(_status('VmHWM') - before))


def _status(field):
  """Bytes of a line of /proc/self/status, which counts in kB."""
  for line in pathlib.Path('/proc/self/status').read_text().splitlines():
    if line.startswith(field + ':'):
      return 1024 * int(line.split()[1])
  raise RuntimeError(f'/proc/self/status has no {field}')


def check_equal(reference, other, system):
  """Same value and gradients, or there is nothing to compare."""
  np.testing.assert_allclose(other[0], reference[0], rtol=1e-4, err_msg=system)
  for a, b in zip(
    jax.tree.leaves(reference[1]), jax.tree.leaves(other[1]), strict=True
  ):
    scale = np.abs(a).max()
    np.testing.assert_allclose(b, a, atol=2e-3 * scale, err_msg=system)


def measure(name, systems):
  """Rows of one shape."""
  # Before this process holds what timing leaves with it.
  peaks = {system: peak_memory(system, name) for system in systems}
  runs = {system: make(system, SHAPES[name]) for system in systems}
  seconds: dict[str, list[float]] = {system: [] for system in systems}
  reference = None
  for _ in range(_ROUNDS.value):
    for system in systems:
      ctypes.CDLL(None).malloc_trim(0)
      found = runs[system][0]()
      if reference is None:
        reference = jax.tree.map(np.array, found)
      check_equal(reference, found, system)
      del found
      start = time.perf_counter()
      runs[system][0]()
      seconds[system].append(time.perf_counter() - start)
  rows = []
  for system in systems:
    temp = runs[system][1]
    rows.append(
      {
        'system': name,
        'method': system,
        'metrics': {
          'milliseconds': 1e3 * statistics.median(seconds[system]),
          'peak_megabytes': peaks[system] / 1e6,
          **({} if temp is None else {'xla_temp_megabytes': temp / 1e6}),
        },
      }
    )
  return rows


def compare(rows):
  """Ratios to ours: above 1 means ours is smaller or faster."""
  ours_of = {
    row['system']: row['metrics'] for row in rows if row['method'] == 'ours'
  }
  comparisons = []
  for row in rows:
    if row['method'] == 'ours':
      continue
    mine = ours_of[row['system']]
    for metric, value in row['metrics'].items():
      comparisons.append(
        {
          'a': row['method'],
          'b': 'ours',
          'system': row['system'],
          'metric': metric,
          'ratio': value / max(mine[metric], 1e-3),
        }
      )
  return comparisons


def write(rows, not_run):
  """Writes what is measured so far; other shapes are listed as not run."""
  measured = {row['system'] for row in rows}
  missing = [
    {'system': name, 'reason': 'not measured'}
    for name in SHAPES
    if name not in measured
  ]
  results.write(
    'rnnt_loss', rows, comparisons=compare(rows), not_run=not_run + missing
  )


def earlier(asked):
  """Rows of shapes not asked for, if the file has them of this revision."""
  if not (results.FOLDER / 'rnnt_loss.json').exists():
    return []
  before = results.read('rnnt_loss')
  if before['revision'] != results.revision()[0]:
    return []
  return [row for row in before['rows'] if row['system'] not in asked]


def main(_):
  if _MEMORY.value:
    print_peak_memory(*_MEMORY.value.split('/'))
    return
  # As training does; PyTorch, in the same process, gains too.
  training.reuse_host_memory()
  asked = _SHAPES.value or SHAPES
  systems, not_run = list(SYSTEMS), []
  try:
    import_fast_rnnt()
  except ImportError as error:
    systems.remove('fast_rnnt')
    not_run = [{'method': 'fast_rnnt', 'reason': str(error)}]
    print(f'fast_rnnt is not run: {error}')
  rows = earlier(asked)
  print(
    f'{"shape":30} {"loss":10} {"ms":>9} {"peak MB":>9} {"XLA temp MB":>12}'
  )
  for name in asked:
    for row in measure(name, systems):
      rows.append(row)
      metrics = row['metrics']
      temp = metrics.get('xla_temp_megabytes')
      print(
        f'{name:30} {row["method"]:10} {metrics["milliseconds"]:9.1f} '
        f'{metrics["peak_megabytes"]:9.1f} '
        f'{"" if temp is None else format(temp, "12.1f")}',
        flush=True,
      )
    write(rows, not_run)
  for c in compare(rows):
    print(
      f'{c["system"]:30} {c["a"]:10} / ours {c["metric"]:20} {c["ratio"]:8.2f}'
    )


if __name__ == '__main__':
  app.run(main)
