"""Builds the library: python -m s8bqat_jax.integer.native."""

import sys

from s8bqat_jax.integer import native

try:
  built = native.build()
except RuntimeError as e:
  sys.exit(f'error: {e}')
because = native.refusal()
used = 'used from now on' if because is None else f'not used: {because}'
print(f'built {built.name}; {used}')
