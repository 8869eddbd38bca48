"""The training loop: any step, any batches; interrupted and resumed exactly.

The loop owns no randomness and no position of its own: batch i is a function
of i, a step's draws follow from its number, and the early-stopping record
rides in the checkpoint's notes. A run that was killed and started again
therefore ends with the same bits as one that was not.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from tqdm import tqdm

from s8bqat_jax.quantizers.step import TrainState
from s8bqat_jax.training.checkpoints import Checkpoints
from s8bqat_jax.training.metrics import MetricWriter
from s8bqat_jax.training.signals import on_sigterm


@dataclasses.dataclass(frozen=True)
class LoopConfig:
  """When things happen, in steps.

  Attributes:
    steps: of the whole training.
    log_every: metrics are averaged and written.
    eval_every: the development data is scored; 0 means only at the end.
    save_every: a checkpoint is written (also at every evaluation).
    patience: evaluations without a new best before training stops; 0 never.
    max_skipped: consecutive non-finite steps that end the run.
  """

  steps: int
  log_every: int = 50
  eval_every: int = 0
  save_every: int = 1000
  patience: int = 0
  max_skipped: int = 20


class Outcome(NamedTuple):
  """How training ended.

  Attributes:
    state: the last state.
    best: {"step", "score"} of the best evaluation, or None.
    reason: 'finished', 'early stop' or 'interrupted'.
  """

  state: TrainState
  best: dict[str, float] | None
  reason: str


def train(
  update: Callable[[TrainState, Any], tuple[TrainState, dict[str, jax.Array]]],
  state: TrainState,
  batches: Callable[[int], Iterator[Any]],
  config: LoopConfig,
  *,
  checkpoints: Checkpoints | None = None,
  metrics_dir: Any = None,
  evaluate: Callable[[TrainState], Mapping[str, float]] | None = None,
  score: str = 'wer',
  progress: bool | str = True,
) -> Outcome:
  """Trains from `state`, or from the latest checkpoint if there is one.

  Args:
    update: the jitted step, (state, batch) -> (state, metrics).
    state: where training starts.
    batches: (step) -> iterator over the batches of that step and later ones.
    config: when to log, evaluate, save and stop.
    checkpoints: where to save to and resume from; None keeps nothing.
    metrics_dir: for `metrics.jsonl` and TensorBoard; None writes none.
    evaluate: (state) -> metrics on the development data.
    score: which of them, lower being better, decides the best checkpoint.
    progress: whether to show a progress bar; a text is its label.

  Returns:
    The Outcome.

  Raises:
    FloatingPointError: after `max_skipped` consecutive non-finite steps.
  """
  notes: dict[str, Any] = {'best': None, 'stale': 0}
  if checkpoints and checkpoints.latest_step() is not None:
    state, notes = checkpoints.restore(state)
  step = int(state.step)
  lead = jax.process_index() == 0
  writer = MetricWriter(metrics_dir, step) if metrics_dir and lead else None
  if checkpoints and step == 0:
    checkpoints.save(0, state, notes)

  def finish(reason: str) -> Outcome:
    if checkpoints:
      checkpoints.save(step, state, notes)
    return Outcome(state, notes['best'], reason)

  pending: list[dict[str, jax.Array]] = []
  with contextlib.ExitStack() as stack:
    if writer:
      stack.callback(writer.close)
    stops: list[bool] = []  # one for every SIGTERM
    stack.enter_context(on_sigterm(lambda: stops.append(True)))
    bar = stack.enter_context(
      tqdm(
        desc=progress if isinstance(progress, str) else None,
        total=config.steps,
        initial=step,
        unit='step',
        disable=not (progress and lead),
        dynamic_ncols=True,
      )
    )
    if _exhausted(notes, config):
      return finish('early stop')
    source = batches(step) if step < config.steps else iter(())
    stack.callback(getattr(source, 'close', lambda: None))
    while step < config.steps:
      state, metrics = update(state, next(source))
      step += 1
      pending.append(metrics)
      bar.update()
      last = step == config.steps
      if step % config.log_every == 0 or last:
        values = _summary(pending)
        pending = []
        _check_finite(values, step, config)
        bar.set_postfix(loss=f'{values["loss"]:.3f}')
        if writer:
          writer.write(step, values)
        interrupted = _any_process(bool(stops))
      else:
        interrupted = bool(stops) and jax.process_count() == 1
      due = config.eval_every and step % config.eval_every == 0
      if evaluate and (due or last):
        scores = evaluate(state)
        if progress and lead:
          bar.write(f'step {step}: {_show(scores)}')
        if writer:
          writer.write(step, {f'dev/{k}': v for k, v in scores.items()})
        notes = _judge(notes, step, float(scores[score]))
        if checkpoints and notes['stale'] == 0:
          checkpoints.save(step, state, notes, which='best')
        if _exhausted(notes, config):
          return finish('early stop')
        if checkpoints:
          checkpoints.save(step, state, notes)
      elif checkpoints and step % config.save_every == 0:
        checkpoints.save(step, state, notes)
      if interrupted and not last:
        return finish('interrupted')
  return finish('finished')


def _judge(notes: dict[str, Any], step: int, score: float) -> dict[str, Any]:
  best = notes['best']
  if best is None or score < best['score']:
    return {'best': {'step': step, 'score': score}, 'stale': 0}
  return {'best': best, 'stale': notes['stale'] + 1}


def _exhausted(notes: dict[str, Any], config: LoopConfig) -> bool:
  return bool(config.patience) and notes['stale'] >= config.patience


def _summary(pending: list[dict[str, jax.Array]]) -> dict[str, float]:
  """Means over the finite values of each metric; counters as they stand."""
  fetched = jax.device_get(pending)
  values = {}
  for name in fetched[0]:
    column = np.asarray([record[name] for record in fetched], np.float64)
    if name in ('skipped', 'skipped_in_a_row', 'learning_rate'):
      values[name] = float(column[-1])
    else:
      finite = column[np.isfinite(column)]
      values[name] = float(finite.mean()) if finite.size else math.nan
  return values


def _check_finite(values: dict[str, float], step: int, config: LoopConfig):
  in_a_row = int(values.pop('skipped_in_a_row'))
  if in_a_row >= config.max_skipped:
    raise FloatingPointError(
      f'the loss or its gradient was not finite in the last {in_a_row} steps '
      f'(at step {step}; {int(values["skipped"])} skipped in all). Lower the '
      'learning rate, lengthen the warm-up, or look for broken utterances; '
      'the latest checkpoint is intact'
    )


def _show(values: Mapping[str, float]) -> str:
  return ', '.join(f'{k} {v:.4g}' for k, v in values.items())


def _any_process(flag: bool) -> bool:
  if jax.process_count() == 1:
    return flag
  return bool(np.any(multihost_utils.process_allgather(np.asarray(flag))))
