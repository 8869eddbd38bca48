"""Integer inference as a transformation of a function.

  ranges = calibrate(fn, params, batches)       run fn in float, note extremes
  saturation(fn, params, ranges, batches)       what would not fit
  integer_fn = lower(fn, params, ranges, *inputs)   an integer program
  integer_fn(*inputs)                           run it
  print(audit(integer_fn))                      prove it: no float, no overflow
  twin(fn, params, ranges)                      fn with the same roundings, to
                                                train 8-bit activations

`fn(params, *inputs)` is any JAX function made of supported primitives; its
parameters may hold QTensors. `register` adds a rule for another primitive.
"""

from s8bqat_jax.integer.audit import Audit, audit
from s8bqat_jax.integer.calibrate import (
  Ranges,
  calibrate,
  output_names,
  saturation,
  uncalibrated,
)
from s8bqat_jax.integer.context import (
  Context,
  MissingRange,
  UnsupportedPrimitive,
  register,
)
from s8bqat_jax.integer.lower import IntegerFunction, lower
from s8bqat_jax.integer.spec import Spec, fake_quantize
from s8bqat_jax.integer.twin import twin

__all__ = [
  'Audit',
  'Context',
  'IntegerFunction',
  'MissingRange',
  'Ranges',
  'Spec',
  'UnsupportedPrimitive',
  'audit',
  'calibrate',
  'fake_quantize',
  'lower',
  'output_names',
  'register',
  'saturation',
  'twin',
  'uncalibrated',
]
