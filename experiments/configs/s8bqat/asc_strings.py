"""S8BQAT on task B: strings of isolated Arabic words, 24 speakers, four folds.

  python -m experiments.s8bqat \
    --config=experiments/configs/s8bqat/asc_strings.py --matrix=curve
"""

from experiments.configs import common, s8bqat


def get_config(text=None):
  """Returns the config; `words=digits` is that of the float config.

  Args:
    text: `freeze=averaged` freezes the codes of averaged weights at the end.
  """
  freezes = 'last', 'averaged'
  args = common.arguments(text, words=('all', 'digits'), freeze=freezes)
  words = args['words']
  config = s8bqat.default()
  config.name = f's8bqat_b_{words}' if words != 'all' else 's8bqat_b'
  if args['freeze'] != 'last':
    config.stages = config.name
    config.name += f'_{args["freeze"]}'
    config.finetune.freeze = args['freeze']
  config.float.module = 'experiments.configs.float.asc_strings'
  # One float model a fold, whatever the seed.
  config.float.arguments = (
    f'size={{size}},fold={{part}},words={words},data={{data}}'
  )
  config.parts = ('0', '1', '2', '3')
  config.activation_bits = 8
  config.finetune.share = 0.2
  # On development data of fold 0, out of 1e-3 and 4e-3, by the matrices `rates`
  # and `controls`. What is not here has 1e-3, which was better or is not
  # compared yet.
  config.finetune.rates['s8bqat:2'] = 4e-3
  config.finetune.rates['straight-through:2'] = 4e-3
  config.finetune.rates['acosr:2'] = 4e-3
  config.finetune.rates['learned step:2'] = 4e-3
  config.finetune.rates['s8bqat:3'] = 4e-3
  config.finetune.rates['s8bqat:4'] = 4e-3
  config.finetune.rates['straight-through:4'] = 4e-3
  config.finetune.rates['uniform qat:3'] = 4e-3
  config.finetune.rates['uniform qat:4'] = 4e-3
  # The learning rate, and the compressor, at the width where they matter most.
  config.matrices.rates = s8bqat.matrix(
    *(
      f'90k/{method}lr={rate}'
      for rate in (1e-3, 4e-3)
      for method in (
        'float continued?',
        'uniform qat:8?',
        *(
          f'{method}:{bits}?'
          for bits in (2, 3, 4)
          for method in (
            's8bqat',
            'straight-through',
            'uniform qat',
            'coarse int8',
            'gq',
          )
        ),
        's8bqat:2?every=0&',
        'acosr:2?',
        'learned step:2?',
      )
    ),
    *(f'66k/uniform qat:8?lr={rate}' for rate in (1e-3, 4e-3)),
    split='dev',
    parts=('0',),
  )
  # Rates of what S8BQAT was compared with before they had been compared.
  config.matrices.controls = s8bqat.matrix(
    *(
      f'{control}?lr={rate}'
      for control in (
        '90k/straight-through:2',
        '66k/uniform qat:8',
        '90k/acosr:2',
        '90k/learned step:2',
      )
      for rate in (1e-3, 4e-3)
    ),
    split='dev',
    parts=('0',),
  )
  # Whether it matters which weights' codes are frozen; also `freeze=averaged`.
  config.matrices.freeze = s8bqat.matrix(
    '90k/straight-through:2',
    '90k/s8bqat:2',
    '90k/s8bqat:3',
    '66k/uniform qat:8',
    split='dev',
    parts=('0',),
  )
  # What tells the story on its own, to run before all of the curve.
  config.matrices.core = s8bqat.matrix(
    '90k/float',
    '90k/float continued',
    '90k/uniform qat:8',
    '90k/s8bqat:2',
    '90k/straight-through:2',
    '90k/s8bqat:4',
    *s8bqat.every('90k', 'ptq lloyd-max', (4, 2)),
  )
  config.matrices.floats = s8bqat.floats()
  config.matrices.curve = s8bqat.matrix(*s8bqat.curve('90k'))
  config.matrices.ablation = s8bqat.matrix(
    *s8bqat.ablation('90k', 2), split='dev', parts=('0',)
  )
  # What the ablation leaves open on one fold: whether the penalty's power
  # matters, and whether the penalty does.
  config.matrices.power = s8bqat.matrix(
    *(f'90k/{c}' for c in ('s8bqat:2', 's8bqat:2?power=0')),
    '90k/straight-through:2',
    split='dev',
  )
  # Whether the penalty does, under seeds enough to say so.
  config.matrices.pull = s8bqat.matrix(
    '90k/s8bqat:2', '90k/straight-through:2', seeds=(0, 1, 2)
  )
  # On the steep part of the float curve, which is flat above 90k. Costed with
  # random weights, before any training: about half the bytes, and at least 5%
  # less latency on all machines but Ethos-U85, which is bound by its products.
  config.headline = ('90k/s8bqat:3', '66k/uniform qat:8')
  config.matrices.headline = s8bqat.matrix(
    *config.headline, seeds=(0, 1, 2, 3, 4)
  )
  return config
