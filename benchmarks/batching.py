"""What a batch plan costs: training steps on batches that are put together
by chance, against batches that are sorted by transcript length.

The transducer's loss pays for the longest transcript of a batch, and all of a
batch for its longest recording. Every plan reads the same corpus under the
same config; they take turns, each over batches of its own, and the figure is
the median of the rounds' ratios: above 1 is in favor of sorting. `states` is
how many of the lattice's states, as far as the loss computes them, are of a
transcript and not of padding.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from typing import NamedTuple

import jax
import numpy as np
from absl import app, flags

from benchmarks import tasks
from experiments import fitting, results, trainer, usage
from experiments.configs.float import espeak_grammar
from s8bqat_jax import data

_ROUNDS = flags.DEFINE_integer('rounds', 7, 'Turns of each plan.')
_STEPS = flags.DEFINE_integer('steps', 30, 'Steps of a turn.')
_HOURS = flags.DEFINE_float('hours', 2, "Of task A's corpus.")
_DATA = flags.DEFINE_string('data', '../shared/data', 'Folder of the corpora.')


class Arrangement(NamedTuple):
  num_buckets: int
  sort_within: int

  def __str__(self) -> str:
    how = f'sorted within {self.sort_within}' if self.sort_within > 1 else ''
    return f'{self.num_buckets} shapes, {how or "by chance"}'


_PEER = Arrangement(4, 1)
_PLANS = _PEER, Arrangement(4, 8), Arrangement(6, 1), Arrangement(6, 8)


class Steps:
  """Training steps over the batches of one plan."""

  def __init__(self, config, recognizer, corpus: data.Corpus):
    self.corpus = corpus
    self.loader = trainer.make_loader(config, corpus, recognizer)
    step = fitting.make_step(config, recognizer)
    self._update = fitting.compiled_step(step)
    params = recognizer.init(jax.random.key(0))
    self._state = jax.jit(step.init, static_argnums=1)(params, 0)
    self._next = 0
    one_of_each = {p.bucket: p for p in self.loader.plan.epoch(0)}
    self._run(map(self.loader.make, one_of_each.values()))

  def turn(self, steps: int) -> float:
    """Returns the seconds of the next so many steps, reading aside."""
    batches = list(self.loader.batches(self._next, self._next + steps))
    self._next += steps
    batches = jax.block_until_ready(jax.device_put(batches))
    start = time.perf_counter()
    self._run(iter(batches))
    return time.perf_counter() - start

  def _run(self, batches: Iterator[data.Batch]) -> None:
    for batch in batches:
      self._state, _ = self._update(self._state, batch)
    jax.block_until_ready(self._state)

  def states(self) -> float:
    """Returns the share of the lattice's states that a path may take."""
    durations_N = np.asarray(self.corpus.durations_N)
    plan, used, computed = self.loader.plan, 0.0, 0.0
    for batch in plan.epoch(0):
      rows = batch.indices_B[batch.indices_B >= 0]
      states = plan.label_lengths_N[rows] + 1
      seconds = batch.bucket.samples / self.corpus.sample_rate
      used += (durations_N[rows] * states).sum()
      computed += len(batch.indices_B) * seconds * states.max()
    return used / computed


def measure(system: str, config, corpus: data.Corpus) -> list[dict]:
  """Returns the rows of a corpus, one for each plan."""
  recognizer = trainer.make_recognizer(config, corpus)
  plans = {}
  for plan in _PLANS:
    config.data.update(plan._asdict())
    plans[plan] = Steps(config, recognizer, corpus)
  seconds: dict[Arrangement, list[float]] = {plan: [] for plan in plans}
  for k in range(_ROUNDS.value):
    ordered = list(plans.items())
    for plan, steps in ordered[:: -1 if k % 2 else 1]:
      seconds[plan].append(steps.turn(_STEPS.value) / _STEPS.value)
  return [
    {
      'system': system,
      'method': str(plan),
      'metrics': {
        'step_ms': 1e3 * statistics.median(seconds[plan]),
        'speedup': statistics.median(
          peer / own for peer, own in zip(seconds[_PEER], seconds[plan])
        ),
        'states': steps.states(),
        'shapes': len(steps.loader.plan.buckets),
      },
    }
    for plan, steps in plans.items()
  ]


def configs() -> dict:
  """The configs whose batches are measured."""
  grammar = espeak_grammar.get_config('joint=fresh')
  grammar.data.train = grammar.data.train.replace(
    'hours=40', f'hours={_HOURS.value:g}'
  )
  return tasks.with_task_b({'task A': grammar}, _DATA.value)


def main(argv):
  usage.start(argv)
  rows, corpora = [], {}
  for system, config in configs().items():
    corpus = data.load(config.data.train)
    corpora[system] = {'spec': corpus.spec, 'fingerprint': corpus.fingerprint}
    rows += measure(system, config, corpus)
    print(results.table(rows), flush=True)
  results.write(
    'batching',
    rows,
    corpus=corpora,
    not_run=tasks.missing(corpora),
    rounds=_ROUNDS.value,
    steps=_STEPS.value,
  )


if __name__ == '__main__':
  app.run(main)
