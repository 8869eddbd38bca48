"""Fits the Ethos-U cost model to Vela, and judges it on what it has not seen.

  python -m benchmarks.cost_model          judge: experiments/results/
  python -m benchmarks.cost_model --fit    first fit s8bqat_jax/npu/ethos.json

Machines: Ethos-U55-128, U65-512 and U85-512, as Vela costs them by default.
Weights: Gaussian, rounded to 8 bits or to 2^n Lloyd-Max centroids on the int8
grid. Fitted on single products of a grid of shapes, on networks of a few
widths; judged on other shapes, other widths and other networks, 5 bits among
them, and on the step functions of the published recognizer. An operation's
error is |estimate / Vela - 1|, a model's likewise of the sum; operations that
Vela fuses into others (0 cycles) count in the sums only. Needs the export
extra.
"""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from absl import app, flags

from experiments import exporting, results
from s8bqat_jax import integer
from s8bqat_jax.artifacts import qtensor
from s8bqat_jax.export import tflite
from s8bqat_jax.models import rnnt
from s8bqat_jax.npu import ethos, fit, vela
from s8bqat_jax.quantizers import codebook, lloyd_max

matplotlib.use('Agg')
from matplotlib import pyplot  # noqa: E402

_FIT = flags.DEFINE_bool('fit', False, 'Fit and write the constants first.')

BITS = (8, 5, 4, 2)
_LAYERS = 'dense', 'conv', 'depthwise'
PUBLISHED = (
  pathlib.Path(exporting.__file__).parent / 'models/digits_4bit.safetensors'
)
CLOCKS = {'ethos-u55-128': 5e8, 'ethos-u65-512': 1e9, 'ethos-u85-512': 1e9}
MULTIPLIERS = {'ethos-u55-128': 128, 'ethos-u65-512': 512, 'ethos-u85-512': 512}


class Case(NamedTuple):
  """A program to be costed.

  Attributes:
    group: which line of the report it belongs to.
    name: of the case.
    bits: of its weights.
    make: () -> IntegerFunction.
  """

  group: str
  name: str
  bits: int
  make: Callable[[], Any]


@functools.cache
def _codebook(bits: int) -> Any:
  sample = jnp.asarray(np.random.default_rng(0).normal(size=2**14), 'f')
  return lloyd_max.fit(sample, 2**bits, grid='int8')


def weight(shape: tuple[int, ...], bits: int, seed: int) -> qtensor.QTensor:
  """Gaussian weights of so many bits."""
  w = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
  if bits == 8:
    scale = np.abs(w).max() / 127
    return qtensor.QTensor(np.rint(w / scale).astype(np.int8), scale, None, 256)
  return jax.tree.map(
    np.asarray, codebook.quantize(jnp.asarray(w), _codebook(bits))
  )


def _lower(fn, params, *inputs, bits: int, **options) -> Any:
  """Lowers with random weights of so many bits."""
  shapes, tree = jax.tree.flatten(params)
  drawn = [
    weight(s.shape, bits, i) if len(s.shape) > 1 else np.ones(s.shape, 'f')
    for i, s in enumerate(shapes)
  ]
  params = jax.tree.unflatten(tree, drawn)
  return integer.lower(fn, params, integer.uncalibrated(), *inputs, **options)


def _spec(*shape: int) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(shape, jnp.float32)


def dense(rows: int, depth: int, channels: int, bits: int) -> Any:
  fn = lambda p, x: x @ p
  x = np.zeros((rows, depth), np.float32)
  return _lower(fn, _spec(depth, channels), x, bits=bits)


