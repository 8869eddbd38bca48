"""Ranges of every value of a float function, measured on data.

The function runs as it is, in float (measure.py). What it fills beyond
`MASK_LIMIT` is an attention mask, not data, and is left out.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from s8bqat_jax.artifacts import qtensor
from s8bqat_jax.integer import _jax_internals as internals
from s8bqat_jax.integer import keys, measure
from s8bqat_jax.integer.spec import MASK_LIMIT

# {name: (low, high)}
Ranges = Mapping[str, Sequence[float]]

EMA = 0.95
PERCENTILE = 99.99
_BINS = 2048
_CANDIDATES = 100


class _Uncalibrated(dict[str, Sequence[float]]):
  """Holds a range of every name."""

  def __missing__(self, key):
    return -4.0, 4.0

  def __contains__(self, key):
    return True

  def get(self, key, default=None):
    return self[key]


def uncalibrated() -> Ranges:
  """Returns one range for every value: for costs, which don't depend on it."""
  return _Uncalibrated()


def _extremes(key, x):
  """Lowest and highest of the data, then of what is as large as masks, +, -."""
  del key
  mask = jnp.abs(x) >= MASK_LIMIT  # False for NaN, which must show.
  extremes = []
  for of in (~mask, mask & (x > 0), mask & (x < 0)):
    extremes.append(jnp.min(jnp.where(of, x, jnp.inf), initial=jnp.inf))
    extremes.append(jnp.max(jnp.where(of, x, -jnp.inf), initial=-jnp.inf))
  return jnp.stack(extremes).astype(jnp.float32)


def _wider(a, b):
  """Merges (low, high, low, high, ...)."""
  return jnp.where(jnp.arange(len(a)) % 2, jnp.maximum(a, b), jnp.minimum(a, b))


_MINMAX = measure.Meter(
  _extremes, _wider, lambda: jnp.array([jnp.inf, -jnp.inf] * 3, jnp.float32)
)


def _histogram(ranges: Ranges) -> measure.Meter:
  """Counts in `_BINS` equal bins between the extremes of each value."""

  def statistic(key, x):
    low, high = ranges.get(key, (0.0, 0.0))
    width = max(high - low, 1e-30) / _BINS
    ok = jnp.abs(x) < MASK_LIMIT
    bins = jnp.where(ok, (x - low) / width, _BINS)
    bins = jnp.clip(bins, 0, _BINS).astype(jnp.int32).reshape(-1)
    # The value at the very top belongs to the last bin, a mask to none.
    bins = jnp.where((bins == _BINS) & ok.reshape(-1), _BINS - 1, bins)
    # In float32 a count would stop at 2^24.
    counts = jnp.zeros(_BINS + 1, jnp.int32).at[bins].add(1)
    return counts[:_BINS].astype(jnp.float32)

  return measure.Meter(
    statistic, jnp.add, lambda: jnp.zeros(_BINS, jnp.float32)
  )


