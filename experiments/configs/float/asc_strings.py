"""Task B: strings of isolated Arabic words, real speech of 24 speakers.

  --config=experiments/configs/float/asc_strings.py:size=90k,fold=0,words=all

Four folds of six evaluation speakers; the development speakers come from the
training side. `words=digits` keeps the ten digits only.
"""

from experiments.configs import common
from experiments.configs import float as float_configs

_DIGITS = 'zero,one,two,three,four,five,six,seven,eight,nine'


def get_config(text=None):
  """Returns the config of one size and fold."""
  args = common.arguments(
    text,
    size='90k',
    fold='0',
    words=('all', 'digits'),
    seed='0',
    data='../shared/data',
  )
  config = common.default()
  config.seed = int(args['seed'])
  config.tokenizer = 'word'
  corpus = f'manifest:{args["data"]}/asc_commands/metadata.csv'
  options = f'folds=4&fold={args["fold"]}&snr=0-20'
  if args['words'] == 'digits':
    options += f'&texts={_DIGITS}'
  # Strings of one or two words among the long ones: without them the loss
  # stays on a plateau for thousands of steps.
  config.data.train = f'{corpus}?{options}&compose=1-6&split=train&passes=6'
  config.data.dev = f'{corpus}?{options}&compose=3-6&split=dev'
  config.data.eval = f'{corpus}?{options}&compose=3-6&split=eval'
  config.data.batch_size = 32
  config.data.num_buckets = 3
  config.perturb.speeds = (0.9, 0.95, 1.0, 1.05, 1.1)
  # Light masks and no dropout: these sizes fit too little, not too much.
  config.augment.update(float_configs.LIGHT_MASKS)
  float_configs.set_size(config, args['size'])
  config.train.steps = 8000
  config.train.learning_rate = 8e-3
  config.train.ctc_weight = 0.3
  config.train.average_decay = 0.998
  config.train.eval_every = 1000
  return config
