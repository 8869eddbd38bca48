"""S8BQAT on task A: 40 h of synthesized sentences, 0-20 dB noise.

  python -m experiments.s8bqat \
    --config=experiments/configs/s8bqat/espeak_grammar.py --matrix=headline
"""

from experiments.configs import s8bqat


def get_config():
  """Returns the config."""
  config = s8bqat.default()
  config.name = 's8bqat_a'
  config.float.module = 'experiments.configs.float.espeak_grammar'
  config.float.arguments = 'size={size},seed={seed}'
  config.activation_bits = 8
  config.matrices.curve = s8bqat.matrix(*s8bqat.curve('90k'))
  config.matrices.ablation = s8bqat.matrix(
    *s8bqat.ablation('90k', 2), split='dev'
  )
  # Raw: 200k weights of 3 bits are 75 kB, 90k of 8 bits 90 kB. Entropy-coded:
  # 2.8 bits a centroid and 6.7 an int8 weight (protocol), 70 and 75 kB.
  config.headline = ('200k/s8bqat:3', '90k/uniform qat:8')
  config.matrices.rates = s8bqat.matrix(
    *(f'{c}?lr={rate}' for c in config.headline for rate in (1e-3, 4e-3)),
    split='dev',
  )
  config.matrices.headline = s8bqat.matrix(
    '90k/float', '200k/float', *config.headline, seeds=(0, 1, 2, 3, 4)
  )
  return config
