"""Integer primitives: one JAX primitive per operation of the accelerator.

Each has a kernel (integers only, lowered to XLA), a NumPy oracle of the same
signature that defines it, and a batching rule that stays one primitive under
`vmap`. Parameters are plain numbers, so that a program can be read back, and
audited, costed or exported: `shift` and `out` say how the result is rescaled
(requantize.py), `site` names the value in the float model.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend import core as jex_core
from jax.interpreters import batching, mlir

from s8bqat_jax.integer import _jax_internals as internals


class IntegerOp(NamedTuple):
  """What is known of one integer primitive."""

  primitive: Any
  kernel: Callable[..., jax.Array]
  oracle: Callable[..., Any]


REGISTRY: dict[str, IntegerOp] = {}


def define(
  name: str,
  kernel: Callable[..., Any],
  oracle: Callable[..., Any],
  batch: Callable[..., Any],
  cpu: Callable[..., Any] | None = None,
) -> Callable[..., Any]:
  """Makes a primitive of a kernel.

  Args:
    name: of the primitive; starts with `q_`.
    kernel: JAX function (*arrays, **params) -> array without any float.
    oracle: NumPy function of the same signature.
    batch: JAX batching rule (args, axes, **params) -> (result, axis).
    cpu: kernel for programs that run on one CPU, and here; same results.

  Returns:
    A function (*arrays, **params) that binds the primitive.
  """
  primitive = jex_core.Primitive(name)

  def abstract(*avals, **params):
    shapes = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in avals]
    result = jax.eval_shape(functools.partial(kernel, **params), *shapes)
    return jax.core.ShapedArray(result.shape, result.dtype)

  @functools.lru_cache(maxsize=1024)
  def compiled(params):
    return jax.jit(lambda *args: primitive.bind(*args, **dict(params)))

  def run(*args, **params):
    if jax.config.jax_disable_jit:  # type: ignore[attr-defined]
      return kernel(*args, **params)
    return compiled(tuple(sorted(params.items())))(*args)

  primitive.def_abstract_eval(abstract)
  primitive.def_impl(run)
  anywhere = mlir.lower_fun(kernel, multiple_results=False)
  mlir.register_lowering(primitive, anywhere)
  if cpu is not None:
    here = mlir.lower_fun(cpu, multiple_results=False)

    def rule(ctx, *args, **params):
      chosen = here if internals.runs_here(ctx) else anywhere
      return chosen(ctx, *args, **params)

    mlir.register_lowering(primitive, rule, platform='cpu')
  batching.primitive_batchers[primitive] = batch
  REGISTRY[name] = IntegerOp(primitive, kernel, oracle)

  @functools.wraps(kernel)
  def bind(*args, **params):
    return primitive.bind(*(jnp.asarray(a) for a in args), **params)

  bind.__name__ = name
  bind.__doc__ = kernel.__doc__
  return bind


def require_unmapped(name: str, **axes: Any) -> None:
  """Raises if vmap maps an operand that is a constant of the program."""
  for operand, axis in axes.items():
    if axis is not None:
      raise NotImplementedError(
        f'{name}: vmap over {operand!r} is not supported: it is a constant of '
        'the integer program (jax.vmap maps all that the branches of a '
        'lax.cond read, if it maps what chooses one: use jax.lax.map)'
      )


def batch_leading(bind: Callable[[], Callable], name: str, mapped: int = 1):
  """Batching for operations that treat all leading axes alike.

  Args:
    bind: thunk of the binding function (it is defined after its rule).
    name: of the primitive, for errors.
    mapped: the first `mapped` operands may carry the new axis; the others are
      constants that line up with trailing axes.

  Returns:
    A JAX batching rule.
  """

  def rule(args, axes, **params):
    constants = {f'operand {i}': a for i, a in enumerate(axes) if i >= mapped}
    require_unmapped(name, **constants)
    rank = max(
      x.ndim - (axis is not None)
      for x, axis in zip(args[:mapped], axes[:mapped])
    )
    moved = []
    for x, axis in zip(args[:mapped], axes[:mapped]):
      if axis is not None:
        x = jnp.moveaxis(x, axis, 0)
        x = x.reshape(x.shape[0], *(1,) * (rank + 1 - x.ndim), *x.shape[1:])
      moved.append(x)
    return bind()(*moved, *args[mapped:], **params), 0

  return rule
