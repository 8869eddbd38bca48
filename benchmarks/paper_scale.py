"""Fewer bits for more weights, at full size: bytes, traffic and latency.

  python -m benchmarks.paper_scale

The transducer of configs/librispeech/rnnt_60m.py with 8-bit weights, and wider
ones with 5, 4 and 3 bits: bytes, and traffic and latency per second of audio on
the machines of experiments/costs.py. Nothing is trained: weights are Gaussian,
rounded to 8 bits or to Lloyd-Max centroids on the int8 grid. The factor between
the models is about that of task B's pair. Estimates, not timings: every machine
writes the same figures. Takes some minutes, most of them for coding weights.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import ml_collections
import numpy as np
import optax
from absl import app, flags

from experiments import (
  costs,
  integer_recognizer,
  methods,
  results,
  usage,
)
from experiments import recognizer as recognizer_lib
from experiments.configs.librispeech import rnnt_60m
from s8bqat_jax import integer
from s8bqat_jax.artifacts import packed_file
from s8bqat_jax.speech import features, normalize, tokenizers

_VOCAB = flags.DEFINE_integer('vocab_size', 4097, 'Labels, blank included.')
_SYMBOLS = flags.DEFINE_float('symbols', 3.0, 'Labels per second of audio.')

CONTROL = ('ptq uniform', 8, 1.0)
OURS = [('ptq lloyd-max', bits, 1.27) for bits in (5, 4, 3)]


def widened(config: ml_collections.ConfigDict, factor: float) -> None:
  """Gives a model about `factor` times its weights.

  Args:
    config: whose `model` widths grow, to multiples of 16.
    factor: of the number of weights.
  """
  for name in ('encoder_width', 'predictor_width', 'joint_width'):
    width = config.model[name] * math.sqrt(factor)
    config.model[name] = 16 * round(width / 16)


def cost(method: str, bits: int, factor: float) -> dict[str, Any]:
  """Returns sizes and costs of one model.

  Args:
    method: whose shipped weights it has, in `methods.METHODS`.
    bits: of its weights.
    factor: of the number of weights.
  """
  config = rnnt_60m.get_config()
  widened(config, factor)
  log_mel = features.LogMel(**config.features)
  recognizer = recognizer_lib.Recognizer(
    model=recognizer_lib.make_model(
      config.model, vocab_size=_VOCAB.value, ctc=False, dtype='float32'
    ),
    log_mel=log_mel,
    normalization=normalize.GlobalNorm(
      np.zeros(log_mel.num_mels), np.ones(log_mel.num_mels)
    ),
    tokenizer=tokenizers.CharTokenizer(' '),
  )
  rng = np.random.default_rng(0)
  params = jax.tree.map(
    lambda x: rng.standard_normal(x.shape, np.float32) / math.sqrt(x.shape[0]),
    jax.eval_shape(recognizer.init, jax.random.key(0)),
  )
  run = methods.Run(1, optax.constant_schedule(1e-3))
  quantizer = methods.make(
    method, bits, methods.rules_for(bits, False), run, {}
  )
  assert quantizer is not None
  tree = jax.device_get(quantizer.encode(params, quantizer.init(params)))
  ranges = dict.fromkeys(
    (
      integer_recognizer.ENCODE,
      integer_recognizer.PREDICT,
      integer_recognizer.JOINT,
    ),
    integer.uncalibrated(),
  )
  return {
    'parameters': sum(x.size for x in jax.tree.leaves(params)),
    'bytes': packed_file.packed_bytes(tree),
    'encoded_bytes': packed_file.encoded_bytes(tree),
    **costs.per_second(recognizer, tree, ranges, _SYMBOLS.value),
  }


def main(argv):
  usage.start(argv)
  rows: list[dict[str, Any]] = []
  comparisons: list[dict[str, Any]] = []
  for method, bits, factor in (CONTROL, *OURS):
    found = cost(method, bits, factor)
    system = f'{found["parameters"] / 1e6:.1f} M weights'
    rows.append(
      {'system': system, 'method': method, 'bits': bits, 'metrics': found}
    )
    first = rows[0]['metrics']
    comparison = {
      'a': f'{rows[0]["system"]}, {CONTROL[1]} bits',
      'b': f'{system}, {bits} bits',
      'metric': 'ratio',
    }
    for key in ('bytes', 'encoded_bytes'):
      comparison[key] = found[key] / first[key]
    for machine in costs.machines():
      for chunk in costs.CHUNKS:
        key = f'{machine}_latency_ms_{chunk}'
        comparison[f'{machine}_{chunk}'] = found[key] / first[key]
    if rows[1:]:
      comparisons.append(comparison)
    print(results.table([comparison], dict.fromkeys(comparison, '.3f')))
  results.write('paper_scale', rows, comparisons=comparisons)


if __name__ == '__main__':
  app.run(main)
