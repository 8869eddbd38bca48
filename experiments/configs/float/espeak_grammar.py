"""Task A: 40 h of synthesized sentences of a closed grammar, 0-20 dB noise.

  --config=experiments/configs/float/espeak_grammar.py:size=90k

Synthetic speech: enough words to resolve 5% relative. Voices, one accent and
the sentences of dev and eval appear nowhere in training. Labels are subwords:
the fastest voices speak more letters than there are frames.
"""

from experiments.configs import common
from experiments.configs import float as float_configs


def get_config(text=None):
  """Returns the config.

  Args:
    text: `joint` is what the joint network begins as; `train=long` trains it
      for twice the steps, in batches of transcripts of about the same length,
      which take less time.
  """
  args = common.arguments(
    text,
    size='90k',
    seed='0',
    joint=('ctc', 'fresh'),
    train=('short', 'long'),
  )
  config = common.default()
  config.seed = int(args['seed'])
  config.tokenizer = 'subword:256'
  config.data.train = 'espeak:grammar?split=train&hours=40&snr=0-20'
  config.data.dev = 'espeak:grammar?split=dev&utterances=400&snr=0-20'
  config.data.eval = 'espeak:grammar?split=eval&utterances=4000&snr=0-20'
  config.data.batch_size = 32
  config.perturb.speeds = (0.95, 1.0, 1.05)
  config.augment.update(float_configs.LIGHT_MASKS)
  config.model.stack = 3
  config.model.reduce_after = (0,)
  float_configs.set_size(config, args['size'])
  config.train.steps = 6000
  config.train.learning_rate = 8e-3
  config.train.warmup_steps = 200
  config.train.ctc_weight = 0.3
  config.train.average_decay = 0.998
  config.train.eval_every = 2000
  if args['train'] == 'long':
    config.train.steps *= 2
    config.data.num_buckets = 6
    config.data.sort_within = 8
  common.encoder_first(
    config, steps=4000, joint_from_ctc=args['joint'] == 'ctc'
  )
  return config
