"""lower: a float function becomes an integer one."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from s8bqat_jax.artifacts import names, qtensor
from s8bqat_jax.integer import _jax_internals as internals
from s8bqat_jax.integer import checks, control, interpreter, keys
from s8bqat_jax.integer import clips as _clips  # noqa: F401  rules
from s8bqat_jax.integer import normalize as _normalize  # noqa: F401  rules
from s8bqat_jax.integer import products as _products  # noqa: F401  rules
from s8bqat_jax.integer import rules as _rules  # noqa: F401  rules
from s8bqat_jax.integer.calibrate import Ranges
from s8bqat_jax.integer.context import Context, UnsupportedPrimitive
from s8bqat_jax.integer.spec import Spec
from s8bqat_jax.integer.values import Const, Exact, QValue, Weight


@dataclasses.dataclass(frozen=True, eq=False)
class IntegerFunction:
  """An integer program and how reals enter and leave it.

  Call it like the float function, without the parameters: it quantizes the
  inputs, runs the program, and returns real outputs. `jaxpr` holds integers
  and booleans only (`audit` proves it); its constants are the int8 weights
  and tables.

  Attributes:
    jaxpr: the closed jaxpr of the program.
    in_specs: per flat input: its Spec, or None if it is an integer already.
    out_specs: per flat output, likewise.
    in_tree: structure of the inputs (a tuple).
    out_tree: structure of the outputs.
    weights: {name: QTensor or float parameter}, as they came in; the int8
      values in `jaxpr` are those of the QTensor, or 8-bit codes of the floats
      and of what is computed from weights (a product of two of them, say).
  """

  jaxpr: Any
  in_specs: tuple[Spec | None, ...]
  out_specs: tuple[Spec | None, ...]
  in_tree: Any
  out_tree: Any
  weights: dict[str, Any]

  def quantize(self, *inputs: Any) -> list[jax.Array]:
    """Returns the integers of real inputs (flattened).

    Args:
      *inputs: as `lower` was given them: same structure and shapes.

    Returns:
      One array per flat input.

    Raises:
      ValueError: number, structure or a shape of the inputs differs.
      TypeError: an input has the wrong dtype.
    """
    checks.check_reals(inputs, self.in_tree, self.in_specs, self.jaxpr.in_avals)
    return [
      jnp.asarray(x)
      if s is None
      else s.quantize(internals.as_real(jnp.asarray(x)))
      for x, s in zip(jax.tree.leaves(inputs), self.in_specs)
    ]

  def integers(self, *codes: Any) -> list[jax.Array]:
    """Runs the integer program: integers in, integers out.

    Args:
      *codes: what `quantize` returns, or codes that came out of a program.

    Returns:
      One array per flat output.

    Raises:
      ValueError: the number of codes or a shape differs.
      TypeError: codes are not of the dtype that the program reads.
    """
    return self._run(self.jaxpr.consts, *codes)

  def dequantize(self, codes: Any) -> Any:
    """Returns the real outputs that integers stand for."""
    reals = [
      c if s is None else s.dequantize(c) for c, s in zip(codes, self.out_specs)
    ]
    return jax.tree.unflatten(self.out_tree, reals)

  def __call__(self, *inputs: Any) -> Any:
    return self._whole(self.jaxpr.consts, *inputs)

  @functools.cached_property
  def _run(self) -> Callable[..., Any]:
    # Weights are arguments: as literals they would be compiled in.
    def run(consts, *codes):
      # Checked when traced, that is, once for every new signature.
      checks.check_codes(codes, self.jaxpr.in_avals)
      return jax.core.eval_jaxpr(self.jaxpr.jaxpr, consts, *codes)

    return jax.jit(run)

  @functools.cached_property
  def _whole(self) -> Callable[..., Any]:
    return jax.jit(
      lambda consts, *inputs: self.dequantize(
        self._run(consts, *self.quantize(*inputs))
      )
    )


def lower(
  fn: Callable[..., Any],
  params: Any,
  ranges: Ranges,
  *inputs: Any,
  carry: bool = False,
  output_bits: int = 8,
) -> IntegerFunction:
  """Turns a float function into an integer one.

  Args:
    fn: float function (params, *inputs) -> outputs, or, with `carry`,
      (params, state, *inputs) -> (state, outputs).
    params: its parameters. QTensor leaves keep their codes' int8 values;
      a float leaf that enters a product is rounded to 8 bits, per tensor.
    ranges: of its values, from `calibrate` on the same function or, for a
      streaming step, on the batch function it is a step of.
    *inputs: arrays or ShapeDtypeStructs of the inputs; values don't matter.
    carry: the first input is a state that the first output replaces, as in
      scan. Both get one spec, so the state stays integer from call to call.
    output_bits: 8 or 16, of real outputs.

  Returns:
    An IntegerFunction of `*inputs`.

  Raises:
    UnsupportedPrimitive: names the primitive, its source line and the way to
      register a rule.
    MissingRange: a value was not reached by calibration.
    TypeError: `ranges` is not a mapping.
    ValueError: a parameter is not finite or a malformed QTensor, `output_bits`
      is not supported, or, with `carry`, the states differ.
  """
  checks.check_options(ranges, output_bits)
  program = Program(fn, params, ranges, inputs, carry, twin=False)
  out_specs: list[Spec | None] = []

  def integers(*codes):
    outs = program.run(codes, program.constants())
    arrays, specs = program.finish(outs, output_bits)
    out_specs[:] = specs
    return arrays

  avals = [
    jax.ShapeDtypeStruct(x.shape, x.dtype if s is None else s.dtype)
    for x, s in zip(program.flat, program.in_specs)
  ]
  jaxpr = jax.make_jaxpr(integers)(*avals)
  return IntegerFunction(
    jaxpr=jaxpr,
    in_specs=tuple(program.in_specs),
    out_specs=tuple(out_specs),
    in_tree=program.in_tree,
    out_tree=program.out_tree,
    weights=dict(zip(program.paths, program.leaves)),
  )


class Program:
  """What lower and twin share: the graph, its inputs' specs, its outputs."""

  def __init__(self, fn, params, ranges, inputs, carry, twin):
    by_name = names.named(params)
    self.paths = list(by_name)
    self.leaves = [_as_array(leaf) for leaf in by_name.values()]
    with jax.ensure_compile_time_eval():
      self.templates = [
        _constant(leaf, path) for path, leaf in zip(self.paths, self.leaves)
      ]
    self.params_tree = jax.tree.structure(params, is_leaf=qtensor.is_qtensor)
    self.flat, self.in_tree = jax.tree.flatten(inputs)
    self.flat = [x if hasattr(x, 'dtype') else np.asarray(x) for x in self.flat]
    shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in self.flat]
    float_params = jax.tree.unflatten(
      self.params_tree,
      [jax.ShapeDtypeStruct(np.shape(x), x.dtype) for x in self.leaves],
    )
    self.graph, self.out_tree = internals.trace(
      fn, float_params, *jax.tree.unflatten(self.in_tree, shapes)
    )
    if carry:
      old = self.graph.ins[len(self.leaves) :]
      new = [internals.aval(a) for a in self.graph.outs]
      checks.check_carry(inputs, self.out_tree, old, new)
    self.ctx = Context(ranges, twin)
    self.carry = len(jax.tree.leaves(inputs[0])) if carry else 0
    self.names = keys.of_arguments(params, inputs, carry)
    self._specify_inputs()

  def _specify_inputs(self) -> None:
    first = len(self.leaves)
    _, outs = keys.assign(self.graph, self.names)
    state = self.graph.ins[first : first + self.carry]
    chains = control.passed_on(self.graph, state)
    self.in_specs: list[Spec | None] = []
    for i, v in enumerate(self.graph.ins[first:]):
      if not v.is_float:
        self.in_specs.append(None)
      elif i < self.carry:
        bits = 8 if control.feeds_product(self.graph, v) else 16
        last = chains[i][-1]  # A delay line holds what went into it.
        self.in_specs.append(self.ctx.range_spec(outs[last].name, bits))
      else:
        name = self.names[first + i].name
        self.in_specs.append(self.ctx.range_spec(name, 8))

  def constants(self, live_params: Any = None) -> list[Const]:
    """The parameters as constants; `live_params` carry gradients."""
    if live_params is None:
      return self.templates
    lives = map(_as_array, jax.tree.leaves(live_params))
    return [
      dataclasses.replace(t, live=internals.as_real(live))
      for t, live in zip(self.templates, lives)
    ]

  def run(self, arrays, constants):
    values = list(constants)
    names = self.names[len(constants) :]
    for x, name, spec in zip(arrays, names, self.in_specs):
      if spec is None:
        values.append(Exact(x))
        continue
      codes, live = (None, x) if self.ctx.twin else (x, None)
      values.append(self.ctx.fixed(x.shape, name.name, codes, spec, live))
    return interpreter.run(self.ctx, self.graph, self.names, values)

  def finish(self, outs, output_bits: int):
    """Materializes outputs; a replaced state takes the state's spec."""
    arrays, specs = [], []
    for i, out in enumerate(outs):
      spec = self.in_specs[i] if i < self.carry else None
      if isinstance(out, Const) and jnp.issubdtype(
        out.value.dtype, jnp.floating
      ):
        spec = spec or self.ctx.constant_spec(out, output_bits)
      elif isinstance(out, QValue):
        spec = spec or self.ctx.natural(out, output_bits)
      arrays.append(control.to_array(self.ctx, out, spec))
      specs.append(spec)
    return arrays, specs


