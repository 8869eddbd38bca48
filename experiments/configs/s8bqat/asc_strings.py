"""S8BQAT on task B: strings of isolated Arabic words, 24 speakers, four folds.

  python -m experiments.s8bqat \
    --config=experiments/configs/s8bqat/asc_strings.py --matrix=curve
"""

from experiments.configs import s8bqat


def get_config(words='all'):
  """Returns the config; `words` is that of the float config."""
  config = s8bqat.default()
  config.name = f's8bqat_b_{words}' if words != 'all' else 's8bqat_b'
  config.float.module = 'experiments.configs.float.asc_strings'
  config.float.arguments = (
    f'size={{size}},fold={{part}},seed={{seed}},words={words},data={{data}}'
  )
  config.parts = ('0', '1', '2', '3')
  config.activation_bits = 8
  config.matrices.curve = s8bqat.matrix(*s8bqat.curve('90k'))
  config.matrices.ablation = s8bqat.matrix(*s8bqat.ablation('90k', 2))
  # Raw bytes: 200k weights of 4 bits beside 90k of 8.
  config.headline = ('200k/s8bqat:4', '90k/uniform qat:8')
  config.matrices.headline = s8bqat.matrix(
    '90k/float', '200k/float', *config.headline, seeds=(0, 1, 2, 3, 4)
  )
  return config
