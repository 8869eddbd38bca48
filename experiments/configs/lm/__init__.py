"""Language models and their compression: one file a corpus."""

import ml_collections


def default() -> ml_collections.ConfigDict:
  """Returns a config without corpus."""
  config = ml_collections.ConfigDict()
  config.name = ''  # of the results file
  config.stages = ''  # folder in --runs; '' is the name
  config.seed = 0
  # 'word', 'word:SIZE' or 'subword:SIZE', from the training text.
  config.vocabulary = 'subword:4096'

  config.data = data = ml_collections.ConfigDict()
  data.train = ''  # text specs, see s8bqat_jax/data/text.py
  data.dev = ''
  data.eval = ''
  data.batch_size = 16
  data.length = 128  # predictions per window
  # Scoring: tokens seen at once, and how many of them are context.
  # No more than `length`: positions beyond it were never trained.
  data.score_length = 128
  data.score_context = 64

  config.model = model = ml_collections.ConfigDict()  # transformer_lm.py
  model.width = 192
  model.layers = 4
  model.heads = 4
  model.ffn_width = 768
  model.tied = True
  model.dropout = 0.1

  config.train = train = ml_collections.ConfigDict()
  train.steps = 10_000
  train.learning_rate = 2e-3
  train.warmup_steps = 500
  train.final_rate = 0.02
  train.weight_decay = 1e-2
  train.clip_norm = 1.0
  train.average_decay = 0.998
  train.log_every = 50
  train.eval_every = 0
  train.save_every = 500
  train.patience = 0

  # Every method trains from the float model for this share of its steps.
  config.finetune = finetune = ml_collections.ConfigDict()
  finetune.share = 0.3
  # Steps after which what would ship is scored on development text, for the
  # curves; 0 for none. It decides nothing.
  finetune.watch_every = 0
  # Which weights' codes the final phase freezes: 'last' or 'averaged' ones.
  finetune.freeze = 'averaged'
  finetune.train = ml_collections.ConfigDict(
    {'learning_rate': 5e-4, 'warmup_steps': 50, 'weight_decay': 0.0}
  )
  # Learning rates of methods that want another one, {method: rate}.
  finetune.rates = ml_collections.ConfigDict()

  # Weights whose rows have a scale each, as a pattern of names; '' for none.
  config.row_scales = ''

  # How bits are chosen: windows, and probes for the Hessian's traces.
  config.sensitivity = sensitivity = ml_collections.ConfigDict()
  sensitivity.batches = 4
  sensitivity.batch_size = 4
  sensitivity.rtol = 0.05
  sensitivity.max_probes = 256
  sensitivity.search_share = 0.1  # of the float model's steps
  sensitivity.search_price = 0.02  # nats per bit of the mean weight
  sensitivity.search_rate = 0.02  # learning rate of the mixtures' logits
  # Random allocations that predictions are held against.
  sensitivity.allocations = 24

  # Budgets: the bytes of all tensors at so many bits, or of the whole file: a
  # ratio to float32 ('16x') or bytes ('300000B').
  config.points = (2, 3, 4)
  # Bits, the same for all tensors, that only the plainest methods run at.
  config.easy_points = ()
  # What mixes bits: a method, and the metrics that share them out.
  config.mixed = ml_collections.ConfigDict(
    {'admm': ('trace', 'diagonal', 'kl', 'search', 'size', 'random')}
  )
  config.choices = (1, 2, 3, 4, 5, 6, 8)
  # A smaller model, by what differs in `model` and `train`, and its cells:
  # 'METHOD', or 'METHOD, BITS'. `headline` is what they are compared with.
  config.smaller = ml_collections.ConfigDict(
    {'model': {}, 'train': {}, 'cells': ()}
  )
  config.headline = ''
  # A packed recognizer whose N-best lists every file orders, alone and mixed
  # with an n-gram of the training text; '' for none. Weights are tuned on the
  # lists of `dev`. They are of the training text's most frequent words, or of
  # whatever the recognizer spells (0). `text` says where the transcripts come
  # from, in articles, over which intervals are.
  config.rescore = ml_collections.ConfigDict(
    {
      'recognizer': '',
      'dev': '',
      'eval': '',
      'text': '',
      'order': 4,
      'beam': 16,
      'words': 20_000,
    }
  )
  config.seeds = (0,)
  return config
