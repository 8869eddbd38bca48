"""ACosR: the absolute cosine over one uniform grid, the ancestor of MRACos.

Published: an absolute-cosine regularizer pulls the weights of an RNN-T to a
uniform grid, nearly without loss at 8 and at 6 bits. The form often quoted,
|cos(pi w / step)|, is zero at *half-integer* multiples of the step; a grid
that contains zero needs |sin(pi w / step)|, which is what this file has. Our
reconstruction besides: the step of least squared error, the pull outside the
grid, and everything that `mracos` marks as such.

References:
  Nguyen, Alexandridis, Mouchtaris, Quantization Aware Training with Absolute-
  Cosine Regularization for Automatic Speech Recognition, Interspeech 2020.
"""

from __future__ import annotations

import jax
import optax

from s8bqat_jax.artifacts import qtensor
from s8bqat_jax.quantizers import codebook as books
from s8bqat_jax.quantizers import rules as rule_lib
from s8bqat_jax.quantizers import types
from s8bqat_jax.quantizers.mracos import FLOW, mracos
from s8bqat_jax.quantizers.uniform import book
from s8bqat_jax.quantizers.uniform import quantize as round_to_grid


def acosr(
  rules: rule_lib.Rules,
  *,
  pressure: optax.ScalarOrSchedule,
  coupling: str = FLOW,
) -> types.Quantizer:
  """Gathers weights at the points of a uniform grid fitted at the start.

  All regions are equally wide, so the exponent of their width has no part.

  Args:
    rules: bits for every weight, or a sequence of `Rule`.
    pressure: strength of the pull, number or schedule, as in `mracos`.
    coupling: 'flow' or 'loss', as in `mracos`.

  Returns:
    The Quantizer, with the metrics of `mracos`.

  References:
    Nguyen et al., Interspeech 2020; see the head of this file for what of it is
    published.
  """
  return mracos(
    rules, pressure=pressure, coupling=coupling, fit=book, quantize=_quantize
  )


def _quantize(w: jax.Array, codebook: books.Codebook) -> qtensor.QTensor:
  return round_to_grid(w, codebook.scale, len(codebook.values))
