"""The arguments of configs."""

import pytest

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
