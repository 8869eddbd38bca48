"""What training under a method costs: step time over the float step.

Every method trains the same model from the same weights on the same batch with
the same optimizer (AdamW, gradient clipping); steps are interleaved and medians
reported. qwix trains by its own interception of the model's products, weights
in int8. Two models, because qwix finds the kernels of dense layers and not the
fused kernel of our LSTM: on the transducer it quantizes the projections only,
on the stack of dense layers everything.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import qwix
from absl import app, flags

from experiments import fitting, results
from s8bqat_jax import losses, quantizers, training
from s8bqat_jax.models import rnnt

_ROUNDS = flags.DEFINE_integer('rounds', 12, 'Timed steps of each method.')
_BITS = flags.DEFINE_integer('bits', 4, 'Bits of the methods below 8 bits.')
_WIDTH = flags.DEFINE_integer('width', 256, 'Hidden units of the transducer.')

RATE, CLIP, STEPS = 1e-3, 5.0, 1000
# The transducer: utterances, frames (4 s), features, labels, vocabulary.
BATCH, FRAMES, MELS, LABELS, VOCAB = 16, 400, 40, 40, 32
# The dense stack: one row per frame of such a batch, after stacking by four.
ROWS, DENSE_WIDTH, DENSE_LAYERS = BATCH * FRAMES // 4, 512, 4

Loss = Callable[[Any, Any, jax.Array], tuple[jax.Array, dict]]


class Dense(nn.Module):
  """A stack of dense layers."""

  @nn.compact
  def __call__(self, x):
    for _ in range(DENSE_LAYERS):
      x = nn.relu(nn.Dense(DENSE_WIDTH)(x))
    return nn.Dense(VOCAB)(x)


def make_transducer() -> tuple[nn.Module, tuple[str, ...], Any, Any]:
  """Returns (model, methods that qwix wraps, batch, params)."""
  width = _WIDTH.value
  model = rnnt.RNNT(
    VOCAB,
    encoder_width=width,
    encoder_layers=3,
    predictor_width=width,
    embed_width=64,
    joint_width=width,
  )
  rng = np.random.default_rng(0)
  batch = {
    'feats': rng.normal(size=(BATCH, FRAMES, MELS)).astype(np.float32),
    'lengths': rng.integers(FRAMES // 2, FRAMES + 1, BATCH).astype(np.int32),
    'labels': rng.integers(1, VOCAB, (BATCH, LABELS)).astype(np.int32),
    'label_lengths': np.full(BATCH, LABELS, np.int32),
  }
  params = jax.jit(model.init)(
    jax.random.key(0), batch['feats'], batch['lengths'], batch['labels']
  )
  return model, ('encode', 'predict', 'joint'), batch, params['params']


def transducer_loss(model: nn.Module) -> Loss:
  def loss(params, batch, key):
    del key
    bound = model.bind({'params': params})
    enc, lengths = bound.encode(batch['feats'], batch['lengths'])
    pred = bound.predict(batch['labels'])
    nll = losses.rnnt_loss(
      bound.joint, enc, pred, batch['labels'], lengths, batch['label_lengths']
    )
    return jnp.mean(nll), {}

  return loss


def make_dense() -> tuple[nn.Module, tuple[str, ...], Any, Any]:
  """Returns (model, methods that qwix wraps, batch, params)."""
  rng = np.random.default_rng(0)
  batch = {
    'x': rng.normal(size=(ROWS, DENSE_WIDTH)).astype(np.float32),
    'y': rng.integers(0, VOCAB, ROWS).astype(np.int32),
  }
  params = jax.jit(Dense().init)(jax.random.key(0), batch['x'])
  return Dense(), ('__call__',), batch, params['params']


def dense_loss(model: nn.Module) -> Loss:
  def loss(params, batch, key):
    del key
    logits = model.apply({'params': params}, batch['x'])
    nll = optax.softmax_cross_entropy_with_integer_labels(logits, batch['y'])
    return jnp.mean(nll), {}

  return loss


def methods() -> dict[str, quantizers.Quantizer | None]:
  bits = _BITS.value
  pressure = quantizers.pressure_schedule(4.0, STEPS, RATE)
  return {
    'float': None,
    's8bqat': quantizers.s8bqat(bits, total_steps=STEPS, learning_rate=RATE),
    'int8 qat': quantizers.uniform(8),
    'gq': quantizers.gq(bits, total_steps=STEPS),
    'admm': quantizers.admm(bits, rho=pressure),
  }


def make_runs(model, wrapped, loss_of, batch, params) -> dict[str, Callable]:
  """Returns {method: function that takes one step and waits for it}."""
  rule = qwix.QtRule(module_path='.*', weight_qtype=jnp.int8)
  peer = qwix.quantize_model(model, qwix.QtProvider([rule]), methods=wrapped)
  sides = {name: (model, method) for name, method in methods().items()}
  sides['qwix int8 qat'] = peer, None
  runs = {}
  for name, (side, method) in sides.items():
    step = quantizers.make_step(
      quantizers.on_main(loss_of(side)),
      optax.adamw(RATE),
      method,
      learning_rate=RATE,
      clip_norm=CLIP,
    )
    update = fitting.compiled_step(step)
    cell = [step.init(jax.tree.map(jnp.copy, params))]

    def run(cell=cell, update=update):
      cell[0], metrics = update(cell[0], batch)
      return float(metrics['loss'])

    runs[name] = run
  return runs


def measure(system: str, runs: dict[str, Callable], batch: str) -> list[dict]:
  """Returns a row for each method; the first step of each compiles."""
  times: dict[str, list[float]] = {name: [] for name in runs}
  for run in runs.values():
    for _ in range(2):
      loss = run()
      assert np.isfinite(loss)
  for _ in range(_ROUNDS.value):
    for name, run in runs.items():
      start = time.perf_counter()
      run()
      times[name].append(time.perf_counter() - start)
  rows = []
  for name, seconds in times.items():
    # Of the ratios and not of the times: what slows a whole round cancels.
    ratios = [a / b for a, b in zip(seconds, times['float'])]
    rows.append(
      {
        'system': system,
        'method': name,
        'bits': {'float': 32, 'int8 qat': 8, 'qwix int8 qat': 8}.get(
          name, _BITS.value
        ),
        'batch': batch,
        'metrics': {
          'step_ms': round(1e3 * statistics.median(seconds), 2),
          'over_float': round(statistics.median(ratios), 3),
        },
      }
    )
  return rows


def main(_):
  training.reuse_host_memory()  # As training does; the peer gains too.
  model, wrapped, batch, params = make_transducer()
  count = sum(x.size for x in jax.tree.leaves(params))
  rows = measure(
    f'transducer, {count / 1e6:.1f} M parameters',
    make_runs(model, wrapped, transducer_loss, batch, params),
    f'{BATCH} utterances of {FRAMES} frames, {LABELS} labels',
  )
  model, wrapped, batch, params = make_dense()
  count = sum(x.size for x in jax.tree.leaves(params))
  rows += measure(
    f'dense stack, {count / 1e6:.1f} M parameters',
    make_runs(model, wrapped, dense_loss, batch, params),
    f'{ROWS} rows',
  )
  print(results.table(rows))
  print('written:', results.write('qat_overhead', rows))


if __name__ == '__main__':
  app.run(main)
