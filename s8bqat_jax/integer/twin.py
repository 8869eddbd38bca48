"""twin: the float function with the integer function's roundings.

The same interpreter as `lower`, with float arithmetic: a value is rounded to
its grid exactly where the integer function would store it, with
straight-through gradients. It trains 8-bit activations without editing a model.
Reals are float32, results and states too, whatever the function computes in.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from s8bqat_jax.artifacts import qtensor
from s8bqat_jax.integer import _jax_internals as internals
from s8bqat_jax.integer import checks
from s8bqat_jax.integer.calibrate import Ranges
from s8bqat_jax.integer.lower import Program
from s8bqat_jax.integer.spec import fake_quantize


def twin(
  fn: Callable[..., Any],
  params: Any,
  ranges: Ranges,
  carry: bool = False,
  output_bits: int = 8,
) -> Callable[..., Any]:
  """Returns the fake-quantized twin of a function.

  Args:
    fn: float function (params, *inputs) -> outputs, as for `lower`.
    params: concrete parameters: their structure, and the values by which
      patterns are recognized. QTensors stay what they are; float leaves that
      enter a product are *not* rounded: a quantizer's view does that.
    ranges: from `calibrate`.
    carry: as for `lower`.
    output_bits: as for `lower`.

  Returns:
    A function (params, *inputs) -> outputs of the same structure, to be jitted
    and differentiated with respect to float `params` of the same structure.

  Raises:
    TypeError: `ranges` is not a mapping.
    ValueError: `output_bits` is neither 8 nor 16; from the twin, if its params
      have another structure.
  """
  checks.check_options(ranges, output_bits)

  def run(live_params: Any, *inputs: Any) -> Any:
    program = Program(fn, params, ranges, inputs, carry, twin=True)
    live = qtensor.decode(live_params)
    given: Any = jax.tree.structure(live)
    if given != program.params_tree:
      raise ValueError(
        f'params have the structure {given}, the twin was made for '
        f'{program.params_tree}'
      )
    arrays = [
      x if s is None else fake_quantize(internals.as_real(x), s)
      for x, s in zip(program.flat, program.in_specs)
    ]
    outs = program.run(arrays, program.constants(live))
    reals, _ = program.finish(outs, output_bits)
    return jax.tree.unflatten(program.out_tree, reals)

  return run
