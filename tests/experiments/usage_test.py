"""What commands refuse before they work."""

import jax
import pytest
from absl import app

from experiments import usage
from experiments.configs.demo import digits
from experiments.configs.lm import wikitext2
from experiments.configs.s8bqat import asc_strings


def test_what_belongs_to_no_flag_is_refused():
  usage.no_arguments(['command'])
  with pytest.raises(app.UsageError, match='unexpected arguments 66k 90k: a'):
    usage.no_arguments(['command', '66k', '90k'])


def test_a_config_of_another_command_is_refused():
  kinds = {
    'matrices': asc_strings.get_config(),
    'points': wikitext2.get_config(),
    'tokenizer': digits.get_config(),
  }
  for section in kinds:
    for kind, config in kinds.items():
      if kind == section:
        usage.check_config(config, section, 'x')
        continue
      with pytest.raises(app.UsageError, match='a file of experiments/confi'):
        usage.check_config(config, section, 'x')


def test_a_name_that_does_not_exist_is_refused():
  usage.check_known('seeds', ['1'], ('0', '1', '1'))
  usage.check_known('seeds', [], [])
  with pytest.raises(app.UsageError, match="--seeds: '7' is not one of 0, 1$"):
    usage.check_known('seeds', ['0', '7'], ('0', '1', '1'))


@pytest.mark.parametrize('given', ['', 'given'])
def test_compiled_programs_are_kept_where_the_user_says(given, tmp_path):
  before = jax.config.values['jax_compilation_cache_dir']
  seconds = jax.config.values['jax_persistent_cache_min_compile_time_secs']
  try:
    jax.config.update('jax_compilation_cache_dir', given or None)
    usage.keep_compiled(tmp_path)
    kept = jax.config.values['jax_compilation_cache_dir']
    assert kept == (given or str(tmp_path))
  finally:
    jax.config.update('jax_compilation_cache_dir', before)
    jax.config.update('jax_persistent_cache_min_compile_time_secs', seconds)
