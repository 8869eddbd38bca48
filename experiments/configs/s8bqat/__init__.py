"""Matrices of the S8BQAT experiment: one file a corpus, cells by name."""

import ml_collections

from experiments.configs import float as float_configs


def default() -> ml_collections.ConfigDict:
  """Returns a config without corpus and matrices."""
  config = ml_collections.ConfigDict()
  config.name = ''  # of the results file
  config.stages = ''  # folder of stages and evaluations; '' is the name
  config.system = 'RNN-T'
  # Where float models come from: a module's get_config, and its argument, in
  # which size, part, seed and data are filled in. Without {seed} all seeds
  # fine-tune the same float model.
  config.float = ml_collections.ConfigDict({'module': '', 'arguments': ''})
  # {'SIZE/SEED': the seed of the float model there}, of those that were trained
  # again because the first had failed on development data.
  config.float.begun_again = ml_collections.ConfigDict()
  config.data = '../shared/data'
  # Disjoint parts of the corpus (folds); their errors are pooled.
  config.parts = ('all',)
  config.activation_bits = 32
  # Every method trains for this share of its float model's steps, from that
  # model, on the same batches, with the same schedule.
  config.finetune = finetune = ml_collections.ConfigDict()
  finetune.share = 0.3
  # Which weights' codes the final phase freezes: 'last' or 'averaged' ones.
  finetune.freeze = 'last'
  finetune.train = ml_collections.ConfigDict(
    {'learning_rate': 1e-3, 'warmup_steps': 50, 'weight_decay': 0.0}
  )
  finetune.data = ml_collections.ConfigDict()  # what differs of the data
  finetune.augment = ml_collections.ConfigDict()  # and of its augmentation
  # {'METHOD:BITS': another highest learning rate}, chosen on development data.
  finetune.rates = ml_collections.ConfigDict()
  config.matrices = ml_collections.ConfigDict()
  # The pair (ours, the control) that was named before any training; only its
  # comparison counts as the headline.
  config.headline = ()
  return config


def matrix(
  *cells: str,
  seeds: tuple[int, ...] = (0,),
  split: str = 'eval',
  parts: tuple[str, ...] = (),
):
  """Returns a matrix: every cell under every seed.

  Args:
    *cells: by name.
    seeds: of fine-tuning, and of the float models if the config says so.
    split: 'eval', or 'dev' for what is tuned.
    parts: some of the corpus; () for all.
  """
  return ml_collections.ConfigDict(
    {'cells': cells, 'seeds': seeds, 'split': split, 'parts': parts}
  )


def floats(
  sizes: tuple[str, ...] = tuple(float_configs.SIZES),
  seeds: tuple[int, ...] = (0,),
):
  """Returns the matrix of error rate against size, in floating point."""
  return matrix(*(f'{size}/float' for size in sizes), seeds=seeds)


def every(size: str, method: str, bits: tuple[int, ...]) -> tuple[str, ...]:
  """Returns the cells of one method at several widths."""
  return tuple(f'{size}/{method}:{b}' for b in bits)


def curve(size: str) -> tuple[str, ...]:
  """Returns the cells of error rate against bytes at one model size."""
  trained = (4, 3, 2)
  return (
    f'{size}/float',
    f'{size}/float continued',
    *every(size, 'ptq uniform', (8, 6, 5, 4, 3, 2)),
    *every(size, 'ptq lloyd-max', (8, 6, 5, 4, 3, 2)),
    f'{size}/uniform qat:8',
    *every(size, 'uniform qat', trained),
    *every(size, 'straight-through', trained),
    *every(size, 's8bqat', trained),
    *every(size, 'coarse int8', trained),
    *every(size, 'gq', (4, 2)),
  )


def ablation(size: str, bits: int) -> tuple[str, ...]:
  """Returns S8BQAT and what it is without each of its parts."""

  def variants(**options):
    return tuple(
      f'{size}/s8bqat:{bits}?{key}={value}'
      for key, values in options.items()
      for value in values
    )

  return (
    f'{size}/s8bqat:{bits}',
    # Without MRACos (which is straight-through), without the hard compressor,
    # without both.
    f'{size}/straight-through:{bits}',
    f'{size}/s8bqat:{bits}?every=0',
    f'{size}/s8bqat:{bits}?pull=0&every=0',
    # The compressor's other reading: weights are overwritten.
    f'{size}/s8bqat:{bits}?reading=overwrite&every=400',
    f'{size}/s8bqat:{bits}?pull=0&reading=overwrite&every=400',
    f'{size}/s8bqat:{bits}?coupling=loss',
    f'{size}/s8bqat:{bits}?power=0',
    f'{size}/s8bqat:{bits}?centroids=uniform',
    f'{size}/acosr:{bits}',
    f'{size}/learned step:{bits}',
    *variants(pull=(1, 2, 8, 16), every=(2, 4, 16, 64)),
  )
