"""S8BQAT on English digit strings, leaving one of six speakers out.

  python -m experiments.s8bqat \
    --config=experiments/configs/s8bqat/fsdd_strings.py --matrix=floats
"""

from experiments.configs import s8bqat


def get_config():
  """Returns the config."""
  config = s8bqat.default()
  config.name = 's8bqat_fsdd'
  config.float.module = 'experiments.configs.float.fsdd_strings'
  config.float.arguments = 'size={size},speaker={part},data={data}'
  config.parts = 'george', 'jackson', 'lucas', 'nicolas', 'theo', 'yweweler'
  config.activation_bits = 8
  config.matrices.floats = s8bqat.floats(('90k',))
  return config
