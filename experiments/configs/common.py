"""Arguments of configs, and the fields that every recognizer's config has."""

import ml_collections


def arguments(
  text: str | None, **defaults: str | tuple[str, ...]
) -> dict[str, str]:
  """Reads `name=value,name=value`, the part of --config after the colon.

  Args:
    text: that part, if there is one.
    **defaults: of every name; where several are listed, no other value is
      taken, and the first is the default.

  Raises:
    ValueError: saying what the config takes.
  """
  found = {k: v if isinstance(v, str) else v[0] for k, v in defaults.items()}
  for item in filter(None, (text or '').split(',')):
    name, equals, value = item.partition('=')
    if not equals or name not in defaults:
      raise ValueError(
        f'config argument {item!r}: expected name=value, with a name of '
        f'{", ".join(defaults)}'
      )
    choices = defaults[name]
    if not isinstance(choices, str) and value not in choices:
      raise ValueError(
        f'config argument {item!r}: expected one of {", ".join(choices)}'
      )
    found[name] = value
  return found


def encoder_first(
  config: ml_collections.ConfigDict, steps: int, joint_from_ctc: bool = False
) -> ml_collections.ConfigDict:
  """Gives a training a first stage, of the encoder alone, by CTC.

  From nothing a transducer first learns which words follow which, without the
  audio; where a grammar makes that easy it learns little else for thousands of
  steps.

  Args:
    config: whole; it gets `pretrain`.
    steps: of the first stage.
    joint_from_ctc: whether the transducer begins as the CTC model that the
      first stage ends with: see `rnnt.from_ctc`.

  Returns:
    `config.pretrain`, for what else is different there.
  """
  first = config.copy_and_resolve_references()
  first.train.steps = steps
  first.train.ctc_weight = 1.0
  first.train.eval_every = 0
  config.pretrain = first
  if joint_from_ctc:
    config.joint_from_ctc = True
  return first


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
  # Batches that are sorted by transcript length together: a long transcript
  # costs its whole batch. 1 leaves all to chance.
  data.sort_within = 1
  data.normalize_utterances = 200  # that the feature statistics come from

  # Waveform changes: speeds where audio is read, gain and noise in the step
  # (data/perturb.py).
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
