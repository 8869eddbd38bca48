"""Training resumes exactly, spreads over devices and processes, and stops."""

import os
import pathlib
import random
import signal
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from s8bqat_jax import training
from tests.training import toy_run

ROOT = pathlib.Path(__file__).parents[2]


def _start(workdir, steps, *args, devices=1):
  flags = f'--xla_force_host_platform_device_count={devices}'
  return subprocess.Popen(
    [
      sys.executable,
      '-m',
      'tests.training.toy_run',
      workdir,
      str(steps),
      *args,
    ],
    cwd=ROOT,
    env={**os.environ, 'XLA_FLAGS': flags, 'JAX_PLATFORMS': 'cpu'},
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def _end(process):
  out, err = process.communicate(timeout=120)
  lines = [line for line in out.splitlines() if line.startswith('end')]
  assert process.returncode == 0 and lines, err[-2000:]
  return lines[-1].split()[1:]  # reason, step, digest


def test_killed_and_resumed_equals_uninterrupted(tmp_path):
  steps, rng = 60, random.Random(3)
  reason, step, digest = _end(_start(tmp_path / 'whole', steps))
  assert (reason, step) == ('finished', '60')

  workdir = tmp_path / 'killed'
  first = _start(workdir, steps, 'SIGKILL', str(rng.randrange(15, 30)))
  first.communicate(timeout=60)
  assert first.returncode == -signal.SIGKILL
  stopped_at = rng.randrange(35, 50)
  reason, step, _ = _end(_start(workdir, steps, 'SIGTERM', str(stopped_at)))
  assert reason == 'interrupted'
  # It saves at once, after the step that was under way, and not at the next
  # multiple of save_every.
  assert int(step) == stopped_at + 1
  assert _end(_start(workdir, steps)) == ['finished', '60', digest]
  # The metrics read as if nothing had happened.
  for record, wanted in zip(
    training.read_metrics(workdir),
    training.read_metrics(tmp_path / 'whole'),
    strict=True,
  ):
    assert record == wanted


def test_one_device_and_eight_agree():
  devices = jax.devices()
  assert len(devices) == 8
  one = toy_run.run(None, 30, devices[:1]).state
  eight = toy_run.run(None, 30, devices).state
  for a, b in zip(jax.tree.leaves(one.params), jax.tree.leaves(eight.params)):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_two_processes_train_and_checkpoint_together(tmp_path):
  with socket.socket() as probe:
    probe.bind(('127.0.0.1', 0))
    port = str(probe.getsockname()[1])
  run = lambda i: _start(tmp_path, 20, str(i), '2', port)
  processes = [run(0), run(1)]
  ends = [_end(p) for p in processes]
  assert ends[0] == ends[1]
  assert ends[0][:2] == ['finished', '20']
  # What the two wrote together, one process can read: same values as alone.
  alone = toy_run.run(None, 20, jax.devices()[:1]).state
  checkpoints = training.Checkpoints(tmp_path)
  together, _ = checkpoints.restore(alone)
  checkpoints.close()
  for a, b in zip(
    jax.tree.leaves(alone.params), jax.tree.leaves(together.params)
  ):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def _plain_update(state, batch):
  del batch
  step = state.step + 1
  return state._replace(step=step), {
    'loss': jnp.zeros(()),
    'skipped': step * 0,
    'skipped_in_a_row': step * 0,
  }


def _train(
  evaluate, tmp_path=None, update=_plain_update, metrics_dir=None, **config
):
  state = toy_run.make_step().init(toy_run.init_params())
  return training.train(
    update,
    state,
    lambda start: iter(lambda: None, 0),
    training.LoopConfig(**config),
    evaluate=evaluate,
    checkpoints=training.Checkpoints(tmp_path) if tmp_path else None,
    metrics_dir=metrics_dir,
    progress=False,
  )


def test_early_stopping_keeps_the_best(tmp_path):
  scores = {2: 5.0, 4: 3.0, 6: 4.0, 8: 3.0, 10: 1.0}
  evaluate = lambda state: {'wer': scores[int(state.step)]}
  outcome = _train(evaluate, tmp_path, steps=20, eval_every=2, patience=2)
  assert outcome.reason == 'early stop'
  assert outcome.best == {'step': 4, 'score': 3.0}
  assert int(outcome.state.step) == 8
  checkpoints = training.Checkpoints(tmp_path)
  assert checkpoints.latest_step('best') == 4
  checkpoints.close()
  # Started again, it knows that it has stopped.
  again = _train(None, tmp_path, steps=20, eval_every=2, patience=2)
  assert again.reason == 'early stop' and int(again.state.step) == 8


def test_a_score_that_is_not_finite_is_no_best(tmp_path):
  scores = {2: np.nan, 4: 3.0, 6: np.inf, 8: np.nan, 10: 5.0}
  evaluate = lambda state: {'wer': scores[int(state.step)]}
  outcome = _train(evaluate, tmp_path, steps=10, eval_every=2)
  assert outcome.best == {'step': 4, 'score': 3.0}
  nothing = _train(lambda state: {'wer': np.nan}, steps=6, eval_every=2)
  assert nothing.best is None
  stuck = _train(
    lambda state: {'wer': np.nan}, steps=20, eval_every=2, patience=2
  )
  assert stuck.reason == 'early stop' and int(stuck.state.step) == 4


def test_the_score_must_be_among_the_metrics():
  with pytest.raises(ValueError, match="score='wer'.*there are cer"):
    _train(lambda state: {'cer': 1.0}, steps=2)


def _scores(calls, at=None):
  """An evaluation that gets a SIGTERM at a step."""

  def evaluate(state):
    step = int(state.step)
    calls.append(step)
    if step == at:
      os.kill(os.getpid(), signal.SIGTERM)
    return {'wer': 10.0 - step}

  return evaluate


def test_a_signal_during_an_evaluation_ends_the_run_right_after_it(tmp_path):
  calls = []
  outcome = _train(_scores(calls, at=4), tmp_path, steps=8, eval_every=2)
  assert outcome.reason == 'interrupted' and int(outcome.state.step) == 4
  assert outcome.best == {'step': 4, 'score': 6.0}
  again = _train(_scores(calls), tmp_path, steps=8, eval_every=2)
  assert again.best == {'step': 8, 'score': 2.0}
  assert calls == [2, 4, 6, 8]


@pytest.mark.parametrize('at', [4, 8])
def test_a_signal_before_an_evaluation_puts_it_off(tmp_path, at):
  calls = []

  def update(state, batch):
    if int(state.step) == at - 1 and not resumed:
      os.kill(os.getpid(), signal.SIGTERM)
    return _plain_update(state, batch)

  config = {'steps': 8, 'eval_every': 2}
  resumed = False
  outcome = _train(_scores(calls), tmp_path, update, **config)
  assert outcome.reason == 'interrupted' and int(outcome.state.step) == at
  assert calls == list(range(2, at, 2))
  resumed = True
  outcome = _train(_scores(calls), tmp_path, update, **config)
  assert outcome.reason == 'finished'
  assert outcome.best == {'step': 8, 'score': 2.0}
  assert calls == [2, 4, 6, 8]


@pytest.mark.parametrize('presses', [1, 2])
def test_ctrl_c_saves_and_a_second_one_interrupts_at_once(
  tmp_path, monkeypatch, presses
):
  before = signal.signal(signal.SIGINT, signal.default_int_handler)

  def update(state, batch):
    if int(state.step) == 3:
      for _ in range(presses):
        signal.raise_signal(signal.SIGINT)
    return _plain_update(state, batch)

  try:
    if presses == 2:
      with pytest.raises(KeyboardInterrupt):
        _train(None, tmp_path, update, steps=8)
      return
    outcome = _train(None, tmp_path, update, steps=8)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
  finally:
    signal.signal(signal.SIGINT, before)
  assert outcome.reason == 'interrupted' and int(outcome.state.step) == 4
  assert training.Checkpoints(tmp_path).latest_step() == 4


def test_batches_that_end_early_are_named():
  state = toy_run.make_step().init(toy_run.init_params())
  config = training.LoopConfig(steps=8)
  three = lambda start: iter([None] * 3)
  with pytest.raises(ValueError, match='batches ended at step 3 of 8'):
    training.train(_plain_update, state, three, config, progress=False)


def test_a_step_may_report_what_it_likes(tmp_path):
  reports = [{}, {'accuracy': jnp.ones(())}, {}, {'loss': jnp.zeros(())}]

  def update(state, batch):
    report = reports[int(state.step)]
    return state._replace(step=state.step + 1), report

  _train(None, None, update, tmp_path, steps=4, log_every=2)
  assert training.read_metrics(tmp_path) == [
    {'step': 2, 'accuracy': 1.0},
    {'step': 4, 'loss': 0.0},
  ]


def test_zero_is_never(tmp_path):
  calls = []
  never = {'log_every': 0, 'save_every': 0, 'eval_every': 0, 'max_skipped': 0}
  saved = tmp_path / 'saved'
  outcome = _train(
    _scores(calls), saved, _plain_update, tmp_path, steps=5, **never
  )
  assert outcome.reason == 'finished' and calls == [5]
  assert training.Checkpoints(saved).latest_step() == 5
  records = training.read_metrics(tmp_path)
  assert records == [{'step': 5, 'dev/wer': 5.0}]


@pytest.mark.parametrize(
  'field',
  ['steps', 'log_every', 'eval_every', 'save_every', 'patience', 'max_skipped'],
)
def test_negative_settings_are_named(field):
  with pytest.raises(ValueError, match=f'{field}=-1'):
    training.LoopConfig(**{'steps': 1, field: -1})


def test_persistent_nan_ends_the_run_and_a_single_one_does_not():
  step = toy_run.make_step()
  state = step.init(toy_run.init_params())
  bad = np.full((4, 4), np.nan, np.float32)

  def batches(kinds):
    return lambda start: (bad if k else toy_run.batch_at(k) for k in kinds)

  config = training.LoopConfig(steps=8, log_every=1, max_skipped=3)
  update = jax.jit(step.update)
  outcome = training.train(
    update, state, batches([0, 1, 0, 1, 1, 0, 0, 0]), config, progress=False
  )
  assert int(outcome.state.skipped) == 3
  assert np.isfinite(outcome.state.params['w1']).all()
  with pytest.raises(FloatingPointError, match='last 3 steps.*learning rate'):
    training.train(update, state, batches([1] * 8), config, progress=False)
  # Without a log it is noticed at the end.
  silent = training.LoopConfig(steps=8, log_every=0, max_skipped=3)
  with pytest.raises(FloatingPointError, match='last 8 steps'):
    training.train(update, state, batches([1] * 8), silent, progress=False)
