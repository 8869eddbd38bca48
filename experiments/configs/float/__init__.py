"""Floating-point baselines of the protocol's tasks, in several sizes."""

# Widths of two LSTM layers and the rest, so that the whole model has about the
# number of parameters in its name (with 40 mel bands and a few dozen labels).
SIZES = {
  '30k': {'encoder': 26, 'predictor': 16, 'embed': 8, 'joint': 24},
  '66k': {'encoder': 45, 'predictor': 24, 'embed': 12, 'joint': 40},
  '90k': {'encoder': 54, 'predictor': 28, 'embed': 16, 'joint': 48},
  '130k': {'encoder': 72, 'predictor': 32, 'embed': 16, 'joint': 56},
  '200k': {'encoder': 90, 'predictor': 40, 'embed': 24, 'joint': 64},
  '450k': {'encoder': 144, 'predictor': 64, 'embed': 32, 'joint': 96},
  '1m': {'encoder': 228, 'predictor': 96, 'embed': 32, 'joint': 128},
}
# For sizes that fit too little, not too much.
LIGHT_MASKS = {
  'freq_masks': 1,
  'freq_width': 6,
  'time_masks': 1,
  'time_width': 10,
}


def set_size(config, size: str) -> None:
  """Writes the widths of a named size into `config.model`."""
  if size not in SIZES:
    raise ValueError(f'size {size!r} is not one of {", ".join(SIZES)}')
  widths = SIZES[size]
  config.model.encoder_layers = 2
  config.model.encoder_width = widths['encoder']
  config.model.predictor_width = widths['predictor']
  config.model.embed_width = widths['embed']
  config.model.joint_width = widths['joint']
