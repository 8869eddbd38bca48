"""The RNN-T's encoder in integers against float32, whole function, one run.

Whole utterances at several widths and batch sizes, and one frame at a time as
a stream gives them. The two sides of a row run in turn on the same features;
medians. Both keep freed memory in the process, which otherwise dominates the
float side. Writes experiments/results/integer_encoder.json.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from experiments import results, usage
from s8bqat_jax import integer
from s8bqat_jax.integer import native
from s8bqat_jax.models import rnnt

_WIDTHS = flags.DEFINE_list('widths', ['512', '1024'], 'Hidden units.')
_BATCHES = flags.DEFINE_list('batches', ['8', '32'], 'Utterances at once.')
_ROUNDS = flags.DEFINE_integer('rounds', 9, 'Timed calls of each side.')

# 3.2 s of speech: feature frames, features, and frames stacked into one.
FRAMES, MELS, STACK, LAYERS = 320, 80, 4, 2


def race(sides: dict[str, Callable[[], Any]]) -> dict[str, float]:
  """Returns each side's median seconds, calls taken in turn."""
  for call in sides.values():
    jax.block_until_ready(call())
  times: dict[str, list[float]] = {name: [] for name in sides}
  for _ in range(_ROUNDS.value):
    for name, call in sides.items():
      start = time.perf_counter()
      jax.block_until_ready(call())
      times[name].append(time.perf_counter() - start)
  return {name: statistics.median(t) for name, t in times.items()}


class Encoder:
  """One model, in float and lowered.

  Args:
    width: hidden units.
  """

  def __init__(self, width: int):
    self.model = rnnt.RNNT(
      64,
      encoder_width=width,
      encoder_layers=LAYERS,
      predictor_width=8,
      joint_width=width,
      stack=STACK,
    )
    feats, lengths = self.inputs(1)
    labels = jnp.ones((1, 1), jnp.int32)
    params = jax.jit(self.model.init)(
      jax.random.key(0), feats, lengths, labels
    )['params']
    self.params = {k: v for k, v in params.items() if k.startswith('encoder')}
    self.encode = self._method('encode')
    self.step = self._method('encode_chunk')
    self.ranges = integer.calibrate(self.encode, self.params, [self.inputs(4)])

  def inputs(self, batch: int) -> tuple[jax.Array, jax.Array]:
    feats = jax.random.normal(jax.random.key(1), (batch, FRAMES, MELS))
    return feats, jnp.full(batch, FRAMES)

  def _method(self, name: str) -> Callable[..., Any]:
    return lambda params, *args: self.model.apply(
      {'params': params}, *args, method=name
    )

  def whole(self, batch: int) -> tuple[dict[str, Any], float]:
    """Both sides of whole utterances, and their agreement in dB."""
    inputs = self.inputs(batch)
    lowered = integer.lower(self.encode, self.params, self.ranges, *inputs)
    in_float = jax.jit(self.encode)
    y = np.asarray(in_float(self.params, *inputs)[0], np.float64)
    z = np.asarray(lowered(*inputs)[0], np.float64)
    decibel = 10 * np.log10((y**2).mean() / ((y - z) ** 2).mean())
    return {
      'float32': lambda: in_float(self.params, *inputs),
      **integer_sides(lowered, *inputs),
    }, float(decibel)

  def frame(self) -> dict[str, Any]:
    """Both sides of one step of a stream."""
    feats = self.inputs(1)[0][:, :STACK]
    carry = self.model.apply({}, 1, method='initial_carry')
    lowered = integer.lower(
      self.step, self.params, self.ranges, carry, feats, carry=True
    )
    in_float = jax.jit(self.step)
    return {
      'float32': lambda: in_float(self.params, carry, feats),
      **integer_sides(lowered, carry, feats),
    }


def integer_sides(lowered: Any, *args: Any) -> dict[str, Callable[[], Any]]:
  """The program on its arguments, with the native product and without."""
  codes = lowered.quantize(*args)

  def side():
    compiled = jax.jit(lowered.integers).lower(*codes).compile()
    return lambda: compiled(*codes)

  with native.disabled():
    xla = side()
  if not native.available():
    return {'integer': xla}
  return {'integer': side(), "integer, XLA's product": xla}


def main(argv):
  usage.start(argv)
  rows, comparisons = [], []

  def record(system, sides, **metrics):
    seconds = race(sides)
    for method, s in seconds.items():
      found = {'milliseconds': 1e3 * s, **metrics}
      rows.append({'system': system, 'method': method, 'metrics': found})
    for peer in [name for name in seconds if name != 'integer']:
      ratio = seconds[peer] / seconds['integer']
      comparisons.append(
        {'a': 'integer', 'b': peer, 'metric': 'speed', 'system': system}
        | {'ratio': ratio}
      )
      print(f'{system:36s} {ratio:5.2f}x {peer}', flush=True)

  for width in map(int, _WIDTHS.value):
    encoder = Encoder(width)
    for batch in map(int, _BATCHES.value):
      sides, decibel = encoder.whole(batch)
      record(f'encoder {width}, batch {batch}', sides, snr_db=decibel)
    record(f'encoder {width}, one frame', encoder.frame())
  results.write(
    'integer_encoder',
    rows,
    comparisons=comparisons,
    native=native.available(),
  )
  columns = {'system': '', 'method': '', 'milliseconds': '.3f', 'snr_db': '.1f'}
  print(results.table(rows, columns))


if __name__ == '__main__':
  app.run(main)
