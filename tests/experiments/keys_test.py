"""What trainings are kept under."""

from experiments import keys
from tests.experiments import tiny


def test_a_later_field_changes_a_key_only_where_it_changes_something():
  config = tiny.get_config()
  config.pretrain = config.copy_and_resolve_references()
  now = keys.about(config)
  del config.data.sort_within, config.pretrain.data.sort_within
  assert keys.about(config) == now
  config.data.sort_within = 8
  assert keys.about(config) != now
  config.data.sort_within = 1
  config.pretrain.data.sort_within = 8
  assert keys.about(config) != now


def test_keys_hold_what_the_data_is():
  config = tiny.get_config()
  before = keys.about(config)['fingerprints']
  assert set(before) == {'train', 'dev'}
  config.data.train = config.data.train.replace('utterances=16', 'utterances=8')
  after = keys.about(config)['fingerprints']
  assert after['train'] != before['train'] and after['dev'] == before['dev']