def calibrate(
  fn: Callable[..., Any],
  params: Any,
  batches: Iterable[Any],
  method: str = 'minmax',
  carry: bool = False,
) -> dict[str, tuple[float, float]]:
  """Runs `fn` on data and returns the range of each of its values.

  Args:
    fn: float function (params, *inputs) -> outputs; any supported function is
      also what `lower` and `twin` take.
    params: pytree of its parameters; QTensor leaves are decoded.
    batches: the inputs of each call: a tuple, or the one that there is (an
      array, a dict, a named tuple).
    method: 'minmax'; 'ema' (minima and maxima averaged with weight 0.95 on the
      past, as in Q-ASR, over the batches that reach the value); 'percentile'
      (the central 99.99%); 'mse' (the clipping with the least 8-bit error).
    carry: the first input is a state that the first output replaces, as for
      `lower`. A state that runs through a loop is better measured on the
      function with the loop in it.

  Returns:
    {name: (low, high)}, plain floats, fit for JSON. A value that no batch
    reached (in an untaken branch) has none.

  Raises:
    ValueError: unknown method, no batch, NaN in a value, or an input of 5e5
      and more, which can't be told from a mask.
  """
  if method not in ('minmax', 'ema', 'percentile', 'mse'):
    raise ValueError(
      f"method must be 'minmax', 'ema', 'percentile' or 'mse', got {method!r}"
    )
  params = qtensor.decode(params)
  batches = [_arguments(b) for b in batches]
  if not batches:
    raise ValueError('calibrate needs at least one batch')
  for batch in batches:
    _check_inputs(batch)
  if not any(np.size(x) for x in jax.tree.leaves(batches)):
    raise ValueError('calibrate needs data: all batches are empty')
  weight = EMA if method == 'ema' else None
  ranges = _extremes_over(fn, params, batches, weight, carry)
  if method in ('minmax', 'ema'):
    return ranges
  run = jax.jit(functools.partial(measure.run, fn, _histogram(ranges), carry))
  totals: dict[str, np.ndarray] = {}
  for inputs in batches:
    for key, counts in run(params, *inputs).items():
      totals[key] = totals.get(key, 0) + np.asarray(counts, np.float64)
  clip = _percentile if method == 'percentile' else _least_error
  return {k: clip(totals[k], *ranges[k]) for k in ranges}


def _arguments(batch: Any) -> tuple[Any, ...]:
  """A batch as the inputs of one call; a named tuple is one of them."""
  several = isinstance(batch, tuple) and not hasattr(batch, '_fields')
  return batch if several else (batch,)


def _check_inputs(batch: tuple[Any, ...]) -> None:
  for path, x in jax.tree_util.tree_leaves_with_path(batch):
    if not jnp.issubdtype(jnp.result_type(x), jnp.floating):
      continue
    peak = float(np.max(np.abs(np.asarray(x, np.float32)), initial=0.0))
    if peak >= MASK_LIMIT:
      raise ValueError(
        f'inputs{jax.tree_util.keystr(path)} reaches {peak:.3g}, and no code '
        'stands for that: give a mask as booleans and let the function fill, '
        'jnp.where(mask, x, -1e9); scale data'
      )


def saturation(
  fn: Callable[..., Any],
  params: Any,
  ranges: Ranges,
  batches: Iterable[Any],
  limit: float | None = None,
  carry: bool = False,
) -> dict[str, float]:
  """Counts what the float function puts beyond its ranges.

  Such values saturate in the integer function. Some do whenever `method` clips
  or new data is wider than the calibration's; many mean that the ranges belong
  to other weights or other data.

  Args:
    fn: float function, as for `calibrate`.
    params: its parameters.
    ranges: of the same function; values without one are not counted.
    batches: the inputs of each call.
    limit: the largest share to accept without an error.
    carry: as for `calibrate`.

  Returns:
    {name: share of its values beyond its range}, largest first, zeros left out.

  Raises:
    ValueError: a share exceeds the limit; it names the values.
  """

  def statistic(key, x):
    ok = jnp.abs(x) < MASK_LIMIT
    low, high = ranges.get(key, (-np.inf, np.inf))
    # An 8-bit grid reaches half a step further, and always to zero.
    slack = (max(high, 0.0) - min(low, 0.0)) / 510
    beyond = (x < min(low, 0.0) - slack) | (x > max(high, 0.0) + slack)
    count = lambda b: jnp.sum(b, dtype=jnp.float32)
    return jnp.stack([count(beyond & ok), count(ok)])

  meter = measure.Meter(statistic, jnp.add, lambda: jnp.zeros(2, jnp.float32))
  run = jax.jit(functools.partial(measure.run, fn, meter, carry))
  params = qtensor.decode(params)
  totals: dict[str, np.ndarray] = {}
  for batch in batches:
    for key, counts in run(params, *_arguments(batch)).items():
      totals[key] = totals.get(key, 0) + np.asarray(counts, np.float64)
  shares = {k: float(n[0] / max(n[1], 1)) for k, n in totals.items()}
  found = dict(sorted(shares.items(), key=lambda kv: -kv[1]))
  found = {k: share for k, share in found.items() if share}
  worst = {k: v for k, v in found.items() if limit is not None and v > limit}
  if worst:
    listed = ', '.join(f'{k} ({v:.1%})' for k, v in [*worst.items()][:5])
    raise ValueError(
      f'{len(worst)} values exceed their ranges more often than {limit:.1%} of '
      f'the time: {listed}; calibrate with these weights, on data like this'
    )
  return found


