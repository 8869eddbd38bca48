"""What the input pipeline costs: the training loop against cached batches.

Both loops run the same jitted training step (the demo's RNN-T) over the same
sequence of batch shapes. The peer is fed one cached batch per shape, already
on the device; ours reads, perturbs, pads and copies every batch, ahead in a
thread. `in line` does so in the loop's own thread, as a naive pipeline would.
The loops take turns; the figure is the median of the rounds' ratios.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Iterable, Iterator

import jax
from absl import app, flags

from experiments import results, trainer
from experiments.configs.demo import digits
from s8bqat_jax import data, training

_ROUNDS = flags.DEFINE_integer('rounds', 21, 'Turns of each loop.')
_STEPS = flags.DEFINE_integer('steps', 25, 'Steps of a turn.')
_UTTERANCES = flags.DEFINE_integer('utterances', 1000, 'Size of the corpus.')

_PERTURB = data.Perturbation(
  speeds=(0.9, 1.0, 1.1), gain_db=(-6, 6), snr_db=(0, 20), noise_probability=1
)


class Loop:
  """The demo's training step, compiled for every shape of a loader."""

  def __init__(self, config, corpus):
    self._mesh = training.make_mesh()
    recognizer = trainer.make_recognizer(config, corpus)
    step = trainer.make_step(config, recognizer)
    self._update = jax.jit(step.update, donate_argnums=0)
    params = recognizer.init(jax.random.key(0))
    state = jax.jit(step.init, static_argnums=1)(params, 0)
    self._state = training.replicate(state, self._mesh)
    self.recognizer = recognizer

  def put(self, batch: data.Batch):
    return training.shard_batch(batch, self._mesh)

  def run(self, batches: Iterable) -> float:
    """Returns the seconds that training on these batches takes."""
    start = time.perf_counter()
    for batch in batches:
      self._state, _ = self._update(self._state, batch)
    jax.block_until_ready(self._state)
    return time.perf_counter() - start


def cached(loop: Loop, loader: data.Loader, start: int, stop: int) -> Iterator:
  """One device batch per shape, over and over, in the loader's order."""
  planned = list(loader.plan.batches(start, stop))
  first = {p.bucket: p for p in reversed(planned)}
  held = {b: loop.put(loader.make(p)) for b, p in first.items()}
  jax.block_until_ready(held)
  return iter([held[p.bucket] for p in planned])


def read(loop: Loop, loader: data.Loader, start: int, stop: int) -> Iterator:
  return map(loop.put, loader.batches(start, stop))


def measure(name: str, loop: Loop, loader: data.Loader) -> dict:
  """Returns the row of a pipeline."""
  size = _STEPS.value
  ratios, peer_s, own_s = [], [], []
  for k in range(_ROUNDS.value):
    start, stop = k * size, (k + 1) * size
    batches = cached(loop, loader, start, stop)
    if k % 2:
      own = loop.run(read(loop, loader, start, stop))
      peer = loop.run(batches)
    else:
      peer = loop.run(batches)
      own = loop.run(read(loop, loader, start, stop))
    peer_s.append(peer / size)
    own_s.append(own / size)
    ratios.append(own / peer)
  start_s = time.perf_counter()
  for planned in loader.plan.batches(0, size):
    loader.make(planned)
  make_s = (time.perf_counter() - start_s) / size
  return {
    'system': 'input pipeline',
    'method': name,
    'metrics': {
      'loss_percent': 100 * (statistics.median(ratios) - 1),
      'loss_percent_range': [
        100 * (min(ratios) - 1),
        100 * (max(ratios) - 1),
      ],
      'step_ms': 1e3 * statistics.median(own_s),
      'cached_step_ms': 1e3 * statistics.median(peer_s),
      'make_batch_ms': 1e3 * make_s,
    },
  }


def main(argv):
  del argv
  config = digits.get_config()
  corpus = data.load(
    f'espeak:digits?utterances={_UTTERANCES.value}&snr=10-30&split=train'
  )
  loop = Loop(config, corpus)
  loader = data.make_loader(
    corpus,
    loop.recognizer.tokenizer,
    batch_size=config.data.batch_size,
    num_buckets=config.data.num_buckets,
    perturb=_PERTURB,
  )
  loop.run(cached(loop, loader, 0, loader.steps_per_epoch))  # compiles
  # One plan for all: the same shapes, compiled once.
  rows = [
    measure('read ahead', loop, dataclasses.replace(loader, perturb=None)),
    measure('read ahead, speed and noise', loop, loader),
    measure(
      'in line, speed and noise', loop, dataclasses.replace(loader, prefetch=0)
    ),
  ]
  results.write(
    'input_pipeline',
    rows,
    corpus={'spec': corpus.spec, 'fingerprint': corpus.fingerprint},
    batch_size=config.data.batch_size,
    rounds=_ROUNDS.value,
    steps=_STEPS.value,
  )
  print(results.table(rows))


if __name__ == '__main__':
  app.run(main)
