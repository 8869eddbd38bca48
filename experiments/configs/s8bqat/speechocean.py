"""S8BQAT on task C: read English of learners, 25 unseen speakers.

  python -m experiments.s8bqat \
    --config=experiments/configs/s8bqat/speechocean.py --matrix=curve
"""

from experiments.configs import common, s8bqat


def get_config(text=None):
  """Returns the config; `joint` is that of the float config."""
  args = common.arguments(text, joint=('fresh', 'ctc'))
  config = s8bqat.default()
  config.name = 's8bqat_c'
  config.float.module = 'experiments.configs.float.speechocean'
  config.float.arguments = 'size={size},seed={seed},data={data}'
  if args['joint'] != 'fresh':
    config.name += f'_{args["joint"]}'
    config.float.arguments += f',joint={args["joint"]}'
  config.activation_bits = 8
  # Few, for hours: what three bits take, four and two take.
  config.matrices.rates = s8bqat.matrix(
    *(
      f'1m/{method}?lr={rate}'
      for rate in (1e-3, 4e-3)
      for method in ('uniform qat:8', 's8bqat:3')
    ),
    split='dev',
  )
  # What the joint network begins as, on development data.
  config.matrices.begin = s8bqat.matrix('1m/float', split='dev')
  config.matrices.floats = s8bqat.floats(('1m',), seeds=(0, 1, 2))
  config.matrices.curve = s8bqat.matrix(
    '1m/float',
    '1m/float continued',
    '1m/uniform qat:8',
    *s8bqat.every('1m', 's8bqat', (4, 3, 2)),
    *s8bqat.every('1m', 'ptq lloyd-max', (4, 3, 2)),
  )
  return config