def output_names(
  fn: Callable[..., Any], params: Any, *inputs: Any
) -> list[str]:
  """Returns the names of a function's outputs among its ranges.

  What one function returns another may take: give both the same range, and
  the integers go from one to the other as they are.

  Args:
    fn: float function (params, *inputs) -> outputs.
    params: pytree of its parameters; QTensor leaves are decoded.
    *inputs: arrays or ShapeDtypeStructs.

  Returns:
    One name per output (flattened).
  """
  params = qtensor.decode(params)
  graph, _ = internals.trace(fn, params, *inputs)
  names = keys.of_arguments(params, inputs, carry=False)
  return [key.name for key in keys.assign(graph, names)[1]]


def _extremes_over(
  fn, params, batches, weight, carry
) -> dict[str, tuple[float, float]]:
  run = jax.jit(functools.partial(measure.run, fn, _MINMAX, carry))
  total: dict[str, np.ndarray] = {}
  large: dict[str, np.ndarray] = {}
  for inputs in batches:
    for key, value in run(params, *inputs).items():
      new, beyond = np.split(np.asarray(value, np.float64), [2])
      large[key] = np.asarray(_wider(large.get(key, beyond), beyond))
      if new[0] > new[1]:
        continue  # This batch did not reach it: an untaken branch, a mask.
      old = total.get(key, new)
      if weight is None:
        total[key] = np.asarray(_wider(old, new), np.float64)
      else:
        total[key] = weight * old + (1 - weight) * new
  broken = sorted(k for k, v in total.items() if np.any(np.isnan(v)))
  if broken:
    raise ValueError(
      f'NaN in {broken[:5]} ({len(broken)} values in all); check the '
      'calibration data and the model'
    )
  # What fills is one number; data that large varies, to either side of zero.
  for key, (least, most, *down) in large.items():
    if key not in total and down[0] <= down[1]:
      total[key] = np.zeros(2)  # All of it was masked.
    if least * (1 + 1e-3) < most < np.inf:
      low, high = total.get(key, (0.0, 0.0))
      low = min([low, *filter(np.isfinite, down)])
      total[key] = np.array([low, max(high, most)])
  return {k: (float(v[0]), float(v[1])) for k, v in total.items()}


def _percentile(counts: np.ndarray, low: float, high: float):
  """The bins that hold the central `PERCENTILE` of the values."""
  share = np.cumsum(counts) / max(counts.sum(), 1.0)
  tail = (1 - PERCENTILE / 100) / 2
  first = int(np.searchsorted(share, tail, side='right'))
  last = int(np.searchsorted(share, 1 - tail, side='left'))
  width = (high - low) / _BINS
  return low + first * width, low + min(last + 1, _BINS) * width


def _least_error(counts: np.ndarray, low: float, high: float):
  """Shrinks both ends together to the least squared error of 8-bit codes."""
  centers = low + (np.arange(_BINS) + 0.5) * (high - low) / _BINS
  best, answer = np.inf, (low, high)
  for share in np.linspace(1.0, 0.05, _CANDIDATES):
    lo, hi = float(min(low * share, 0.0)), float(max(high * share, 0.0))
    step = max(hi - lo, 1e-30) / 255
    grid = np.clip(np.rint((centers - lo) / step), 0, 255) * step + lo
    error = float(np.sum(counts * (centers - grid) ** 2))
    if error < best:
      best, answer = error, (lo, hi)
  return answer
