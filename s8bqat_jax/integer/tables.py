"""Tables: functions of one value, evaluated at every code it can have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from s8bqat_jax.integer import elementwise
from s8bqat_jax.integer.spec import MASK_LIMIT, TRUTH, Spec
from s8bqat_jax.integer.values import Operand

Function = Callable[[Any], Any]


def evaluate(fn: Function, reals: np.ndarray) -> np.ndarray:
  """Returns an elementwise function of some reals, when lowering."""
  with jax.ensure_compile_time_eval(), np.errstate(all='ignore'):
    return np.asarray(fn(jnp.asarray(reals, jnp.float32)))


def lookup(base: Operand, fn: Function, target: Spec, site: str) -> Any:
  """Emits a function of a value as a table of codes.

  Args:
    base: the value.
    fn: of its reals.
    target: of the result.
    site: name of the result.
  """
  check_masks(base.spec, fn, target, site)
  values = evaluate(fn, base.spec.values()).astype(np.float64)
  table = target.quantize_np(np.nan_to_num(values))
  return elementwise.q_lut(base.codes, table, out=target.out, site=site)


def masks(base: Spec, fn: Function) -> bool:
  """Whether a function leaves masks in place, or makes them of 0 or 1."""
  ends = [*base.interval, *base.values()[: int(base.masked)]]
  reals = evaluate(fn, np.asarray(ends))
  # Of data, zero may be in the interval but not among the values: 1 / x, log.
  real = np.isfinite(reals) | (base == TRUTH)
  return bool(np.any((reals <= -MASK_LIMIT) & real))


def check_masks(base: Spec, fn: Function, target: Spec, site: str) -> None:
  """Refuses a function whose value at a mask is beyond what has a code."""
  if not base.masked:
    return
  (real,) = evaluate(fn, base.values()[:1])
  if target.interval[1] < MASK_LIMIT <= real:
    raise ValueError(
      f'{site!r} turns masks, entries of {-MASK_LIMIT:g} and less, into '
      f'{real:.3g}, for which integers have nothing: mask after it'
    )
