"""Post-training quantization: fitted once, to weights that train in float."""

from __future__ import annotations

import dataclasses
from typing import Any

from s8bqat_jax.quantizers import types


def ptq(quantizer: types.Quantizer) -> types.Quantizer:
  """Keeps of a quantizer what needs no training: its fit and its codes.

  Args:
    quantizer: any Quantizer.

  Returns:
    A Quantizer under which training is plain floating-point training and
    `encode` uses the tables fitted by `init`.
  """
  nothing = types.float_only()
  return dataclasses.replace(
    quantizer,
    views=nothing.views,
    penalty=nothing.penalty,
    after_update=nothing.after_update,
  )


def quantize_once(quantizer: types.Quantizer, params: types.Params) -> Any:
  """Fits a quantizer to trained params and encodes them.

  Args:
    quantizer: any Quantizer.
    params: any params pytree.

  Returns:
    The params tree with QTensor leaves.
  """
  return quantizer.encode(params, quantizer.init(params))
