"""Stages of the language model experiment: what decides about a folder."""

import json

import pytest

from experiments import lm_sensitivity, lm_stages
from s8bqat_jax import sensitivity
from tests.experiments import toy_language


@pytest.fixture
def config(tmp_path):
  return toy_language.config(tmp_path, train=200, held_out=60)


def test_another_text_is_another_float_model(config, tmp_path):
  """Also where its vocabulary is as large, and its path the same."""
  path = tmp_path / 'train.txt'
  path.write_text(toy_language.sentences(3, 200))
  other = config.copy_and_resolve_references()
  other.data.train = f'text:{path}'
  first = lm_stages.Stages(other, lm_stages.Corpora(other), tmp_path)
  path.write_text(toy_language.sentences(4, 200))
  second = lm_stages.Stages(other, lm_stages.Corpora(other), tmp_path)
  folders = {
    s.folder('float', 'float', s.float_config) for s in (first, second)
  }
  assert len(folders) == 2
  # What changes no weight changes no folder.
  other.data.score_context = 4
  third = lm_stages.Stages(other, lm_stages.Corpora(other), tmp_path)
  assert third.folder('float', 'float', third.float_config) in folders


def test_a_text_is_the_same_wherever_it_is(config, tmp_path):
  elsewhere = tmp_path / 'elsewhere'
  elsewhere.mkdir()
  moved = toy_language.config(elsewhere, train=200, held_out=60)
  assert moved.data.train != config.data.train
  names = {
    lm_stages.Stages(c, lm_stages.Corpora(c), tmp_path).float_folder()
    for c in (config, moved)
  }
  assert len(names) == 1


def test_a_run_goes_on_under_other_logging_and_scoring(config, tmp_path):
  corpora = lm_stages.Corpora(config)
  stages = lm_stages.Stages(config, corpora, tmp_path, progress=False)
  folder = stages.float_folder()
  config.train.steps = 3  # and it stops there
  stopped = lm_stages.Stages(config, corpora, tmp_path, progress=False)
  stopped.fit(folder, stopped.float_config, None, None)
  config.train.update({'steps': 40, 'log_every': 7})
  config.data.score_context = 4
  again = lm_stages.Stages(config, corpora, tmp_path, progress=False)
  assert again.float_folder() == folder
  outcome = again.fit(folder, again.float_config, None, None)
  assert int(outcome.state.step) == 40


def test_a_methods_own_rate_moves_its_training_alone(config, tmp_path):
  corpora = lm_stages.Corpora(config)
  plain = lm_stages.Stages(config, corpora, tmp_path, progress=False)
  config.finetune.rates['admm'] = 0.5
  other = lm_stages.Stages(config, corpora, tmp_path, progress=False)
  rates = [
    of.about('admm', 3)['tuned']['train']['learning_rate']
    for of in (plain, other)
  ]
  assert rates == [config.finetune.train.learning_rate, 0.5]
  kept = 'straight-through', 'float continued', 'ptq lloyd-max'
  for method in ('admm', *kept):
    folders = {of.train_folder(method, 3).name for of in (plain, other)}
    assert len(folders) == (1 if method in kept else 2)


def test_sizes_are_those_of_todays_format(config, tmp_path, monkeypatch):
  corpora = lm_stages.Corpora(config)
  stages = lm_stages.Stages(config, corpora, tmp_path, progress=False)
  path = stages.train('ptq lloyd-max', 3)
  before = stages.evaluate(path)
  assert before['bytes'] == path.stat().st_size
  monkeypatch.setattr(
    lm_stages.packed_file, 'encoded_bytes', lambda *args, **options: 123
  )
  after = stages.evaluate(path)
  assert after.pop('encoded_bytes') == 123 != before.pop('encoded_bytes')
  assert json.dumps(after) == json.dumps(before)


def test_positions_that_were_never_trained_are_not_scored(config, tmp_path):
  config = config.copy_and_resolve_references()
  config.data.score_length = config.data.length + 1
  with pytest.raises(ValueError, match='score_length is 17, longer than'):
    lm_stages.Stages(config, None, tmp_path)


def test_the_development_text_decides_no_weight(config, tmp_path):
  config = config.copy_and_resolve_references()
  config.train.patience = 3
  with pytest.raises(ValueError, match='eval_every or patience, expected 0'):
    lm_stages.Stages(config, None, tmp_path)


def test_what_no_file_can_be_is_known_before_any_training(config, tmp_path):
  stages = lm_stages.Stages(config, lm_stages.Corpora(config), tmp_path)
  sizes = lm_sensitivity.Sensitivity(stages)
  sizes.check_sizes((3, '1.2x', '5000B'))
  for point in ('500x', '1000B'):
    with pytest.raises(sensitivity.InfeasibleError, match=f"'{point}', a file"):
      sizes.check_sizes((3, '1.2x', point))
  assert not stages.float_done()
  with pytest.raises(ValueError, match=r'config.choices .*expected 1..8 bits'):
    lm_sensitivity.check_points(_with(config, choices=(2, 4, 16)))


def _with(config, **fields):
  made = config.copy_and_resolve_references()
  made.update(fields)
  return made
