"""What the input pipeline costs: the training loop against cached batches.

Both loops run the same jitted training step over the same sequence of batch
shapes, of the demo and of task B as their configs say. The peer is fed one
cached batch per shape, already on the device; ours reads, perturbs, pads and
copies every batch, ahead in a thread. `in line` does so in the loop's own
thread, as a naive pipeline would. The loops take turns; the figure is the
median of the rounds' ratios.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Iterable, Iterator

import jax
from absl import app, flags

from benchmarks import tasks
from experiments import fitting, results, trainer, usage
from experiments.configs.demo import digits
from s8bqat_jax import data, training

_ROUNDS = flags.DEFINE_integer('rounds', 11, 'Turns of each loop.')
_STEPS = flags.DEFINE_integer('steps', 40, 'Steps of a turn.')
_UTTERANCES = flags.DEFINE_integer('utterances', 1000, "Of the demo's corpus.")
_DATA = flags.DEFINE_string('data', '../shared/data', 'Folder of the corpora.')

_NOISE = {'snr_db': (0, 20), 'noise_probability': 1}


class Loop:
  """A config's training step and its batches."""

  def __init__(self, config):
    self._mesh = training.make_mesh()
    self.corpus = data.load(config.data.train)
    recognizer = trainer.make_recognizer(config, self.corpus)
    self.loader = trainer.make_loader(config, self.corpus, recognizer)
    step = fitting.make_step(config, recognizer)
    self._update = fitting.compiled_step(step)
    params = recognizer.init(jax.random.key(0))
    state = jax.jit(step.init, static_argnums=1)(params, 0)
    self._state = training.replicate(state, self._mesh)

  def put(self, batch: data.Batch):
    return training.shard_batch(batch, self._mesh)

  def run(self, batches: Iterable) -> float:
    """Returns the seconds that training on these batches takes."""
    start = time.perf_counter()
    for batch in batches:
      self._state, _ = self._update(self._state, batch)
    jax.block_until_ready(self._state)
    return time.perf_counter() - start

  def compile(self, loader: data.Loader) -> None:
    one_of_each = {p.bucket: p for p in loader.plan.epoch(0)}
    self.run([self.put(loader.make(p)) for p in one_of_each.values()])


def cached(loop: Loop, loader: data.Loader, start: int, stop: int) -> Iterator:
  """One device batch per shape, over and over, in the loader's order."""
  planned = list(loader.plan.batches(start, stop))
  first = {p.bucket: p for p in reversed(planned)}
  held = {b: loop.put(loader.make(p)) for b, p in first.items()}
  jax.block_until_ready(held)
  return iter([held[p.bucket] for p in planned])


def read(loop: Loop, loader: data.Loader, start: int, stop: int) -> Iterator:
  return map(loop.put, loader.batches(start, stop))


def measure(system: str, method: str, loop: Loop, loader: data.Loader) -> dict:
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
  planned = list(loader.plan.batches(0, size))
  start_s = time.perf_counter()
  for p in planned:
    loader.make(p)
  make_s = (time.perf_counter() - start_s) / size
  return {
    'system': system,
    'method': method,
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


def configs() -> dict:
  """The configs whose pipelines are measured, and what could not be."""
  demo = digits.get_config()
  demo.data.train = (
    f'espeak:digits?split=train&utterances={_UTTERANCES.value}&snr=15-35'
  )
  return tasks.with_task_b({'demo': demo}, _DATA.value)


def main(argv):
  usage.start(argv)
  rows, corpora = [], {}
  for system, config in configs().items():
    loop = Loop(config)
    loader, corpus = loop.loader, loop.corpus
    corpora[system] = {'spec': corpus.spec, 'fingerprint': corpus.fingerprint}
    methods = {'read ahead': loader}
    if system == 'demo':
      noisy = data.Perturbation(**{**config.perturb, **_NOISE})
      methods['read ahead, noise too'] = dataclasses.replace(
        loader, perturb=noisy
      )
    methods['in line'] = dataclasses.replace(loader, prefetch=0)
    for method, chosen in methods.items():
      loop.compile(chosen)
      rows.append(measure(system, method, loop, chosen))
      print(results.table(rows[-1:]), flush=True)
  results.write(
    'input_pipeline',
    rows,
    corpus=corpora,
    not_run=tasks.missing(corpora),
    rounds=_ROUNDS.value,
    steps=_STEPS.value,
  )
  print(results.table(rows))


if __name__ == '__main__':
  app.run(main)
