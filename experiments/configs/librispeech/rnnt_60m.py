"""LibriSpeech 960 h, a streaming RNN-T of about 60 M parameters.

The full-size recipe: eight accelerators, bfloat16 products, 4k subwords. Check
it without data through `python -m experiments.dry_run`; to train, point
--config.data.root at the folder that holds train-clean-100 and so on.
"""

from experiments.configs import common

_TRAIN = ('train-clean-100', 'train-clean-360', 'train-other-500')


def get_config():
  """Returns the config; `data.root` is where LibriSpeech lies."""
  config = common.default()
  config.tokenizer = 'subword:4096'
  config.data.root = 'LibriSpeech'
  root = config.data.get_oneway_ref('root')
  specs = [_spec(root, name) for name in _TRAIN]
  config.data.train = specs[0] + ' + ' + specs[1] + ' + ' + specs[2]
  config.data.dev = _spec(root, 'dev-other')
  config.data.eval = _spec(root, 'test-other')
  config.data.batch_size = 512
  config.data.num_buckets = 6
  config.data.normalize_utterances = 2000
  config.perturb.speeds = (0.9, 1.0, 1.1)
  config.augment.freq_width = 27
  config.augment.time_masks = 10
  config.augment.time_width = 100
  config.augment.time_share = 0.05
  config.features.num_mels = 80
  config.model.encoder_width = 1024
  config.model.encoder_layers = 6
  config.model.predictor_width = 640
  config.model.embed_width = 128
  config.model.joint_width = 640
  config.model.stack = 3
  config.model.reduce_after = (1,)
  config.model.dropout = 0.1
  config.model.dtype = 'bfloat16'
  config.train.steps = 100_000
  config.train.learning_rate = 1e-3
  config.train.warmup_steps = 5_000
  config.train.average_decay = 0.9999
  config.train.eval_every = 2_000
  config.train.save_every = 2_000
  return config


def _spec(root, name):
  # The folder is a reference, so that overriding it reaches every spec.
  return 'librispeech:' + root + ':' + name
