"""The int8 product against its float and integer peers, in one run.

  python -m benchmarks.int8_matmul

[M, K] x [K, N], the same integers for all:
  ours                 `int8_matmul`: product, bias, requantization to int8
  ours, XLA's product  the same without `s8bqat_jax.integer.native`
  float32              the product alone
  dot_general int8     bare `lax.dot_general`, int32 result
  torch int8           static, prepacked, bias, 8-bit result
  onnxruntime int8     QLinearMatMul, prepacked, no bias, 8-bit result

The last two, if installed, read the same integers as their quick kernels want
them: activations as codes + 128 of zero point 128 (unsigned), and so the
weights of ONNX Runtime, whose signed x signed kernel is several times slower on
AVX2. Its unsigned x signed kernel, and torch's only one, add pairs of products
in saturating int16 where the processor has no VNNI. Every side that returns
codes is checked against exact arithmetic first: `identical` is the share of
equal codes, `largest` the largest difference; a side of exact sums may differ
by one, where rounding in float meets a tie. Rounds interleave the sides;
medians are reported. Freed memory stays in the process, for all of them.
`peak_gops` is what the processor's int8 instruction does on registers alone.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from jax import lax

from experiments import results
from s8bqat_jax import training
from s8bqat_jax.integer import native
from s8bqat_jax.npu import int8_matmul

_ROUNDS = flags.DEFINE_integer('rounds', 15, 'Interleaved timed rounds.')
_MS = flags.DEFINE_multi_integer('m', [1, 2, 8, 64, 256, 512], 'Rows.')

K, N = 1024, 1024
X_SCALE, W_SCALE, OUT_SCALE = 0.02, 0.01, 0.5


def race(sides: dict[str, Callable[[], Any]]) -> dict[str, float]:
  """Returns the median seconds of each side, rounds interleaved."""
  repeats = {}
  for name, run in sides.items():
    run()
    start = time.perf_counter()
    run()
    # Short ones are repeated within a round: about two milliseconds each.
    repeats[name] = max(1, int(0.002 / (time.perf_counter() - start)))
  seconds: dict[str, list[float]] = {name: [] for name in sides}
  for _ in range(_ROUNDS.value):
    for name, run in sides.items():
      time.sleep(0.02)  # Until the last side's threads have gone to sleep.
      run()
      start = time.perf_counter()
      for _ in range(repeats[name]):
        run()
      elapsed = time.perf_counter() - start
      seconds[name].append(elapsed / repeats[name])
  return {name: statistics.median(s) for name, s in seconds.items()}


class Side(NamedTuple):
  """A contestant.

  Attributes:
    run: the timed call.
    zero: of its codes; None if it returns none.
    bias: whether it adds the bias.
    exact: whether its sums are exact on every processor.
  """

  run: Callable[[], Any]
  zero: int | None = None
  bias: bool = True
  exact: bool = True


class Operands(NamedTuple):
  """int8 [M, K], int8 [K, N] and int32 [N]."""

  x: np.ndarray
  w: np.ndarray
  bias: np.ndarray


def operands(m: int) -> Operands:
  """Random integers of the whole range."""
  r = np.random.default_rng(m)
  return Operands(
    r.integers(-128, 128, (m, K)).astype(np.int8),
    r.integers(-127, 128, (K, N)).astype(np.int8),
    r.integers(-1000, 1000, N).astype(np.int32),
  )


def product_sides(o: Operands) -> dict[str, Side]:
  """The contestants, on the same integers."""
  x, w, bias = map(jnp.asarray, o)
  xf, wf = x.astype(jnp.float32), w.astype(jnp.float32)

  def ours():
    run = jax.jit(
      lambda x, w, b: int8_matmul(x, w, X_SCALE, W_SCALE, OUT_SCALE, b)
    )
    compiled = run.lower(x, w, bias).compile()
    return Side(lambda: compiled(x, w, bias).block_until_ready(), zero=0)

  with native.disabled():
    xla = ours()
  dims = (((1,), (0,)), ((), ()))
  bare = jax.jit(
    lambda x, w: lax.dot_general(x, w, dims, preferred_element_type=jnp.int32)
  )
  float32 = jax.jit(jnp.matmul)
  return {
    'ours': ours(),
    **({"ours, XLA's product": xla} if native.available() else {}),
    'float32': Side(lambda: float32(xf, wf).block_until_ready()),
    'dot_general int8': Side(lambda: bare(x, w).block_until_ready()),
    **torch_side(o),
    **onnxruntime_sides(o),
  }


def unsigned(codes: np.ndarray) -> np.ndarray:
  """The same integers as uint8 of zero point 128."""
  return (codes.astype(np.int16) + 128).astype(np.uint8)


def torch_side(o: Operands) -> dict[str, Side]:
  try:
    import torch
  except ImportError:
    return {}
  x = torch._make_per_tensor_quantized_tensor(
    torch.from_numpy(unsigned(o.x)), X_SCALE, 128
  )
  w = torch._make_per_tensor_quantized_tensor(
    torch.from_numpy(np.ascontiguousarray(o.w.T)), W_SCALE, 0
  )
  bias = torch.from_numpy((o.bias * X_SCALE * W_SCALE).astype(np.float32))
  packed = torch.ops.quantized.linear_prepack(w, bias)
  run = lambda: torch.ops.quantized.linear(x, packed, OUT_SCALE, 128)
  return {'torch int8': Side(run, zero=128, exact=False)}


def onnxruntime_sides(o: Operands) -> dict[str, Side]:
  try:
    import onnx

    from s8bqat_jax.export.onnxfile import runtime
  except ImportError:
    return {}
  names = ['x', 'xs', 'xz', 'w', 'ws', 'wz', 'ys', 'yz']
  zero, codes = np.uint8(128), onnx.TensorProto.UINT8

  def call(w: np.ndarray, w_zero: np.generic) -> Callable[[], Any]:
    consts = {
      'xs': np.float32(X_SCALE), 'xz': zero, 'w': w, 'ws': np.float32(W_SCALE),
      'wz': w_zero, 'ys': np.float32(OUT_SCALE), 'yz': zero,
    }  # fmt: skip
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
      [onnx.helper.make_node('QLinearMatMul', names, ['y'])],
      'product',
      [value('x', codes, o.x.shape)],
      [value('y', codes, None)],
      [
        onnx.numpy_helper.from_array(np.asarray(v), k)
        for k, v in consts.items()
      ],
    )
    model = onnx.helper.make_model(
      graph, opset_imports=[onnx.helper.make_opsetid('', 13)], ir_version=8
    )
    session = runtime.load(model.SerializeToString())
    x = unsigned(o.x)
    return lambda: session.run(None, {'x': x})[0]

  return {
    'onnxruntime int8': Side(call(unsigned(o.w), zero), 128, bias=False),
    'onnxruntime int8, signed weights': Side(
      call(o.w, np.int8(0)), 128, bias=False, exact=False
    ),
  }


def check(name: str, side: Side, o: Operands) -> dict[str, float]:
  """Compares a side's codes with exact arithmetic.

  Args:
    name: of the side.
    side: the side.
    o: what it multiplies.

  Returns:
    The share of identical codes and the largest difference; nothing for a
    side without codes.

  Raises:
    AssertionError: a side of exact sums differs by more than a rounding.
  """
  if side.zero is None:
    return {}
  # Exact in float64, whose product is quicker than that of integers.
  sums = o.x.astype(np.float64) @ o.w.astype(np.float64)
  sums += o.bias if side.bias else 0
  truth = np.rint(sums * (X_SCALE * W_SCALE / OUT_SCALE)).clip(-128, 127)
  y = side.run()
  found = y.int_repr().numpy() if hasattr(y, 'int_repr') else np.asarray(y)
  apart = np.abs(found.astype(np.int64) - side.zero - truth)
  if side.exact and apart.max() > 1:
    raise AssertionError(f'{name} differs from exact sums by {apart.max()}')
  return {
    'identical': float(np.mean(apart == 0)),
    'largest': int(apart.max()),
  }


def main(_) -> None:
  results.revision()
  training.reuse_host_memory()
  rows, comparisons = [], []
  for m in _MS.value:
    o = operands(m)
    sides = product_sides(o)
    agreement = {name: check(name, side, o) for name, side in sides.items()}
    seconds = race({name: side.run for name, side in sides.items()})
    for name, s in seconds.items():
      gops = 2 * m * K * N / s / 1e9
      size = {'m': m, 'k': K, 'n': N}
      found = {'milliseconds': s * 1e3, 'gops': gops, **agreement[name]}
      rows.append(
        {'system': f'product M={m}', 'method': name, 'metrics': found | size}
      )
      ratio = s / seconds['ours']
      if name != 'ours':
        comparisons.append(
          {'a': 'ours', 'b': name, 'metric': 'speed', 'ratio': ratio, 'm': m}
        )
      print(
        f'M={m:4d} {name:34s} {s * 1e3:8.3f} ms {gops:8.1f} GOP/s, '
        f'{ratio:6.2f} of ours {agreement[name] or ""}'
      )
  results.write(
    'int8_matmul',
    rows=rows,
    comparisons=comparisons,
    native=native.available(),
    peak_gops=native.peak() if native.available() else None,
  )


if __name__ == '__main__':
  app.run(main)
