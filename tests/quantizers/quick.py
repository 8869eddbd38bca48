"""A codebook that costs nothing to fit, for tests that need no good one."""

import jax.numpy as jnp

from s8bqat_jax.quantizers import codebook


def even(w, levels):
  """Returns evenly spaced int8 centroids over the range of `w`."""
  values = jnp.round(jnp.linspace(-127, 127, levels)).astype(jnp.int8)
  return codebook.Codebook(values, (jnp.max(jnp.abs(w)) / 127).astype(w.dtype))
