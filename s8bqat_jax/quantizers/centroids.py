"""Centroids per tensor, fitted to the initial weights and kept."""

from __future__ import annotations

from collections.abc import Callable

import jax

from s8bqat_jax.quantizers import codebook as books
from s8bqat_jax.quantizers import lift, lloyd_max, types
from s8bqat_jax.quantizers import rules as rule_lib


def centroids(
  rules: rule_lib.Rules,
  *,
  fit: Callable[[jax.Array, int], books.Codebook] = lloyd_max.fit,
) -> types.Quantizer:
  """Encodes each weight by its nearest centroid; training stays in float.

  `quantize_once(centroids(3), params)` is post-training quantization, and
  `straight_through(centroids(3))` trains through the same centroids.

  Args:
    rules: bits for every weight, or a sequence of `Rule`.
    fit: (w, levels) -> Codebook: Lloyd-Max on the int8 grid by default.

  Returns:
    The Quantizer.

  References:
    Zhen et al., arXiv:2206.15408: Lloyd-Max centroids of the float baseline.
  """
  return lift.lift_tensor(
    rules,
    init=lambda w, spec: types.State(carried=fit(w, spec.levels)),
    quantize=lambda w, state, spec: books.quantize(w, state.carried),
  )
