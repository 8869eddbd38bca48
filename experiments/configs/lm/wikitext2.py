"""WikiText-2: train, and the valid split by article into dev and eval.

  python -m experiments.mixed_precision_lm \
    --config=experiments/configs/lm/wikitext2.py

`:form=spoken` takes its sentences as a recognizer writes them, lower case and
without punctuation, for rescoring. `:rows=yes` gives each row of the tied
embedding a scale of its own; stages that this leaves alone, the float model
among them, are those of `rows=no`.
"""

from experiments.configs import float as float_configs
from experiments.configs import lm

# About the parameters in the name, with 4k subwords and a tied output layer.
SIZES = {
  '1m': {'width': 128, 'layers': 3, 'heads': 4, 'ffn_width': 512},
  '2m5': {'width': 192, 'layers': 4, 'heads': 4, 'ffn_width': 768},
  '6m': {'width': 320, 'layers': 4, 'heads': 4, 'ffn_width': 1280},
}


def get_config(text=None):
  """Returns the config of one size."""
  args = float_configs.arguments(
    text, size='2m5', form='written', data='../shared/data', rows='no'
  )
  if args['rows'] not in ('yes', 'no'):
    raise ValueError(f'rows is {args["rows"]!r}, expected yes or no')
  config = lm.default()
  config.name = f'lm_wikitext2_{args["size"]}'
  if args['form'] != 'written':
    config.name += f'_{args["form"]}'
  if args['rows'] == 'yes':
    config.row_scales = 'embed/embedding'
    config.stages = config.name
    config.name += '_rows'
  folder, form = f'{args["data"]}/wikitext2', f'form={args["form"]}'
  config.data.train = f'text:{folder}/train.txt?{form}'
  config.data.dev = f'text:{folder}/valid.txt?part=dev&{form}'
  config.data.eval = f'text:{folder}/valid.txt?part=eval&{form}'
  config.model.update(SIZES[args['size']])
  config.points = (4, 3, 2, '16x')
  config.finetune.share = 0.1
  config.seeds = (0, 1, 2)
  return config
