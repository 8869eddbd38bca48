"""The demo: digit strings, synthesized; evaluated on voices never heard."""

from experiments.configs import common


def get_config():
  """Returns the config of `make demo`."""
  config = common.default()
  config.tokenizer = 'word'
  config.data.train = 'espeak:digits?split=train&utterances=3000&snr=10-30'
  config.data.dev = 'espeak:digits?split=dev&utterances=100&snr=10-30'
  config.data.eval = 'espeak:digits?split=eval&utterances=300&snr=10-30'
  config.data.num_buckets = 3
  config.model.encoder_width = 96
  config.model.predictor_width = 32
  config.model.joint_width = 64
  config.model.reduce_after = (0,)
  config.train.steps = 1500
  config.train.learning_rate = 4e-3
  config.train.warmup_steps = 50
  config.train.ctc_weight = 0.3
  config.train.eval_every = 500
  return config
