"""The int8 product and whole integer functions against their float peers.

  python -m benchmarks.int8_matmul [--noencoder]

Products: [M, K] x [K, N], the same codes for all: ours (`int8_matmul`: product,
bias, requantization to int8), the float32 product, the bare int8
`lax.dot_general` (int32 result), torch's int8 linear (static, prepacked, int8
result) and, if installed, ONNX Runtime's QLinearMatMul. Encoders: the
RNN-T's, lowered, against the same function in float32, a batch of utterances
and one frame at a time. Rounds interleave the sides; medians are reported.
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
from jax import lax

from experiments import results
from s8bqat_jax import integer
from s8bqat_jax.models import rnnt
from s8bqat_jax.npu import int8_matmul

_ROUNDS = flags.DEFINE_integer('rounds', 15, 'Interleaved timed rounds.')
_ENCODER = flags.DEFINE_bool('encoder', True, 'Also time whole functions.')
_MS = flags.DEFINE_multi_integer('m', [1, 2, 8, 64, 256, 512], 'Rows.')

K, N = 1024, 1024
X_SCALE, W_SCALE, OUT_SCALE = 0.02, 0.01, 0.5
FRAMES = 64
ENCODERS = ((512, 8), (512, 32), (1024, 8), (1024, 32))


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


def product_sides(m: int) -> dict[str, Callable[[], Any]]:
  """The contestants for one M, on the same integers."""
  r = np.random.default_rng(m)
  x = r.integers(-128, 128, (m, K)).astype(np.int8)
  w = r.integers(-127, 128, (K, N)).astype(np.int8)
  bias = r.integers(-1000, 1000, N).astype(np.int32)
  xj, wj, bj = map(jnp.asarray, (x, w, bias))
  xf, wf = xj.astype(jnp.float32), wj.astype(jnp.float32)
  ours = jax.jit(
    lambda x, w, b: int8_matmul(x, w, X_SCALE, W_SCALE, OUT_SCALE, b)
  )
  dims = (((1,), (0,)), ((), ()))
  bare = jax.jit(
    lambda x, w: lax.dot_general(x, w, dims, preferred_element_type=jnp.int32)
  )
  float32 = jax.jit(jnp.matmul)
  sides = {
    'ours': lambda: ours(xj, wj, bj).block_until_ready(),
    'float32': lambda: float32(xf, wf).block_until_ready(),
    'dot_general int8': lambda: bare(xj, wj).block_until_ready(),
  }
  sides.update(torch_side(x, w, bias))
  sides.update(onnxruntime_side(x, w))
  return sides


def torch_side(x, w, bias) -> dict[str, Callable[[], Any]]:
  try:
    import torch
  except ImportError:
    return {}
  # uint8 activations, as its kernels want them: the same reals.
  xt = torch._make_per_tensor_quantized_tensor(
    torch.from_numpy((x.astype(np.int16) + 128).astype(np.uint8)), X_SCALE, 128
  )
  wt = torch._make_per_tensor_quantized_tensor(
    torch.from_numpy(np.ascontiguousarray(w.T)), W_SCALE, 0
  )
  real_bias = torch.from_numpy((bias * X_SCALE * W_SCALE).astype(np.float32))
  packed = torch.ops.quantized.linear_prepack(wt, real_bias)
  return {
    'torch int8': lambda: torch.ops.quantized.linear(xt, packed, OUT_SCALE, 128)
  }


def onnxruntime_side(x, w) -> dict[str, Callable[[], Any]]:
  try:
    import onnx
    import onnxruntime
  except ImportError:
    return {}
  names = ['x', 'xs', 'xz', 'w', 'ws', 'wz', 'ys', 'yz']
  zero = np.int8(0)
  consts = {
    'xs': np.float32(X_SCALE), 'xz': zero, 'w': w, 'ws': np.float32(W_SCALE),
    'wz': zero, 'ys': np.float32(OUT_SCALE), 'yz': zero,
  }  # fmt: skip
  graph = onnx.helper.make_graph(
    [onnx.helper.make_node('QLinearMatMul', names, ['y'])],
    'product',
    [onnx.helper.make_tensor_value_info('x', onnx.TensorProto.INT8, x.shape)],
    [onnx.helper.make_tensor_value_info('y', onnx.TensorProto.INT8, None)],
    [onnx.numpy_helper.from_array(np.asarray(v), k) for k, v in consts.items()],
  )
  model = onnx.helper.make_model(
    graph, opset_imports=[onnx.helper.make_opsetid('', 13)], ir_version=8
  )
  options = onnxruntime.SessionOptions()
  # Its idle threads would spin on the cores of whoever is timed next.
  options.add_session_config_entry('session.intra_op.allow_spinning', '0')
  session = onnxruntime.InferenceSession(model.SerializeToString(), options)
  return {'onnxruntime int8': lambda: session.run(None, {'x': x})}


def encoder_sides(hidden: int, batch: int) -> tuple[dict[str, Any], float]:
  """Float and integer, whole encoder and one frame; also their agreement."""
  model = rnnt.RNNT(
    64, encoder_width=hidden, encoder_layers=2, joint_width=hidden, stack=1
  )
  key = jax.random.key(0)
  x = jax.random.normal(key, (batch, FRAMES, 80))
  lengths = jnp.full(batch, FRAMES)
  labels = jnp.ones((batch, 2), jnp.int32)
  params = model.init(key, x, lengths, labels)['params']
  params = {k: v for k, v in params.items() if k.startswith('encoder')}
  call = lambda p, *a, method: model.apply({'params': p}, *a, method=method)
  encode = lambda p, x, n: call(p, x, n, method='encode')
  step = lambda p, c, x: call(p, c, x, method='encode_chunk')
  ranges = integer.calibrate(encode, params, [(x, lengths)])
  whole = integer.lower(encode, params, ranges, x, lengths)
  carry = model.apply({'params': params}, 1, method='initial_carry')
  frame = x[:1, :1]
  one = integer.lower(step, params, ranges, carry, frame, carry=True)
  codes, step_codes = whole.quantize(x, lengths), one.quantize(carry, frame)
  float_encode, float_step = jax.jit(encode), jax.jit(step)
  y = np.asarray(encode(params, x, lengths)[0], np.float64)
  z = np.asarray(whole(x, lengths)[0], np.float64)
  snr = 10 * np.log10((y**2).mean() / ((y - z) ** 2).mean())
  ready = jax.block_until_ready
  return {
    'integer': lambda: ready(whole.integers(*codes)),
    'float32': lambda: ready(float_encode(params, x, lengths)),
    'integer step': lambda: ready(one.integers(*step_codes)),
    'float32 step': lambda: ready(float_step(params, carry, frame)),
  }, float(snr)


def main(_) -> None:
  rows, comparisons = [], []

  def compare(a: str, b: str, seconds: dict[str, float], **what: Any) -> None:
    ratio = seconds[b] / seconds[a]
    comparisons.append(
      {'a': a, 'b': b, 'metric': 'speed', 'ratio': ratio, **what}
    )

  for m in _MS.value:
    seconds = race(product_sides(m))
    for name, s in seconds.items():
      gops = 2 * m * K * N / s / 1e9
      metrics = {'milliseconds': s * 1e3, 'gops': gops, 'm': m, 'k': K, 'n': N}
      system = f'product M={m}'
      rows.append({'system': system, 'method': name, 'metrics': metrics})
      print(f'M={m:4d} {name:18s} {s * 1e3:8.3f} ms {gops:8.1f} GOP/s')
      if name != 'ours':
        compare('ours', name, seconds, m=m)
        print(f'       ours is {seconds[name] / seconds["ours"]:.2f}x {name}')
  for hidden, batch in ENCODERS if _ENCODER.value else ():
    sides, snr = encoder_sides(hidden, batch)
    seconds = race(sides)
    system = f'RNN-T encoder H={hidden} B={batch}'
    for name, s in seconds.items():
      metrics = {'milliseconds': s * 1e3, 'snr_db': snr}
      rows.append({'system': system, 'method': name, 'metrics': metrics})
    compare('integer', 'float32', seconds, system=system)
    compare('integer step', 'float32 step', seconds, system=system)
    print(
      f'{system}: {seconds["float32"] / seconds["integer"]:.2f}x float32, one '
      f'frame {seconds["float32 step"] / seconds["integer step"]:.2f}x '
      f'({seconds["integer step"] * 1e3:.3f} ms), {snr:.1f} dB'
    )
  results.write('int8_matmul', rows=rows, comparisons=comparisons)


if __name__ == '__main__':
  app.run(main)
