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
  # Costed with random weights, before any training: 0.84 of the bytes, 0.86
  # entropy-coded; 13 to 15% less latency where indices are read, and 5 to 10%
  # less traffic on Ethos-U, which the larger model's products keep as busy or
  # busier (U55 1.04, U85 1.36). 90k against 66k, as on task B, would be quicker
  # on U55 and U65 as well: the float curve is to say, before anything is
  # quantized, whether that step is large enough here.
  config.headline = ('200k/s8bqat:3', '90k/uniform qat:8')
  config.matrices.rates = s8bqat.matrix(
    *(f'{c}?lr={rate}' for c in config.headline for rate in (1e-3, 4e-3)),
    split='dev',
  )
  config.matrices.headline = s8bqat.matrix(
    '90k/float', '200k/float', *config.headline, seeds=(0, 1, 2, 3, 4)
  )
  return config
