"""Builds the library: python -m s8bqat_jax.integer.native."""

import sys

from s8bqat_jax.integer import native

try:
  built = native.build()
except RuntimeError as e:
  sys.exit(f'error: {e}')
used = (
  'used from now on'
  if native.available()
  else 'not used: this processor has no AVX-512 VNNI, or AMX, which XLA uses'
)
print(f'built {built.name}; {used}')
