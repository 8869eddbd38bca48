"""Size and load time of packed files of a ten-million-parameter tree.

Sizes at n = 1..8 and ternary against the ideal n / 8 bytes a weight, entropy
coding as the second column; load times (best of several, interleaved) against
an orbax restore of the same QTensors and of the float32 tree.
"""

import functools
import pathlib
import tempfile
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import app, logging

from experiments import results, usage
from s8bqat_jax.artifacts import names, packed_file, qtensor
from s8bqat_jax.quantizers import codebook, lloyd_max

_REPEATS = 5
# A recurrent transducer: six LSTM layers, prediction network, joint, output.
_SHAPES = {
  **{f'encoder/lstm_{i}/kernel': (1024, 1280) for i in range(6)},
  **{f'prediction/lstm_{i}/kernel': (640, 1280) for i in range(2)},
  'prediction/embedding/table': (512, 320),
  'joint/encoder/kernel': (320, 512),
  'joint/prediction/kernel': (320, 512),
  'joint/output/kernel': (512, 512),
}


def _weights():
  rng = np.random.default_rng(0)
  return {
    name: (rng.standard_normal(shape) / np.sqrt(shape[0])).astype(np.float32)
    for name, shape in _SHAPES.items()
  }


def _quantize(w, levels):
  if levels == 3:
    scale = np.float32(1.22 * w.std())
    codes = np.clip(np.round(w / scale), -1, 1).astype(np.int8)
    return qtensor.QTensor(codes, scale, None, 3)
  book = lloyd_max.fit(w, levels)
  return jax.tree.map(np.asarray, codebook.quantize(w, book))


def _plain(tree):
  """Returns QTensors as dicts, which orbax restores without a template."""
  return jax.tree.map(
    lambda q: {
      'codes': q.codes,
      'scale': q.scale,
      **({} if q.codebook is None else {'codebook': q.codebook}),
    },
    tree,
    is_leaf=qtensor.is_qtensor,
  )


def _best(functions):
  """Returns the least seconds of each of several functions, interleaved."""
  times: dict[str, list[float]] = {name: [] for name in functions}
  for _ in range(_REPEATS):
    for name, function in functions.items():
      start = time.perf_counter()
      function()
      times[name].append(time.perf_counter() - start)
  return {name: min(of_one) for name, of_one in times.items()}


def main(argv):
  usage.no_arguments(argv)
  logging.set_verbosity(logging.WARNING)  # orbax reports every step
  weights = _weights()
  count = sum(w.size for w in weights.values())
  rows = []
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    checkpointer = ocp.StandardCheckpointer()
    checkpointer.save(folder / 'float', names.unflatten(weights))
    checkpointer.wait_until_finished()
    for levels in (2, 3, 4, 8, 16, 32, 64, 128, 256):
      tree = names.unflatten(
        {n: _quantize(w, levels) for n, w in weights.items()}
      )
      plain, coded = folder / f'{levels}', folder / f'{levels}-coded'
      size = packed_file.save(plain, tree)
      coded_size = packed_file.save(coded, tree, entropy_code=True)
      checkpointer.save(folder / f'{levels}-orbax', _plain(tree))
      checkpointer.wait_until_finished()
      orbax_codes = folder / f'{levels}-orbax'
      restore = checkpointer.restore
      seconds = _best(
        {
          'packed': functools.partial(packed_file.load, plain),
          'entropy-coded': functools.partial(packed_file.load, coded),
          'orbax codes': functools.partial(restore, orbax_codes),
          'orbax float32': functools.partial(restore, folder / 'float'),
        }
      )
      bits = 8 / 5 if levels == 3 else (levels - 1).bit_length()
      ideal = count * bits / 8
      rows.append(
        {
          'system': 'ternary' if levels == 3 else f'{bits} bits',
          'method': 'packed file',
          'bits': bits,
          'metrics': {
            'parameters': count,
            'ideal_bytes': int(ideal),
            'bytes': size,
            'overhead_percent': 100 * (size / ideal - 1),
            'entropy_coded_bytes': coded_size,
            'load_ms': 1e3 * seconds['packed'],
            'load_entropy_coded_ms': 1e3 * seconds['entropy-coded'],
            'orbax_codes_ms': 1e3 * seconds['orbax codes'],
            'orbax_float32_ms': 1e3 * seconds['orbax float32'],
          },
        }
      )
  results.write('packed_file', rows)
  print(
    results.table(
      rows,
      {
        'system': '',
        'bytes': ',',
        'ideal_bytes': ',',
        'overhead_percent': '.2f',
        'entropy_coded_bytes': ',',
        'load_ms': '.0f',
        'load_entropy_coded_ms': '.0f',
        'orbax_codes_ms': '.0f',
        'orbax_float32_ms': '.0f',
      },
    )
  )


if __name__ == '__main__':
  app.run(main)
