"""The training loop: any step, any batches; interrupted and resumed exactly.

The loop owns no randomness and no position of its own: batch i is a function
of i, a step's draws follow from its number, and the early-stopping record
rides in the checkpoint's notes, as do an evaluation that a signal put off and
the metrics that wait to be averaged. A run that was killed and started again
therefore ends with the same bits, and the same metrics, as one that was not.
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
from s8bqat_jax.training.signals import on_stop

_WINDOW = 'window'  # of a checkpoint's notes


@dataclasses.dataclass(frozen=True)
class LoopConfig:
  """When things happen, in steps.

  Attributes:
    steps: of the whole training.
    log_every: metrics are averaged and written, and at the end; 0 means never.
    eval_every: the development data is scored; 0 means only at the end.
    save_every: a checkpoint is written; 0 means only at the end and at every
      evaluation, where one is written anyway.
    patience: evaluations without a new best before training stops; 0 never.
    max_skipped: consecutive non-finite steps that end the run, looked for
      when something is logged, saved or evaluated; 0 never.
  """

  steps: int
  log_every: int = 50
  eval_every: int = 0
  save_every: int = 1000
  patience: int = 0
  max_skipped: int = 20

  def __post_init__(self):
    for field in dataclasses.fields(self):
      value = getattr(self, field.name)
      if value < 0:
        raise ValueError(f'{field.name}={value}: expected 0 or more')


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

  At SIGTERM, and at Ctrl-C, training saves and ends after what it is about, a
  step or an evaluation; a second Ctrl-C interrupts at once.

  Args:
    update: the jitted step, (state, batch) -> (state, metrics). No metric is
      required; those that `make_step` reports are shown (`loss`) and watched
      (`skipped_in_a_row`).
    state: where training starts.
    batches: (step) -> iterator over the batches of that step and later ones.
    config: when to log, evaluate, save and stop.
    checkpoints: where to save to and resume from; None keeps nothing.
    metrics_dir: for `metrics.jsonl` and TensorBoard; None writes none.
    evaluate: (state) -> metrics on the development data.
    score: which of them, lower being better, decides the best checkpoint; one
      that is not finite is no best.
    progress: whether to show a progress bar; a text is its label.

  Returns:
    The Outcome.

  Raises:
    FloatingPointError: after `max_skipped` consecutive non-finite steps.
    ValueError: if the batches end before the last step, or `evaluate` does not
      return `score`.
  """
  # due: whether the evaluation of this step is still to be made.
  notes: dict[str, Any] = {'best': None, 'stale': 0, 'due': False}
  window: dict[str, list[float]] = {}  # metrics since they were last logged
  if checkpoints and checkpoints.latest_step() is not None:
    state, stored = checkpoints.restore(state)
    window = stored.pop(_WINDOW, {})
    notes |= stored
    notes['due'] &= evaluate is not None
  step = int(state.step)
  lead = jax.process_index() == 0
  writer = MetricWriter(metrics_dir, step) if metrics_dir and lead else None
  pending: list[dict[str, jax.Array]] = []

  def save(which: str = 'latest') -> None:
    if checkpoints:
      _collect(window, pending)
      checkpoints.save(step, state, notes | {_WINDOW: window}, which=which)

  def finish(reason: str) -> Outcome:
    save()
    return Outcome(state, notes['best'], reason)

  if step == 0:
    save()
  with contextlib.ExitStack() as stack:
    if writer:
      stack.callback(writer.close)
    stops: list[bool] = []  # one for every signal
    stack.enter_context(on_stop(lambda: stops.append(True)))
    bar = stack.enter_context(
      tqdm(
        desc=progress if isinstance(progress, str) else None,
        total=config.steps,
        initial=step,
        unit='step',
        disable=not (progress and lead),
        dynamic_ncols=True,
        # The mean speed: steps are handed out in bursts and waited for where
        # something is logged, and of those moments neither is the speed.
        smoothing=0,
      )
    )
    if _exhausted(notes, config):
      return finish('early stop')
    source = batches(step) if step < config.steps else iter(())
    stack.callback(getattr(source, 'close', lambda: None))
    meeting = True  # whether processes wait for each other here anyway
    while step < config.steps or notes['due']:
      if meeting and _any_process(bool(stops)):
        return finish('interrupted')
      if evaluate and notes['due']:
        scores = evaluate(state)
        if progress and lead:
          bar.write(f'step {step}: {_show(scores)}')
        if writer:
          writer.write(step, {f'dev/{k}': v for k, v in scores.items()})
        notes = _judge(notes, step, scores, score)
        if notes['stale'] == 0:
          save('best')
        if _exhausted(notes, config):
          return finish('early stop')
        save()
        meeting = True
        continue
      state, metrics = update(state, _next(source, step, config))
      step += 1
      bar.update()
      last = step == config.steps
      logs = bool(config.log_every) and (last or step % config.log_every == 0)
      saves = _is_multiple(step, config.save_every)
      notes['due'] = evaluate is not None and (
        last or _is_multiple(step, config.eval_every)
      )
      if logs or saves or notes['due'] or last:
        _check_finite(metrics, step, config)
      if config.log_every:
        pending.append(metrics)
      if logs:
        _collect(window, pending)
        values = _summary(window)
        window.clear()
        if 'loss' in values:
          bar.set_postfix(loss=f'{values["loss"]:.3f}')
        if writer:
          writer.write(step, values)
      if saves and not notes['due']:
        save()
      meeting = logs or saves or notes['due'] or jax.process_count() == 1
  return finish('finished')


