"""Task C: read English of 125 learners, half of them children; 2.9 hours.

  --config=experiments/configs/float/speechocean.py:size=1m,joint=ctc

Too little to learn from alone, so there are stages before the last: they hear
synthesized voices read sentences of a text file, beside the task's own
recordings, and the first of them trains the encoder alone.
`experiments.decode_lm` then decodes with a lexicon and a word n-gram.
"""

from experiments.configs import common
from experiments.configs import float as float_configs


def split(folder: str, name: str) -> str:
  """Returns the data spec of a split: 85, 15 and 25 speakers of all ages."""
  return (
    f'manifest:{folder}/speechocean762/metadata.csv?split={name}'
    '&shares=85,15,25&split_by=age&case=lower'
  )


def get_config(text=None):
  """Returns the config; `joint` says what the joint network begins as."""
  args = common.arguments(
    text, size='1m', seed='0', joint=('fresh', 'ctc'), data='../shared/data'
  )
  config = _stage(args)
  config.pretrain = second = _stage(args)
  sentences = f'file={args["data"]}/wikitext2/train.txt'
  second.data.train = ' + '.join(
    [
      f'espeak:text?{sentences}&split=train&hours=12&snr=5-30',
      'espeak:grammar?split=train&hours=3&snr=5-30',
      second.data.train,
    ]
  )
  # No faster: many a synthesized letter would have no frame left.
  second.perturb.speeds = (0.85, 1.0)
  second.model.dropout = 0.05
  second.train.learning_rate = 2.5e-3
  second.train.eval_every = 1500
  common.encoder_first(
    second, steps=10_000, joint_from_ctc=args['joint'] == 'ctc'
  )
  return config


def _stage(args):
  """Returns the last stage; those before differ where `get_config` says."""
  config = common.default()
  config.seed = int(args['seed'])
  config.tokenizer = 'char'  # as the lexicon's
  config.data.train = split(args['data'], 'train')
  config.data.dev = split(args['data'], 'dev')
  config.data.eval = split(args['data'], 'eval')
  config.data.num_buckets = 4
  config.perturb.speeds = (0.8, 0.9, 1.0, 1.1, 1.2)
  config.augment.freq_warp = 0.12
  config.augment.time_width = 12
  config.model.stack = 5
  float_configs.set_size(config, args['size'])
  config.model.dropout = 0.15
  config.train.ctc_weight = 0.3
  config.train.average_decay = 0.998
  config.train.steps = 3000
  config.train.learning_rate = 1.5e-3
  config.train.warmup_steps = 200
  config.train.weight_decay = 1e-2
  config.train.eval_every = 500
  return config
