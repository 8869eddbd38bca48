"""The arguments of configs, and that all of them are of known fields."""

import importlib

import pytest

from experiments import cells, fields
from experiments.configs import common
from experiments.configs.float import asc_strings as float_asc_strings
from experiments.configs.lm import wikitext2
from experiments.configs.s8bqat import asc_strings


def test_arguments_fill_in_what_is_not_given():
  read = lambda text: common.arguments(text, fold='0', words=('all', 'digits'))
  for text in (None, ''):
    assert read(text) == {'fold': '0', 'words': 'all'}
  assert read('words=digits,fold=a=b') == {'fold': 'a=b', 'words': 'digits'}


@pytest.mark.parametrize(
  'text, message',
  [
    ('fold', "'fold': expected name=value, with a name of fold, words"),
    ('fold=1,size=2', "'size=2': expected name=value, with a name of fold"),
    ('words=digit', "'words=digit': expected one of all, digits"),
  ],
)
def test_arguments_that_mean_nothing(text, message):
  with pytest.raises(ValueError, match=message):
    common.arguments(text, fold='0', words=('all', 'digits'))


@pytest.mark.parametrize(
  'module, text',
  [
    (float_asc_strings, 'words=digit'),
    (asc_strings, 'digits'),
    (wikitext2, 'size=3m'),
  ],
)
def test_configs_refuse_what_would_be_another_experiment(module, text):
  with pytest.raises(ValueError, match='config argument'):
    module.get_config(text)


def test_the_words_of_an_experiment_are_those_of_its_float_models():
  config = asc_strings.get_config('words=digits')
  assert config.name == 's8bqat_b_digits'
  assert ',words=digits,' in config.float.arguments


@pytest.mark.parametrize(
  'name',
  [
    *('demo.digits', 'librispeech.rnnt_60m', 'float.asc_strings'),
    *('float.espeak_grammar', 'float.fsdd_strings', 'float.speechocean'),
  ],
)
def test_every_recognizer_can_be_trained_as_its_config_says(name):
  config = importlib.import_module(f'experiments.configs.{name}').get_config()
  fields.check_recognizer(config)
  if 'pretrain' in config:
    fields.check_recognizer(config.pretrain)


@pytest.mark.parametrize(
  'name',
  ['asc_strings', 'digits', 'espeak_grammar', 'fsdd_strings', 'speechocean'],
)
def test_what_experiments_add_are_known_fields(name):
  module = importlib.import_module(f'experiments.configs.s8bqat.{name}')
  config = module.get_config()
  for matrix in config.matrices:
    job, *_ = cells.jobs(config, matrix)
    fields.check_recognizer(cells.train_config(config, job))