def _is_multiple(step: int, every: int) -> bool:
  """Whether something that happens `every` steps, 0 for never, does now."""
  return bool(every) and step % every == 0


def _next(source: Iterator[Any], step: int, config: LoopConfig) -> Any:
  try:
    return next(source)
  except StopIteration:
    raise ValueError(
      f'batches ended at step {step} of {config.steps}: they must go on to the '
      'last step (begin the data again after each pass), or train fewer steps'
    ) from None


def _judge(
  notes: dict[str, Any], step: int, scores: Mapping[str, float], score: str
) -> dict[str, Any]:
  if score not in scores:
    raise ValueError(
      f'score={score!r}: evaluate does not return it; there are '
      f'{", ".join(scores)}'
    )
  found, best = float(scores[score]), notes['best']
  if math.isfinite(found) and (best is None or found < best['score']):
    return {'best': {'step': step, 'score': found}, 'stale': 0, 'due': False}
  return {'best': best, 'stale': notes['stale'] + 1, 'due': False}


def _exhausted(notes: dict[str, Any], config: LoopConfig) -> bool:
  return bool(config.patience) and notes['stale'] >= config.patience


def _collect(
  window: dict[str, list[float]], pending: list[dict[str, jax.Array]]
) -> None:
  """Moves metrics from the device to where a checkpoint can take them."""
  for record in jax.device_get(pending):
    for name, value in record.items():
      window.setdefault(name, []).append(float(value))
  pending.clear()


def _summary(window: Mapping[str, list[float]]) -> dict[str, float]:
  """Means over the finite values of each metric; counters as they stand."""
  values = {}
  for name, found in window.items():
    if name == 'skipped_in_a_row':  # for `_check_finite`
      continue
    column = np.asarray(found, np.float64)
    if name in ('skipped', 'learning_rate'):
      values[name] = float(column[-1])
    else:
      finite = column[np.isfinite(column)]
      values[name] = float(finite.mean()) if finite.size else math.nan
  return values


def _check_finite(
  metrics: Mapping[str, jax.Array], step: int, config: LoopConfig
) -> None:
  in_a_row = int(metrics.get('skipped_in_a_row', 0))
  if config.max_skipped and in_a_row >= config.max_skipped:
    raise FloatingPointError(
      f'the loss or its gradient was not finite in the last {in_a_row} steps '
      f'(at step {step}; {int(metrics.get("skipped", in_a_row))} skipped in '
      'all). Lower the learning rate, lengthen the warm-up, or look for broken '
      'utterances; the latest checkpoint is intact'
    )


def _show(values: Mapping[str, float]) -> str:
  return ', '.join(f'{k} {v:.4g}' for k, v in values.items())


def _any_process(flag: bool) -> bool:
  if jax.process_count() == 1:
    return flag
  return bool(np.any(multihost_utils.process_allgather(np.asarray(flag))))
