"""Which function a lookup table is, if it is one that runtimes name.

A table in an integer program is just numbers; given what its input and output
codes stand for, it is compared with the same table of every known function.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy import special

from s8bqat_jax.export.program import Value
from s8bqat_jax.integer import softmax

# A table is made of float32 values: codes near a rounding boundary may differ.
_ODD_SHARE = 0.02


def _gelu(x):
  return x * 0.5 * (1 + special.erf(x / np.sqrt(2)))


def _gelu_tanh(x):
  return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


FUNCTIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
  'identity': lambda x: x,
  'logistic': special.expit,
  'tanh': np.tanh,
  'silu': lambda x: x * special.expit(x),
  'gelu': _gelu,
  'gelu_tanh': _gelu_tanh,
  'exp': np.exp,
  'elu': lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0))),
}


def identify(x: Value, y: Value, table: np.ndarray, out: Any) -> str | None:
  """Names the function of a table.

  Args:
    x: what is looked up.
    y: what is found.
    table: a code for each code of x.
    out: the operation's Out.

  Returns:
    A key of FUNCTIONS, or None.
  """
  if np.unique(table).size <= 2:
    # A decision: it must be exact, and at whole units resembles a sigmoid.
    return None
  codes = np.arange(len(table)) - len(table) / 2
  reals = (codes - x.zero) * x.scale
  for name, fn in FUNCTIONS.items():
    with np.errstate(over='ignore'):
      ideal = np.minimum(fn(reals), 1e30) / y.scale + y.zero
    expected = np.clip(np.floor(ideal + 0.5), out.low, out.high)
    error = np.abs(expected - table)
    if np.all(error <= 1) and np.mean(error > 0) <= _ODD_SHARE:
      return name
  return None


def exp_scale(table: np.ndarray) -> float:
  """Returns the scale s of a table of round(2^15 exp(-d s)), d = 0..255.

  Least squares on the logarithm, each entry weighted by its precision.
  """
  t = np.asarray(table, np.float64)[1:]
  d = np.arange(1, len(t) + 1)
  logs = np.log(np.maximum(t, 1) / 2.0**softmax.EXP_BITS)
  return float(-np.sum(t**2 * d * logs) / np.sum(t**2 * d**2))
