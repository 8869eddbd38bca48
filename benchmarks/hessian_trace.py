"""Per-tensor Hessian traces against double backpropagation in PyTorch.

Both sides estimate, for every tensor of the same Transformer language model
with the same weights on the same sequences, the trace of its Hessian block by
Rademacher probes, and stop at the same relative standard error. PyTorch does
what PyHessian does: the gradient once with its graph kept, then one backward
pass through it per probe. Two rows of ours: the same estimator (one batch),
and fresh probes for every small batch, which is what a user would run. First
it is checked that both sides give the same Hessian-vector product.

The model is trained for some steps on sentences from a random Markov chain:
the curvature of a model that has learned nothing would say little.
"""

from __future__ import annotations

import functools
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from absl import app, flags

from experiments import results
from s8bqat_jax import sensitivity
from s8bqat_jax.artifacts.names import named
from s8bqat_jax.models import transformer_lm
from s8bqat_jax.sensitivity import hessian

_ROUNDS = flags.DEFINE_integer('rounds', 3, 'Timed runs of each side.')
_RTOL = flags.DEFINE_float('rtol', 0.25, 'Relative standard error to reach.')
_CHUNK = flags.DEFINE_integer('chunk', 4, 'Probes of ours per call.')
_BATCHES = flags.DEFINE_integer('batches', 4, 'Parts that ours splits into.')
_TRAIN_STEPS = flags.DEFINE_integer('train_steps', 60, 'Steps before probing.')
_EPOCH_TOKENS = flags.DEFINE_integer(
  'epoch_tokens', 2_800_000, 'Tokens of an epoch: WikiText-2 in 4k subwords.'
)

VOCAB, WIDTH, LAYERS, HEADS, FFN = 4096, 192, 4, 4, 768
SEQUENCES, LENGTH, MAX_PROBES = 16, 64, 400
MODEL = transformer_lm.TransformerLm(VOCAB, WIDTH, LAYERS, HEADS, FFN)


def loss_fn(params, tokens_BxT):
  logits: Any = MODEL.apply(params, tokens_BxT[:, :-1])
  return jnp.mean(transformer_lm.token_losses(logits, tokens_BxT[:, 1:]))


def sentences(rng, count):
  """Random walks: each token has eight successors of Zipf's frequencies."""
  successors_Vx8 = np.random.default_rng(0).zipf(1.3, (VOCAB, 8)) % VOCAB
  tokens = np.zeros((count, LENGTH + 1), np.int32)
  tokens[:, 0] = rng.integers(0, VOCAB, count)
  for t in range(LENGTH):
    choice = rng.integers(0, 8, count)
    tokens[:, t + 1] = successors_Vx8[tokens[:, t], choice]
  return tokens


def train(params, rng):
  """Some steps of Adam; returns params and the median seconds of a step."""
  tx = optax.adam(1e-3)

  @functools.partial(jax.jit, donate_argnums=(0, 1))
  def step(params, opt_state, tokens):
    value, grads = jax.value_and_grad(loss_fn)(params, tokens)
    updates, opt_state = tx.update(grads, opt_state)
    return optax.apply_updates(params, updates), opt_state, value

  opt_state, seconds = tx.init(params), []
  for _ in range(_TRAIN_STEPS.value):
    tokens = sentences(rng, SEQUENCES)
    start = time.perf_counter()
    params, opt_state, value = step(params, opt_state, tokens)
    float(value)
    seconds.append(time.perf_counter() - start)
  print(f'trained {len(seconds)} steps, loss {float(value):.3f}')
  return params, statistics.median(seconds)