def _as_array(leaf: Any) -> Any:
  """A parameter with a shape and a dtype; Python's numbers have neither."""
  return leaf if hasattr(leaf, 'dtype') else np.asarray(jnp.asarray(leaf))


def _constant(leaf: Any, path: str) -> Const:
  if not qtensor.is_qtensor(leaf):
    if internals.is_key(leaf):
      raise UnsupportedPrimitive(
        f'parameter {path!r} is {interpreter.NO_RANDOM}, and leave the key out '
        'of the parameters'
      )
    value = internals.as_real(np.asarray(leaf))
    broken = int(np.sum(~np.isfinite(value)))
    if broken:
      raise ValueError(
        f'parameter {path!r} {value.shape} is NaN or infinite in {broken} of '
        f'{value.size} places; integers have neither'
      )
    return Const(value, None, None, path)
  qtensor.check(leaf, path)
  grid = np.asarray(qtensor.grid_values(leaf))
  if grid.dtype != np.int8:
    raise ValueError(
      f'{path}: its codebook is {grid.dtype}, not int8; snap it to the int8 '
      'grid before lowering'
    )
  value = internals.as_real(np.asarray(qtensor.dequantize(leaf)))
  scale = np.asarray(leaf.scale, np.float64)
  if scale.size == 1:
    scale = scale.reshape(())
  return Const(value, Weight(grid, scale), None, path)
