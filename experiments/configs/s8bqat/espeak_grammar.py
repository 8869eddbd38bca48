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
  # Chosen on the float models' development curve (90k 35%, 200k 22%) and on
  # costs with random weights, before anything was quantized: 0.59 of the bytes,
  # 0.61 entropy-coded, latency 0.69 to 0.78 where indices are read, 0.77 to
  # 0.82 on U55, 0.90 to 0.94 on U65, 1.14 to 1.17 on U85. 200k would be slower
  # on all three Ethos-U; 4 bits would be on U65. On development data three bits
  # then lost all that size had gained: see the rates.
  config.headline = ('130k/s8bqat:3', '90k/uniform qat:8')
  config.matrices.rates = s8bqat.matrix(
    '90k/float',
    '130k/float',
    *(f'{c}?lr={rate}' for c in config.headline for rate in (1e-3, 4e-3)),
    # Three bits cost more here than on task B: what do four?
    '130k/s8bqat:4?lr=0.001',
    split='dev',
  )
  config.matrices.headline = s8bqat.matrix(
    '90k/float', '130k/float', *config.headline, seeds=(0, 1, 2, 3, 4)
  )
  return config