class TorchSide:
  """The same model and PyHessian's products in PyTorch."""

  def __init__(self, params, tokens):
    self.names = list(named(params))
    self.params = {
      name: torch.tensor(np.asarray(leaf), requires_grad=True)
      for name, leaf in named(params).items()
    }
    self.tokens = torch.tensor(tokens, dtype=torch.long)
    self.positions = torch.tensor(
      np.asarray(transformer_lm._positions(LENGTH, WIDTH))
    )
    self.generator = torch.Generator().manual_seed(0)
    self.grads: Any = None

  def prepare(self):
    """The gradient with its graph, once per batch."""
    self.grads = torch.autograd.grad(
      self._loss(), list(self.params.values()), create_graph=True
    )

  def product(self, v):
    return torch.autograd.grad(
      self.grads, list(self.params.values()), v, retain_graph=True
    )

  def probe(self):
    v = [
      torch.randint(0, 2, p.shape, generator=self.generator).float() * 2 - 1
      for p in self.params.values()
    ]
    return [float((a * b).sum()) for a, b in zip(v, self.product(v))]

  def traces(self):
    """Probes until the stopping rule of `hessian_trace` holds."""
    self.prepare()
    self.generator.manual_seed(0)
    samples: list[list[float]] = []
    while True:
      samples += [self.probe() for _ in range(_CHUNK.value)]
      samples_NxL = np.array(samples)
      mean_L = samples_NxL.mean(0)
      stderr_L = samples_NxL.std(0, ddof=1) / len(samples) ** 0.5
      scale_L = np.maximum(np.abs(mean_L), 0.01 * np.abs(mean_L).max())
      done = len(samples) > 8 and np.all(stderr_L <= _RTOL.value * scale_L)
      if done or len(samples) + _CHUNK.value > MAX_PROBES:
        return sensitivity.HessianTrace(
          list(mean_L), list(stderr_L), len(samples), bool(done)
        )

  def _loss(self):
    functional = torch.nn.functional
    table = self.params['embed/embedding']

    def norm(x, name):
      weight, bias = (self.params[f'{name}/{n}'] for n in ('scale', 'bias'))
      return functional.layer_norm(x, (WIDTH,), weight, bias, 1e-6)

    def dense(x, name):
      return x @ self.params[f'{name}/kernel'] + self.params[f'{name}/bias']

    def heads(x):
      return x.reshape(*x.shape[:2], HEADS, -1).transpose(1, 2)

    x = functional.embedding(self.tokens[:, :-1], table) * WIDTH**0.5
    x = x + self.positions
    past = torch.tril(torch.ones(LENGTH, LENGTH, dtype=torch.bool))
    for i in range(LAYERS):
      block = f'block_{i}'
      y = norm(x, f'{block}/norm_attention')
      q, k, v = (
        heads(dense(y, f'{block}/{n}')) for n in ('query', 'key', 'value')
      )
      scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
      weights = scores.masked_fill(~past, -1e9).softmax(-1)
      y = (weights @ v).transpose(1, 2).reshape(x.shape)
      x = x + dense(y, f'{block}/attention_out')
      y = dense(norm(x, f'{block}/norm_ffn'), f'{block}/ffn_in')
      y = functional.gelu(y, approximate='tanh')
      x = x + dense(y, f'{block}/ffn_out')
    logits = norm(x, 'norm_out') @ table.T
    return functional.cross_entropy(
      logits.flatten(0, 1), self.tokens[:, 1:].flatten()
    )


def check_agreement(params, tokens, peer):
  """Both sides' H v for one v, as the largest difference per norm."""
  v = hessian._random_signs(jax.random.key(1), params)
  ours = hessian._hvp(loss_fn, params, tokens, v)
  peer.prepare()
  theirs = peer.product(
    [torch.tensor(np.asarray(x)) for x in jax.tree.leaves(v)]
  )
  worst = max(
    np.abs(np.asarray(a) - b.numpy()).max() / np.abs(b.numpy()).max()
    for a, b in zip(jax.tree.leaves(ours), theirs)
    # A key bias shifts all scores of a query alike: its product is zero.
    if b.abs().max() > 1e-5
  )
  if worst > 1e-2:
    raise ValueError(f'products differ by {worst:.1e} of their largest entry')
  return float(worst)


