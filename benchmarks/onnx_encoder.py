"""The exported integer encoder in ONNX Runtime against its own float model.

The streaming step of a two-layer LSTM encoder over one frame, and over eight:
the same weights as float32 ONNX operators (checked against JAX), as ONNX
Runtime's own dynamic quantization of that file, and as our integer program
exported (checked against it, code by code). Runs in turn, on one thread;
medians. Writes experiments/results/onnx_encoder.json. Needs the export extra.
"""

from __future__ import annotations

import pathlib
import tempfile
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import onnx
from absl import app, flags, logging
from onnx import helper, numpy_helper
from onnxruntime import quantization

from benchmarks import integer_encoder
from experiments import results, usage
from s8bqat_jax import integer
from s8bqat_jax.export import onnxfile, witness
from s8bqat_jax.export.onnxfile import runtime

_WIDTHS = flags.DEFINE_list('onnx_widths', ['256', '512', '1024'], 'Hidden.')
_CHUNKS = flags.DEFINE_list('onnx_chunks', ['1', '8'], 'Frames at once.')
_OPSET = 21
_MELS = integer_encoder.MELS * integer_encoder.STACK


class FloatGraph:
  """The encoder's step, written with float32 ONNX operators."""

  def __init__(self, params: dict[str, Any], layers: int, chunk: int):
    """Writes the graph.

    Args:
      params: of the encoder, from `integer_encoder.Encoder`.
      layers: LSTM layers.
      chunk: frames of one call.
    """
    self._nodes: list[Any] = []
    self._held: list[Any] = []
    self._made = 0
    depth, gates = params['encoder_0']['kernel'].shape
    width = gates // 4
    inputs: dict[str, tuple[int, ...]] = {'feats': (1, chunk, depth - width)}
    states: list[str] = []
    rows = self._split('feats', chunk, axis=1)
    rows = [self._squeeze(row) for row in rows]
    for i in range(layers):
      h, c = f'h{i}', f'c{i}'
      inputs |= {h: (1, width), c: (1, width)}
      layer = params[f'encoder_{i}']
      weights = {k: self._hold(v) for k, v in layer.items()}
      for t, row in enumerate(rows):
        joined = self._op('Concat', row, h, axis=1)
        z = self._op(
          'Add', self._op('MatMul', joined, weights['kernel']), weights['bias']
        )
        i_, f, g, o = self._split(z, 4, axis=1)
        i_, f, o = (self._op('Sigmoid', x) for x in (i_, f, o))
        kept = self._op('Mul', f, c)
        c = self._op('Add', kept, self._op('Mul', i_, self._op('Tanh', g)))
        h = rows[t] = self._op('Mul', o, self._op('Tanh', c))
      states += [h, c]
    out = {k: self._hold(v) for k, v in params['encoder_out'].items()}
    many = self._op('Concat', *rows, axis=0) if chunk > 1 else rows[0]
    made = self._op('MatMul', many, out['kernel'])
    outputs = {self._op('Add', made, out['bias']): (chunk, None)}
    outputs |= dict.fromkeys(states, (1, width))
    info = lambda name, shape: helper.make_tensor_value_info(
      name, onnx.TensorProto.FLOAT, shape
    )
    graph = helper.make_graph(
      self._nodes,
      'encoder',
      [info(name, shape) for name, shape in inputs.items()],
      [info(name, shape) for name, shape in outputs.items()],
      self._held,
    )
    opset = [helper.make_opsetid('', _OPSET)]
    self.model = helper.make_model(graph, opset_imports=opset, ir_version=10)
    onnx.checker.check_model(self.model)
    self.inputs = tuple(inputs)

  def _op(self, kind: str, *ins: str, **attributes: Any) -> str:
    return self._ops(kind, ins, 1, **attributes)[0]

  def _ops(self, kind, ins, count, **attributes) -> list[str]:
    names = [f'{kind}_{self._made}_{i}' for i in range(count)]
    self._made += 1
    self._nodes.append(helper.make_node(kind, ins, names, **attributes))
    return names

  def _split(self, name: str, count: int, axis: int) -> list[str]:
    if count == 1:
      return [name]
    return self._ops('Split', [name], count, axis=axis, num_outputs=count)

  def _squeeze(self, name: str) -> str:
    return self._op('Squeeze', name, self._hold([1]))

  def _hold(self, value: Any) -> str:
    name = f'weight_{len(self._held)}'
    self._held.append(numpy_helper.from_array(np.asarray(value), name))
    return name


