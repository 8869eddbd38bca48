"""English digit strings composed from fsdd, leaving one speaker out.

  --config=experiments/configs/float/fsdd_strings.py:speaker=theo

Four speakers to learn from and one to choose by: what is varied most is the
voice.
"""

from experiments.configs import common
from experiments.configs import float as float_configs


def get_config(text=None):
  """Returns the config that evaluates on one speaker."""
  args = common.arguments(
    text, size='90k', speaker='theo', seed='0', data='../shared/data'
  )
  config = common.default()
  config.seed = int(args['seed'])
  config.tokenizer = 'word'
  corpus = f'manifest:{args["data"]}/fsdd/metadata.csv'
  others = f'exclude_speakers={args["speaker"]}&shares=80,20,0&snr=0-20'
  # Short strings among the long ones, as for task B.
  config.data.train = f'{corpus}?{others}&compose=1-6&split=train&passes=10'
  config.data.dev = f'{corpus}?{others}&compose=3-6&split=dev'
  config.data.eval = (
    f'{corpus}?speakers={args["speaker"]}&compose=3-6&passes=1&snr=0-20'
  )
  config.data.batch_size = 32
  config.data.num_buckets = 3
  config.perturb.speeds = (0.8, 0.9, 1.0, 1.1, 1.2)
  config.augment.update(float_configs.LIGHT_MASKS)
  config.augment.freq_warp = 0.12
  config.model.reduce_after = (0,)
  config.model.dropout = 0.1
  float_configs.set_size(config, args['size'])
  config.train.steps = 5000
  config.train.learning_rate = 8e-3
  config.train.ctc_weight = 0.3
  config.train.average_decay = 0.998
  config.train.eval_every = 1000
  return config
