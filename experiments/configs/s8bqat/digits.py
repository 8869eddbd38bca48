"""S8BQAT on the demo's corpus: synthesized digit strings, unseen voices.

python -m experiments.s8bqat --config=experiments/configs/s8bqat/digits.py
"""

from experiments.configs import s8bqat


def get_config():
  """Returns the config; `make demo` runs its matrix `demo`."""
  config = s8bqat.default()
  config.name = 's8bqat_digits'
  config.float.module = 'experiments.configs.demo.digits'
  config.float.arguments = 'seed={seed}'
  config.activation_bits = 8
  config.finetune.share = 0.075
  config.finetune.train.learning_rate = 1.5e-3
  # So short a training pays for a second shape of batches by compiling it.
  config.finetune.data.num_buckets = 1
  config.matrices.demo = s8bqat.matrix(
    'demo/float',
    'demo/ptq lloyd-max:2',
    'demo/uniform qat:8',
    'demo/s8bqat:4',
    'demo/s8bqat:2',
  )
  config.matrices.curve = s8bqat.matrix(*s8bqat.curve('demo'))
  config.matrices.ablation = s8bqat.matrix(
    *s8bqat.ablation('demo', 2), split='dev'
  )
  return config