def timed(fn):
  start = time.perf_counter()
  value = fn()
  return value, time.perf_counter() - start


def main(_):
  rng = np.random.default_rng(1)
  params = jax.jit(MODEL.init)(jax.random.key(0), sentences(rng, 1)[:, :-1])
  params, step_seconds = train(params, rng)
  tokens = sentences(rng, SEQUENCES)
  parts = np.split(tokens, _BATCHES.value)
  peer = TorchSide(params, tokens)
  agreement = check_agreement(params, tokens, peer)
  print(f'products agree to {agreement:.1e}')

  def ours(batches, max_probes):
    return sensitivity.hessian_trace(
      loss_fn,
      params,
      batches,
      jax.random.key(2),
      rtol=_RTOL.value,
      max_probes=max_probes,
      chunk=_CHUNK.value,
    )

  split = lambda: ours(parts, MAX_PROBES * len(parts))
  one = lambda: ours([tokens], MAX_PROBES)
  # Their first calls compile; they are reported apart.
  first_seconds = [timed(split)[1], timed(one)[1], None]
  rounds = [
    [timed(side) for side in (split, one, peer.traces)]
    for _ in range(_ROUNDS.value)
  ]
  seconds = np.median([[s for _, s in turn] for turn in rounds], 0)
  split_result, one_result, torch_result = (side for side, _ in rounds[0])
  rows = []
  for system, batches, result, median, first in zip(
    ('s8bqat_jax', 's8bqat_jax', 'torch'),
    (len(parts), 1, 1),
    (split_result, one_result, torch_result),
    seconds,
    first_seconds,
  ):
    trace_L, stderr_L = (
      np.array(jax.tree.leaves(x)) for x in (result.trace, result.stderr)
    )
    scale_L = np.maximum(np.abs(trace_L), 0.01 * np.abs(trace_L).max())
    metrics = {
      'seconds': float(median),
      'probes': result.probes,
      # A probe on a part is that share of a probe on all sequences.
      'seconds_per_full_probe': float(median * batches / result.probes),
      'worst_relative_error': float(np.max(stderr_L / scale_L)),
      'converged': result.converged,
      'first_call_seconds': first,
    }
    method = f'{batches} x {SEQUENCES // batches} sequences'
    rows.append({'system': system, 'method': method, 'metrics': metrics})
  ours_L, ours_error_L, theirs_L, theirs_error_L = (
    np.array(jax.tree.leaves(tree))
    for tree in (*split_result[:2], *torch_result[:2])
  )
  z_L = (ours_L - theirs_L) / np.hypot(ours_error_L, theirs_error_L)
  epoch = _EPOCH_TOKENS.value / (SEQUENCES * LENGTH) * step_seconds
  summary = {
    'torch_over_ours': float(seconds[2] / seconds[0]),
    'torch_over_ours_first_call': float(seconds[2] / first_seconds[0]),
    'torch_over_ours_same_estimator': float(seconds[2] / seconds[1]),
    'share_of_epoch': float(seconds[0] / epoch),
    'epoch_seconds_extrapolated': epoch,
    'largest_z_between_sides': float(np.max(np.abs(z_L))),
    'product_agreement': agreement,
  }
  print(results.table(rows))
  for name, value in summary.items():
    print(f'{name}: {value:.4g}')
  results.write(
    'hessian_trace',
    rows,
    corpus={'spec': f'markov chain, {VOCAB} tokens', 'fingerprint': 'seed 0'},
    rtol=_RTOL.value,
    tensors=len(ours_L),
    parameters=sum(x.size for x in jax.tree.leaves(params)),
    tokens=SEQUENCES * LENGTH,
    torch=torch.__version__,
    threads=torch.get_num_threads(),
    **summary,
  )


if __name__ == '__main__':
  app.run(main)