def quantized(model: Any) -> bytes:
  """Returns the file that ONNX Runtime's dynamic quantization makes."""
  with tempfile.TemporaryDirectory() as folder:
    a, b = (pathlib.Path(folder) / name for name in ('a.onnx', 'b.onnx'))
    onnx.save(model, a)
    quantization.quantize_dynamic(a, b)
    return b.read_bytes()


def sides(width: int, chunk: int) -> tuple[dict[str, Callable], float, float]:
  """Returns the three to race, checked, with the errors of the check.

  Args:
    width: hidden units.
    chunk: frames of one call.

  Returns:
    (calls by name, largest error of the float graph against JAX, share of our
    codes that ONNX Runtime gives).
  """
  encoder = integer_encoder.Encoder(width)
  feats = encoder.inputs(1)[0][:, : chunk * integer_encoder.STACK]
  carry = encoder.model.apply({}, 1, method='initial_carry')
  new, enc = jax.jit(encoder.step)(encoder.params, carry, feats)
  graph = FloatGraph(encoder.params, integer_encoder.LAYERS, chunk)
  stacked = np.asarray(feats).reshape(1, chunk, _MELS)
  state = np.zeros((1, width), np.float32)
  feed = {k: stacked if k == 'feats' else state for k in graph.inputs}
  in_float = runtime.load(graph.model.SerializeToString(), threads=1)
  found = in_float.run(None, feed)
  wanted = [np.asarray(enc)[0], *(np.asarray(x) for hc in new for x in hc)]
  error = max(np.abs(a - b).max() for a, b in zip(found, wanted, strict=True))

  lowered = integer.lower(
    encoder.step, encoder.params, encoder.ranges, carry, feats, carry=True
  )
  codes = [np.asarray(x) for x in lowered.quantize(carry, feats)]
  exported = onnxfile.export(lowered)
  ours = runtime.Session(exported, threads=1)
  agreement = witness.pooled(
    list(map(witness.compare, lowered.integers(*codes), ours(*codes)))
  )
  dynamic = runtime.load(quantized(graph.model), threads=1)
  calls: dict[str, Callable[[], Any]] = {
    'float32': lambda: in_float.run(None, feed),
    'dynamic int8': lambda: dynamic.run(None, feed),
    'ours': lambda: ours(*codes),
  }
  return calls, float(error), agreement.identical


def main(argv):
  usage.no_arguments(argv)
  logging.set_verbosity(logging.ERROR)  # quantize_dynamic tells much
  rows, comparisons = [], []
  for width in map(int, _WIDTHS.value):
    for chunk in map(int, _CHUNKS.value):
      calls, error, share = sides(width, chunk)
      if error > 1e-4:
        raise AssertionError(f'the float graph is off JAX by {error}')
      seconds = integer_encoder.race(calls)
      system = f'encoder {width}, {chunk} frame{"s" * (chunk > 1)}'
      for method, s in seconds.items():
        metrics = {'milliseconds': 1e3 * s}
        if method == 'ours':
          metrics['equal_codes'] = share
        rows.append({'system': system, 'method': method, 'metrics': metrics})
      for peer in ('float32', 'dynamic int8'):
        comparisons.append(
          {'a': 'ours', 'b': peer, 'metric': 'speed', 'system': system}
          | {'ratio': seconds[peer] / seconds['ours']}
        )
        print(f'{system:28s} {comparisons[-1]["ratio"]:5.2f}x {peer}')
  results.write('onnx_encoder', rows, comparisons=comparisons)
  columns = {'system': '', 'method': '', 'milliseconds': '.3f'}
  print(results.table(rows, columns))


if __name__ == '__main__':
  app.run(main)
