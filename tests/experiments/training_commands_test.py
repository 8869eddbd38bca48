"""Commands that train, run as users run them, on tiny problems."""

import json

import pytest

pytest.importorskip('espeakng_loader')

from tests.experiments import commands


def test_train_goes_on_where_it_stopped_and_evaluate_scores(tmp_path):
  train = (
    'experiments.train',
    '--config=tests/experiments/tiny.py',
    f'--workdir={tmp_path}',
  )
  commands.printed(*train, '--config.train.steps=3')
  steps = lambda: [
    json.loads(line)['step']
    for line in (tmp_path / 'metrics.jsonl').read_text().splitlines()
  ]
  assert max(steps()) == 3
  told = commands.printed(*train)
  assert max(steps()) == 6 and steps() == sorted(steps())
  assert told.splitlines()[-1].startswith('finished; best on development data')
  spec = 'espeak:digits?split=eval&utterances=16&snr=20-30'
  told = commands.printed(
    'experiments.evaluate',
    f'--workdir={tmp_path}',
    f'--data={spec}',
    f'--hypotheses={tmp_path}/hypotheses.jsonl',
  )
  found = json.loads(told.splitlines()[-1])
  assert found['words'] > 16 and found['wer'] > 0


def test_s8bqat_writes_a_table_of_its_matrix(tmp_path):
  config = tmp_path / 'config.py'
  config.write_text(
    'from tests.experiments.tiny import experiment as get_config\n'
  )

  def run(runs, *more):
    return commands.results(
      tmp_path / 'results',
      'experiments.s8bqat',
      f'--config={config}',
      '--matrix=quick',
      f'--runs={tmp_path}/{runs}',
      *more,
    )

  found = run('runs', '--publish')
  methods = [row['method'] for row in found['rows']]
  assert methods == ['float', 's8bqat (pull 2)']
  assert not found['not_run']
  sizes = [row['metrics']['bytes'] for row in found['rows']]
  assert sizes[1] < sizes[0] / 3
  for row in found['rows']:
    assert row['metrics']['equal_to_training'] == 16
  # What is published needs no training.
  assert run('none', '--max_hours=0')['rows'] == found['rows']
  assert not (tmp_path / 'none' / 'tiny' / 'train').exists()


def test_a_language_models_matrix_takes_what_is_asked(tmp_path):
  config = tmp_path / 'config.py'
  config.write_text(
    'import pathlib\n'
    'from tests.experiments import toy_language\n'
    'def get_config():\n'
    f'  folder = pathlib.Path({str(tmp_path)!r})\n'
    '  config = toy_language.config(folder, train=200, held_out=200)\n'
    "  config.name = 'toy'\n"
    '  config.points, config.choices = (3,), (3, 4)\n'
    '  config.sensitivity.allocations = 3\n'
    '  return config\n'
  )
  found = commands.results(
    tmp_path / 'results',
    'experiments.mixed_precision_lm',
    f'--config={config}',
    '--only=ptq lloyd-max, 3',
    f'--runs={tmp_path}/runs',
  )
  (row,) = found['rows']
  assert (row['method'], row['bits']) == ('ptq lloyd-max', 3)
  assert 'admm, bits by kl, 3, seed 0' in found['not_run']
  assert (tmp_path / 'results' / 'toy.png').stat().st_size > 1000
