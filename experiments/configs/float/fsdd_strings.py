"""English digit strings composed from fsdd, leaving one speaker out.

--config=experiments/configs/float/fsdd_strings.py:speaker=theo
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
  others = f'exclude_speakers={args["speaker"]}&shares=80,20,0&compose=3-6'
  config.data.train = f'{corpus}?{others}&split=train&passes=10&snr=0-20'
  config.data.dev = f'{corpus}?{others}&split=dev&snr=0-20'
  config.data.eval = (
    f'{corpus}?speakers={args["speaker"]}&compose=3-6&passes=1&snr=0-20'
  )
  config.data.num_buckets = 3
  config.perturb.speeds = (0.8, 0.9, 1.0, 1.1, 1.2)
  config.model.reduce_after = (0,)
  config.model.dropout = 0.2
  float_configs.set_size(config, args['size'])
  config.train.steps = 3000
  config.train.ctc_weight = 0.3
  config.train.average_decay = 0.998
  config.train.eval_every = 1000
  return config
