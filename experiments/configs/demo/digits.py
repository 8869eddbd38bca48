"""The demo: digit strings, synthesized; evaluated on voices never heard.

Sized for two cores and a few minutes. What it needs most is many voices: on a
quarter of the strings, or without masks, it learns the training voices by
heart.
"""

from experiments.configs import common


def get_config(text=None):
  """Returns the config of the demo's floating-point model."""
  args = common.arguments(text, seed='0')
  config = common.default()
  config.seed = int(args['seed'])
  config.tokenizer = 'word'
  config.data.train = 'espeak:digits?split=train&utterances=12000&snr=15-35'
  config.data.dev = 'espeak:digits?split=dev&utterances=150&snr=15-35'
  config.data.eval = 'espeak:digits?split=eval&utterances=500&snr=15-35'
  config.data.num_buckets = 2
  config.augment.time_width = 10
  config.model.encoder_width = 96
  config.model.predictor_width = 32
  config.model.joint_width = 64
  config.model.reduce_after = (0,)
  config.train.steps = 5500
  config.train.learning_rate = 5e-3
  config.train.warmup_steps = 50
  config.train.weight_decay = 1e-2
  config.train.ctc_weight = 0.4
  config.train.average_decay = 0.995
  return config
