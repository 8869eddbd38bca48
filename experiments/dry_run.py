"""A full-size recipe, traced and compiled without data or accelerators.

  python -m experiments.dry_run \
    --config=experiments/configs/librispeech/rnnt_60m.py --devices=8

Prints the batch shapes, the parameters, the memory that the compiled step
needs on each device and the floating-point operations of one step, counted on
its jaxpr. Nothing is allocated and nothing runs.
"""

from __future__ import annotations

import argparse
import os
from typing import Any


def _devices() -> int:
  early = argparse.ArgumentParser(add_help=False)
  early.add_argument('--devices', type=int, default=8)
  return early.parse_known_args()[0].devices


if __name__ == '__main__':
  # The virtual devices must be asked for before jax starts.
  os.environ['JAX_PLATFORMS'] = 'cpu'
  os.environ['XLA_FLAGS'] = (
    os.environ.get('XLA_FLAGS', '')
    + f' --xla_force_host_platform_device_count={_devices()}'
  )

import jax  # noqa: E402
import ml_collections  # noqa: E402
import numpy as np  # noqa: E402
from absl import app, flags  # noqa: E402
from jax.sharding import NamedSharding, PartitionSpec  # noqa: E402
from ml_collections import config_flags  # noqa: E402

from experiments import fields, fitting, results, usage  # noqa: E402
from experiments import recognizer as recognizer_lib  # noqa: E402
from s8bqat_jax import data, training  # noqa: E402
from s8bqat_jax.data import loader  # noqa: E402
from s8bqat_jax.speech import features, normalize, tokenizers  # noqa: E402
from s8bqat_jax.training import flops  # noqa: E402
from s8bqat_jax.training import mesh as mesh_lib  # noqa: E402

_CONFIG = config_flags.DEFINE_config_file('config', None, 'The recipe.')
_NUM_DEVICES = flags.DEFINE_integer(
  'devices', 8, 'Devices of the mesh.', lower_bound=1
)
_SECONDS = flags.DEFINE_float('seconds', 16.0, 'Longest utterance.')
_LABELS = flags.DEFINE_integer('labels', 100, 'Most labels of an utterance.')
_VOCAB = flags.DEFINE_integer('vocab_size', 4097, 'Labels, blank included.')
_NAME = flags.DEFINE_string(
  'name', '', 'Of a file in experiments/results; none is written if unset.'
)


def _no_normalization(num_features: int) -> normalize.GlobalNorm:
  return normalize.GlobalNorm(np.zeros(num_features), np.ones(num_features))


def run(
  config: ml_collections.ConfigDict,
  *,
  seconds: float,
  labels: int,
  vocab_size: int,
  devices: Any = None,
) -> dict[str, Any]:
  """Traces and compiles one training step of a config.

  Args:
    config: of `experiments.train`.
    seconds: of the largest bucket.
    labels: of the largest bucket.
    vocab_size: the tokenizer is not built, since it needs the texts.
    devices: of the mesh; all by default.

  Returns:
    Metrics of the step: parameters, bytes per device, FLOPs.
  """
  fields.check_recognizer(config)
  mesh = training.make_mesh(devices)
  mesh_lib.check_batch_size(config.data.batch_size, mesh)
  log_mel = fields.made('features', features.LogMel, config.features)
  recognizer = recognizer_lib.Recognizer(
    model=recognizer_lib.make_model(
      config.model, vocab_size=vocab_size, ctc=config.train.ctc_weight > 0
    ),
    log_mel=log_mel,
    normalization=_no_normalization(log_mel.num_mels),
    tokenizer=tokenizers.CharTokenizer(' '),
    augment=recognizer_lib.make_augment(config.augment),
    ctc_weight=config.train.ctc_weight,
  )
  step = fitting.make_step(config, recognizer)
  params = jax.eval_shape(recognizer.init, jax.random.key(0))
  state = jax.eval_shape(step.init, params)
  samples, size = round(seconds * log_mel.sample_rate), config.data.batch_size
  perturb = recognizer_lib.make_perturbation(config.perturb)
  batch = jax.eval_shape(
    lambda: loader.empty_batch(
      size, data.Bucket(samples, labels, size), perturb
    )
  )
  place = lambda tree, spec: jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(
      x.shape, x.dtype, sharding=NamedSharding(mesh, spec)
    ),
    tree,
  )
  compiled = (
    jax.jit(step.update, donate_argnums=0)
    .lower(
      place(state, PartitionSpec()), place(batch, PartitionSpec(mesh_lib.DATA))
    )
    .compile()
  )
  memory = compiled.memory_analysis()
  counted = flops.count(step.update, state, batch)
  size = lambda tree: sum(
    int(np.prod(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree)
  )
  return {
    'devices': mesh.size,
    'batch_size': config.data.batch_size,
    'seconds': seconds,
    'labels': labels,
    'parameters': sum(int(np.prod(x.shape)) for x in jax.tree.leaves(params)),
    'state_bytes_per_device': size(state),
    'batch_bytes_per_device': size(batch) // mesh.size,
    'temporary_bytes_per_device': int(memory.temp_size_in_bytes)
    if memory
    else None,
    'product_flops': counted.products,
    'elementwise_operations': counted.elementwise,
    'loops_of_unknown_length': counted.unbounded,
    'parameter_shapes': {
      jax.tree_util.keystr(path, simple=True, separator='/'): list(x.shape)
      for path, x in jax.tree_util.tree_leaves_with_path(params)
    },
  }


def main(argv):
  usage.start(argv)
  usage.check_config(_CONFIG.value, 'tokenizer', 'demo, float or librispeech')
  row = run(
    _CONFIG.value,
    seconds=_SECONDS.value,
    labels=_LABELS.value,
    vocab_size=_VOCAB.value,
    devices=jax.devices()[: _NUM_DEVICES.value],
  )
  for name, shape in row.pop('parameter_shapes').items():
    print(f'{name:32} {shape}')
  if _NAME.value:
    results.write(_NAME.value, [{'system': 'RNN-T', 'metrics': row}])
  for name, value in row.items():
    print(f'{name:32} {value if value is None else format(value, ",")}')


if __name__ == '__main__':
  flags.mark_flag_as_required('config')
  app.run(main)
