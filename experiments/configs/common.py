"""The fields that every config has, with values that are rarely wrong."""

import ml_collections


def default() -> ml_collections.ConfigDict:
  """Returns a config without data; an experiment's file fills that in."""
  config = ml_collections.ConfigDict()
  config.seed = 0
  # 'char', 'word' or 'subword:SIZE'; the vocabulary comes from the texts.
  config.tokenizer = 'char'

  config.data = data = ml_collections.ConfigDict()
  data.train = ''  # data specs, see s8bqat_jax/data/spec.py
  data.dev = ''
  data.eval = ''
  data.batch_size = 16  # over all devices
  data.num_buckets = 4  # batch shapes, each compiled once
  data.normalize_utterances = 200  # that the feature statistics come from

  # Waveform changes, in the thread that reads ahead (data/perturb.py).
  config.perturb = ml_collections.ConfigDict(
    {'speeds': (0.9, 1.0, 1.1), 'gain_db': (-6.0, 6.0)}
  )
  # Masks over the features, inside the step (data/masking.py).
  config.augment = ml_collections.ConfigDict(
    {'freq_masks': 2, 'freq_width': 8, 'time_masks': 2, 'time_width': 20}
  )
  config.features = ml_collections.ConfigDict({'num_mels': 40})

  config.model = model = ml_collections.ConfigDict()  # models/rnnt.py
  model.encoder_width = 128
  model.encoder_layers = 2
  model.predictor_width = 64
  model.embed_width = 32
  model.joint_width = 96
  model.stack = 4
  model.reduce_after = ()
  model.dropout = 0.0
  model.dtype = 'float32'

  config.train = train = ml_collections.ConfigDict()
  train.steps = 2000
  train.learning_rate = 3e-3
  train.warmup_steps = 100
  train.final_rate = 0.02  # of the peak, after the cosine
  train.weight_decay = 1e-3
  train.clip_norm = 5.0
  train.average_decay = 0.99
  train.ctc_weight = 0.0
  train.log_every = 25
  train.eval_every = 0  # 0: at the end only
  train.save_every = 500
  train.patience = 0  # evaluations without a new best; 0: never stop early
  return config
