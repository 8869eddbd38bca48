"""The smallest recognizer that still goes all the way, for tests."""

from experiments.configs import common, s8bqat
from experiments.configs.demo import digits


def get_config(text=None):
  """Returns the demo's config on sixteen strings and six steps."""
  args = common.arguments(text, seed='0', part='all')
  config = digits.get_config(f'seed={args["seed"]}')
  options = 'utterances=16&snr=20-30'
  config.data.train = f'espeak:digits?split=train&{options}'
  config.data.dev = f'espeak:digits?split=dev&{options}'
  config.data.eval = f'espeak:digits?split=eval&{options}'
  config.data.num_buckets = 1
  config.data.batch_size = 8
  config.data.normalize_utterances = 8
  config.model.encoder_layers = 1
  config.model.encoder_width = config.model.predictor_width = 16
  config.model.joint_width = 16
  config.train.steps = 6
  config.train.eval_every = 3
  config.train.log_every = 2
  return config


def experiment():
  """Returns an S8BQAT experiment on it."""
  config = s8bqat.default()
  config.name = 'tiny'
  config.float.module = 'tests.experiments.tiny'
  config.float.arguments = 'seed={seed}'
  config.finetune.share = 1.0
  config.matrices.quick = s8bqat.matrix('tiny/float', 'tiny/s8bqat:2?pull=2')
  return config
