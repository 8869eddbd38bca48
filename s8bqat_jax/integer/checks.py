"""What an integer function and `lower` refuse, and how they say it.

Calls are checked on shapes and dtypes alone, so that tracers pass too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from s8bqat_jax.integer.spec import Spec


def check_reals(
  inputs: tuple[Any, ...],
  in_tree: Any,
  specs: Sequence[Spec | None],
  avals: Sequence[Any],
) -> None:
  """Checks the arguments of `IntegerFunction.quantize` and of a call.

  Args:
    inputs: the arguments.
    in_tree: the structure they must have.
    specs: per flat input: its Spec, or None if it is an integer already.
    avals: per flat input: its shape, and the dtype of its codes.

  Raises:
    ValueError: their number, structure or a shape differs.
    TypeError: a dtype differs.
  """
  expected = len(in_tree.children())
  if len(inputs) != expected:
    raise ValueError(
      f'expected {expected} inputs, got {len(inputs)}; pass what `lower` was '
      'given, without the parameters'
    )
  leaves, tree = jax.tree_util.tree_flatten_with_path(inputs)
  if tree != in_tree:
    raise ValueError(
      f'expected inputs of structure {in_tree}, got {tree}; pass what `lower` '
      'was given'
    )
  for (path, x), spec, aval in zip(leaves, specs, avals):
    name = f'inputs{jax.tree_util.keystr(path)}'
    found = _typeof(name, x)
    _check_shape(name, found, aval)
    if spec is None:
      _check_dtype(name, found, aval, f'cast it to {aval.dtype}')
    elif not jnp.issubdtype(found.dtype, jnp.floating):
      raise TypeError(
        f'{name} takes reals {_describe("floating point", aval)}, got '
        f'{_describe(found.dtype, found)}; cast it to float32, or give codes '
        'to `integers`'
      )


def check_codes(codes: tuple[Any, ...], avals: Sequence[Any]) -> None:
  """Checks the arguments of `IntegerFunction.integers`.

  Args:
    codes: the arguments, flat.
    avals: their shapes and dtypes.

  Raises:
    ValueError: their number or a shape differs.
    TypeError: a dtype differs, or an argument is not an array.
  """
  for i, x in enumerate(codes):
    if not jax.tree_util.all_leaves([x]):
      raise TypeError(
        f'codes[{i}] is a {type(x).__name__}; pass flat arrays: '
        '`integers(*codes)`'
      )
  if len(codes) != len(avals):
    raise ValueError(
      f'integers takes {len(avals)} arrays of codes, got {len(codes)}; pass '
      'all that `quantize` returns'
    )
  for i, (x, aval) in enumerate(zip(codes, avals)):
    name = f'codes[{i}]'
    found = _typeof(name, x)
    advice = f'cast it to {aval.dtype}'
    if jnp.issubdtype(found.dtype, jnp.floating):
      advice = 'integers takes codes: call `quantize` first'
    _check_dtype(name, found, aval, advice)
    _check_shape(name, found, aval)


def check_options(ranges: Any, output_bits: int) -> None:
  """Checks what `lower` and `twin` are told.

  Args:
    ranges: {name: (low, high)}.
    output_bits: of real outputs.

  Raises:
    TypeError: `ranges` is not a mapping.
    ValueError: `output_bits` is neither 8 nor 16.
  """
  if not isinstance(ranges, Mapping):
    raise TypeError(
      'ranges must map names to (low, high), as `calibrate` returns them, got '
      f'{type(ranges).__name__}'
    )
  if output_bits not in (8, 16):
    raise ValueError(f'output_bits must be 8 or 16, got {output_bits!r}')


def check_carry(
  inputs: tuple[Any, ...], out_tree: Any, old: Sequence[Any], new: Sequence[Any]
) -> None:
  """Checks that the first output replaces the first input.

  Args:
    inputs: of the function, the state first.
    out_tree: structure of its outputs.
    old: shape and dtype of every flat input, the state's first.
    new: likewise of every flat output.

  Raises:
    ValueError: structure, shape or dtype of the two states differ.
  """
  if not inputs:
    raise ValueError('carry=True needs a state as the first input, got none')
  state = jax.tree.structure(inputs[0])
  if out_tree.children()[:1] != [state]:
    raise ValueError(
      'carry=True needs a function (params, state, *inputs) -> (state, '
      f'outputs): the state is {state}, but the outputs are {out_tree}'
    )
  paths, _ = jax.tree_util.tree_flatten_with_path(inputs[0])
  for (path, _), a, b in zip(paths, old, new):
    if (a.shape, a.dtype) != (b.shape, b.dtype):
      raise ValueError(
        f'state{jax.tree_util.keystr(path)} enters as '
        f'{_describe(a.dtype, a)}, but leaves as {_describe(b.dtype, b)}; '
        'with carry=True the first output replaces the first input'
      )


def _typeof(name: str, x: Any) -> Any:
  try:
    return jax.typeof(x)
  except TypeError as e:
    raise TypeError(f'{name} must be an array, got {type(x).__name__}') from e


def _check_shape(name: str, found: Any, aval: Any) -> None:
  if found.shape != aval.shape:
    raise ValueError(
      f'{name} has shape {found.shape}, expected {aval.shape}; an integer '
      'program has one shape: pad the input, or lower one for this shape'
    )


def _check_dtype(name: str, found: Any, aval: Any, advice: str) -> None:
  if found.dtype != aval.dtype:
    raise TypeError(
      f'{name} must be {_describe(aval.dtype, aval)}, got '
      f'{_describe(found.dtype, found)}; {advice}'
    )


def _describe(dtype: Any, aval: Any) -> str:
  return f'{dtype}{list(aval.shape)}'