def conv(
  frames: int,
  inputs: int,
  channels: int,
  width: int,
  bits: int,
  groups: int = 1,
) -> Any:
  kernel = _spec(width, inputs // groups, channels)
  x = np.zeros((1, frames, inputs), np.float32)
  return _lower(functools.partial(_conv, groups=groups), kernel, x, bits=bits)


def _conv(kernel, x, groups):
  return jax.lax.conv_general_dilated(
    x, kernel, (1,), 'SAME', dimension_numbers=('NWC', 'WIO', 'NWC'),
    feature_group_count=groups,
  )  # fmt: skip


def recognizer(part: str, width: int, layers: int, bits: int) -> Any:
  """One streaming step of the repository's transducer."""
  model = rnnt.RNNT(
    64, encoder_width=width, encoder_layers=layers, predictor_width=width,
    embed_width=32, joint_width=width, stack=2,
  )  # fmt: skip
  feats = np.zeros((1, 2, 40), np.float32)
  one = np.ones((1, 1), np.int32)
  params = jax.eval_shape(
    lambda: model.init(jax.random.key(0), feats, np.array([2]), one)
  )['params']
  apply = lambda p, *a, method: model.apply({'params': p}, *a, method=method)
  inputs: Any
  options: dict[str, Any] = {'carry': True}
  if part == 'encoder':
    method = 'encode_chunk'
    inputs = (model.apply({}, 1, method='initial_carry'), feats)
  elif part == 'predictor':
    method = 'predict_step'
    inputs = (model.apply({}, 1, method='initial_prediction'), one[0])
  else:
    method = 'joint'
    inputs = (np.zeros((1, width), np.float32),) * 2
    # Logits of 16 bits, as a shipped recognizer's.
    options = {'output_bits': 16}
  fn = functools.partial(apply, method=method)
  return _lower(fn, params, *inputs, bits=bits, **options)


def mlp(rows: int, width: int, layers: int, bits: int) -> Any:
  """Products and gelus with residuals."""

  def fn(p, x):
    for up, down in p:
      x = x + jax.nn.gelu(x @ up) @ down
    return x

  params = [(_spec(width, 4 * width), _spec(4 * width, width))] * layers
  return _lower(fn, params, np.zeros((rows, width), np.float32), bits=bits)


def separable(
  frames: int, channels: int, width: int, blocks: int, bits: int
) -> Any:
  """QuartzNet's blocks, BatchNorm folded: depthwise, pointwise, residual."""

  def fn(p, x):
    for deep, point in p:
      y = _conv(deep, x, channels)
      x = jax.nn.relu(x + _conv(point, y, 1))
    return x

  block = (_spec(width, 1, channels), _spec(1, channels, channels))
  x = np.zeros((1, frames, channels), np.float32)
  return _lower(fn, [block] * blocks, x, bits=bits)


_DENSE_FIT = (
  (64, 64), (96, 384), (256, 256), (160, 1024), (512, 2048), (1024, 256),
  (640, 640), (1280, 128), (256, 1024), (2048, 512),
)  # fmt: skip
_DENSE_SEEN_NOT = ((128, 128), (192, 768), (320, 512), (768, 320), (384, 1536))
_CONV_FIT = (
  (32, 64, 64, 3), (64, 64, 128, 5), (64, 256, 256, 3), (128, 128, 64, 1),
  (16, 512, 512, 1), (100, 64, 256, 1), (32, 256, 128, 7), (200, 80, 64, 3),
  (48, 64, 96, 5), (80, 128, 256, 1), (128, 96, 128, 3), (24, 192, 384, 1),
  (48, 160, 160, 3),
)  # fmt: skip
_CONV_SEEN_NOT = (
  (64, 96, 96, 3), (100, 128, 128, 5), (40, 256, 512, 1), (80, 160, 64, 7),
  (24, 320, 320, 1),
)  # fmt: skip
_DEPTHWISE_FIT = (
  (64, 64, 11), (64, 256, 33), (128, 128, 7), (32, 512, 15), (200, 64, 3),
  (100, 256, 11), (32, 128, 33), (48, 96, 9), (128, 160, 17), (80, 256, 5),
  (64, 192, 25), (100, 96, 7),
)  # fmt: skip
_DEPTHWISE_SEEN_NOT = (
  (64, 128, 15), (100, 192, 21), (40, 80, 9), (128, 320, 25),
)  # fmt: skip


def fitted() -> Iterator[Case]:
  """What the constants are fitted to."""
  return _cases(
    _DENSE_FIT, _CONV_FIT, _DEPTHWISE_FIT,
    # Narrow ones on both sides of the published predictor's 32.
    networks=(
      (16, 1), (48, 1), (64, 1), (192, 2), (384, 1), (640, 1), (1024, 1),
    ),
    mlps=((1, 96, 1), (8, 192, 2), (1, 384, 1), (8, 320, 1)),
    separables=((64, 64, 11, 2), (32, 128, 33, 1), (100, 96, 7, 2)),
    bits=(8, 4, 2),
  )  # fmt: skip


def unseen() -> Iterator[Case]:
  """What it is judged on."""
  yield from _cases(
    _DENSE_SEEN_NOT, _CONV_SEEN_NOT, _DEPTHWISE_SEEN_NOT,
    networks=((32, 1), (96, 2), (128, 1), (256, 2), (512, 2), (768, 1)),
    mlps=((1, 128, 2), (8, 256, 1), (1, 512, 2)),
    separables=((64, 96, 15, 2), (48, 160, 21, 3)),
    bits=BITS,
  )  # fmt: skip
  published = functools.cache(lambda: exporting.functions(PUBLISHED))
  for part in ('encoder', 'predictor', 'joint'):
    make = functools.partial(lambda part: published()[part], part)
    yield Case('published model', f'{PUBLISHED.stem} {part}', 4, make)


def _cases(
  denses, convs, depthwises, *, networks, mlps, separables, bits
) -> Iterator[Case]:
  for b in bits:
    for k, n in denses:
      for m in (1, 8):
        make = functools.partial(dense, m, k, n, b)
        yield Case('dense', f'{m}x{k}x{n}', b, make)
    for w, layers in networks:
      for part in ('encoder', 'predictor', 'joint'):
        make = functools.partial(recognizer, part, w, layers, b)
        yield Case(f'RNN-T {part} step', f'{layers}x{w}', b, make)
    for m, w, layers in mlps:
      make = functools.partial(mlp, m, w, layers, b)
      yield Case('MLP', f'{m}x{w}x{layers}', b, make)
    for t, c, n, k in convs:
      make = functools.partial(conv, t, c, n, k, b)
      yield Case('conv', f'{t}x{c}x{n} width {k}', b, make)
    for t, c, k in depthwises:
      make = functools.partial(conv, t, c, c, k, b, c)
      yield Case('depthwise', f'{t}x{c} width {k}', b, make)
    for t, c, k, n in separables:
      make = functools.partial(separable, t, c, k, n, b)
      yield Case('QuartzNet blocks', f'{t}x{c} width {k} x{n}', b, make)


def study(case: Case, failed: list[str]) -> dict[str, list[fit.Sample]]:
  """A case's operations with what Vela says of them, per machine."""
  fn = case.make()
  data, works, found = tflite.export(fn).data, ethos.works(fn), {}
  for target in MULTIPLIERS:
    try:
      report = vela.report(data, target)
    except ValueError as e:
      failed.append(f'{case.group} {case.name}, {case.bits} bits: {e}')
    else:
      found[target] = fit.samples(works, report)
  return found


def main(_) -> None:
  results.revision()
  failed: list[str] = []
  if _FIT.value:
    learned: dict[str, list[fit.Sample]] = {t: [] for t in MULTIPLIERS}
    for case in fitted():
      for target, found in study(case, failed).items():
        learned[target] += found
    fit.save(
      ethos.CONSTANTS,
      {
        t: fit.fit(t, CLOCKS[t], MULTIPLIERS[t], learned[t])
        for t in MULTIPLIERS
      },
      made_by='python -m benchmarks.cost_model --fit',
    )
    ethos.machines.cache_clear()
  rows: list[dict[str, Any]] = []
  ops: dict[tuple[str, str], list[float]] = {}
  for case in unseen():
    for target, found in study(case, failed).items():
      machine = ethos.machines()[target]
      ours = [ethos.cost(s.work, machine).cycles for s in found]
      theirs = [s.cycles for s in found]
      for estimate, s in zip(ours, found):
        if s.cycles:
          error = abs(estimate / s.cycles - 1)
          ops.setdefault((target, s.work.kind), []).append(error)
      metrics = {
        'cycles': sum(ours),
        'vela_cycles': sum(theirs),
        'error': sum(ours) / sum(theirs) - 1,
      }
      rows.append(
        {
          'system': target,
          'method': case.group,
          'case': case.name,
          'bits': case.bits,
          'metrics': metrics,
        }  # fmt: skip
      )
  comparisons: list[dict[str, Any]] = [
    {
      'a': 'estimate',
      'b': 'vela',
      'metric': 'mean absolute error',
      'system': target,
      'method': what,
      'level': level,
      'relative': mean,
      'largest': largest,
      'count': count,
    }  # fmt: skip
    for level, errors in (
      ('model', _grouped(rows, lambda row: row['method'])),
      ('operation', ops),
      ('machine', _grouped(rows, _of_machine)),
    )
    for (target, what), (mean, largest, count) in _means(errors).items()
  ]
  for c in comparisons:
    print(
      f'{c["system"]:14} {c["level"]:9} {c["method"]:26} '
      f'{100 * c["relative"]:6.1f}% (largest {100 * c["largest"]:.0f}%, '
      f'{c["count"]} cases)'
    )
  print('\n'.join(failed))
  path = results.write(
    'cost_model', rows, comparisons=comparisons, not_run=failed
  )
  _plot(comparisons, path.with_suffix('.png'))


def _grouped(rows, kind) -> dict[tuple[str, str], list[float]]:
  """Absolute errors of each system by the kind of row."""
  errors: dict[tuple[str, str], list[float]] = {}
  for row in rows:
    error = abs(row['metrics']['error'])
    errors.setdefault((row['system'], kind(row)), []).append(error)
  return errors


def _of_machine(row) -> str:
  """Networks, the published model among them, and layers on their own."""
  return 'layers' if row['method'] in _LAYERS else 'networks'


def _means(errors) -> dict[tuple[str, str], tuple[float, float, int]]:
  return {
    key: (float(np.mean(e)), float(np.max(e)), len(e))
    for key, e in sorted(errors.items())
  }


_TICKS = (0, 5, 10, 30, 100, 300)


def _plot(comparisons, path) -> None:
  """Mean errors as bars, the largest as marks: models, then operations."""
  figure, axes = pyplot.subplots(2, 1, figsize=(11, 9), layout='constrained')
  for axis, level in zip(axes, ('model', 'operation')):
    mine = [c for c in comparisons if c['level'] == level]
    names = sorted({c['method'] for c in mine})
    for i, target in enumerate(MULTIPLIERS):
      found = [c for c in mine if c['system'] == target]
      places = [names.index(c['method']) + 0.27 * (i - 1) for c in found]
      means = [100 * c['relative'] for c in found]
      axis.bar(places, means, 0.25, label=f'{target}, mean')
      largest = [100 * c['largest'] for c in found]
      label = 'largest' if i == len(MULTIPLIERS) - 1 else None
      axis.plot(places, largest, 'k_', markersize=7, label=label)
    axis.axhline(10, color='gray', linewidth=0.8, linestyle=':')
    axis.set_xticks(range(len(names)), names, rotation=30, ha='right')
    axis.set_ylabel('relative error of cycles, %')
    axis.set_title(f'|estimate / Vela - 1| per {level}, cases not fitted')
    # Linear up to 10%, which is where it begins to matter by how much.
    axis.set_yscale('symlog', linthresh=10)
    axis.set_yticks(_TICKS, [str(t) for t in _TICKS])
    axis.set_ylim(0, 150 * max(c['largest'] for c in mine))
  axes[0].legend(fontsize=9)
  figure.savefig(path, dpi=110)


if __name__ == '__main__':
  app.run(main)
