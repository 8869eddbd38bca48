"""Cells by name, and the configs that are made of them."""

import jax.numpy as jnp
import numpy as np
import pytest

from experiments import cells, stages, trainer
from experiments.configs.s8bqat import (
  asc_strings,
  digits,
  espeak_grammar,
  fsdd_strings,
  speechocean,
)
from tests.experiments import tiny


@pytest.mark.parametrize(
  'text',
  [
    '90k/float',
    '200k/s8bqat:4?pull=8&every=0',
    '90k/ptq lloyd-max:2',
    '90k/s8bqat:3?centroids=uniform&power=0',
    '90k/s8bqat:3?predictor=8&joint=5&lr=0.004',
  ],
)
def test_a_cell_is_its_name(text):
  assert str(cells.parse(text)) == text


@pytest.mark.parametrize(
  'text, message',
  [
    ('float', 'expected SIZE/METHOD:BITS'),
    ('90k/s8bqat:four', 'expected SIZE/METHOD:BITS'),
    ('90k/s9bqat:4', 'no method .s9bqat.; methods: float,'),
    ('90k/s8bqat:4?pul=8', 'no option .pul.; options: pull, every'),
    ('90k/s8bqat:4?pull', 'option .pull. has no value'),
    ('90k/s8bqat:4?lr=fast', "lr is 'fast', expected a number"),
    ('90k/s8bqat:4?lr=-1', 'lr is -1, expected a number above 0'),
    ('90k/s8bqat:4?lr=True', 'lr is True, expected a number above 0'),
    ('90k/ptq uniform:4?lr=0.1', 'ptq uniform trains nothing: no lr'),
    ('90k/s8bqat', 's8bqat takes 1..8 bits'),
    ('90k/uniform qat:12', 'uniform qat takes 1..8 bits'),
    ('90k/float:8', 'float takes no bits'),
    ('90k/float?joint=5', 'float takes no bits'),
    ('90k/s8bqat:3?joint=9', 's8bqat takes 1..8 bits'),
    ('90k/s8bqat:3?predictor=0', 's8bqat takes 1..8 bits'),
    ('90k/s8bqat:3?joint=5.0', 's8bqat takes 1..8 bits'),
    ('90k/s8bqat:3?predictor=wide', 's8bqat takes 1..8 bits'),
    ('90k/s8bqat:4?pull=abc', "pull is 'abc', expected a value like 4.0"),
    ('90k/s8bqat:4?pull=8,0', 'pull is .8, 0., expected a value like 4.0'),
    ('90k/s8bqat:4?every=2.5', 'every is 2.5, expected a value like 1'),
    ('90k/s8bqat:4?every=True', 'every is True, expected a value like 1'),
    ('90k/s8bqat:4?reading=2', "reading is 2, expected a value like 'loss'"),
    ('90k/coarse int8:4?rate=abc', "rate is 'abc', expected a value like"),
    ('90k/s8bqat:4?pull=4&pull=8', 'option .pull. is given twice'),
  ],
)
def test_names_that_mean_nothing(text, message):
  with pytest.raises(ValueError, match=message):
    cells.parse(text)


@pytest.mark.parametrize(
  'module',
  [asc_strings, digits, espeak_grammar, fsdd_strings, speechocean],
  ids=lambda m: m.__name__,
)
def test_every_matrix_can_be_read_and_made(module):
  config = module.get_config()
  for name in config.matrices:
    for job in cells.jobs(config, name):
      made = cells.train_config(config, job)
      before = trainer.steps_in_all(cells.float_config(config, job))
      assert 0 < made.train.steps <= 0.3 * before
  assert all(map(cells.parse, config.headline))
  with pytest.raises(ValueError, match='no matrix .curv.; matrices'):
    cells.jobs(config, 'curv')


@pytest.mark.parametrize(
  'text, message',
  [
    ('tiny/coarse int8:8', 'knows its rate at 2, 3, 4 bits of all weights'),
    ('tiny/coarse int8:3?joint=5', 'one rate for all weights'),
    ('tiny/s8bqat:2?reading=x', "reading must be 'loss' or 'overwrite'"),
    ('tiny/s8bqat:2?pull=-4', 'total must be 0 or more, got -4'),
    ('tiny/s8bqat:2?centroids=x', "not one of .'lloyd-max', 'uniform'"),
  ],
)
def test_cells_that_no_method_can_be_made_of(text, message):
  config = tiny.experiment()
  config.matrices.quick.cells = ('tiny/float', text)
  with pytest.raises(ValueError, match=message):
    cells.jobs(config, 'quick')


def test_augmentation_of_fine_tuning_may_be_another():
  config = tiny.experiment()
  config.finetune.augment.freq_warp = 0.25
  job = cells.Job(cells.parse('tiny/float continued'), 'all', 0)
  made, before = (
    cells.train_config(config, job),
    cells.float_config(config, job),
  )
  assert made.augment.freq_warp == 0.25
  assert made.augment.freq_masks == before.augment.freq_masks
  assert 'freq_warp' not in before.augment


def test_a_float_model_that_failed_is_begun_again_and_nothing_else_is():
  fresh, again = (
    espeak_grammar.get_config(f'joint={joint}') for joint in ('fresh', 'again')
  )
  assert fresh.float.arguments == again.float.arguments
  failed = dict(again.float.begun_again)
  assert failed == {'90k/3': 1003, '90k/4': 1004}
  for size, seed in (('90k', 2), ('90k', 3), ('130k', 3)):
    job = cells.Job(cells.parse(f'{size}/float'), 'all', seed)
    before, after = (cells.float_config(c, job) for c in (fresh, again))
    assert after.seed == failed.get(f'{size}/{seed}', seed)
    before.seed = before.pretrain.seed = after.seed
    assert before == after
    # Noise and order of fine-tuning are the job's.
    assert cells.train_config(again, job).seed == seed
  # What they share is trained once, and published once.
  assert fresh.stages == again.stages != espeak_grammar.get_config().stages
  assert fresh.name != again.name


def test_configs_differ_by_their_method_only():
  config = tiny.experiment()
  ours, control = (
    cells.train_config(config, cells.Job(cells.parse(text), 'all', 0)).to_dict()
    for text in ('tiny/s8bqat:2', 'tiny/uniform qat:8')
  )
  assert ours.pop('method') != control.pop('method')
  assert ours == control


def test_prediction_network_and_output_layer_can_have_bits_of_their_own():
  config = tiny.experiment()
  plain, mixed = (
    cells.train_config(config, cells.Job(cells.parse(text), 'all', 0))
    for text in ('tiny/s8bqat:3', 'tiny/uniform qat:3?predictor=8&joint=5')
  )
  # Trainings of before keep their names.
  assert 'part_bits' not in plain.method
  rng = np.random.default_rng(0)
  weights = {
    name: {'kernel': jnp.asarray(rng.normal(size=(24, 16)), jnp.float32)}
    for name in (
      *('encoder_0', 'encoder_out', 'ctc_out'),
      *('embed', 'predictor_0', 'predictor_out', 'joint_out'),
    )
  }
  mixed.train.ctc_weight = 0.3
  quantizer = stages.make_quantizer(mixed)
  encoded = quantizer.encode(weights, quantizer.init(weights))
  bits = {
    name: getattr(w['kernel'], 'bits', None) for name, w in encoded.items()
  }
  assert bits == {
    **dict.fromkeys(('encoder_0', 'encoder_out'), 3),
    **dict.fromkeys(('embed', 'predictor_0', 'predictor_out'), 8),
    'joint_out': 5,
    'ctc_out': None,
  }


def test_dropout_is_off_for_all_where_eight_bits_cannot_have_it():
  config = speechocean.get_config()
  config.float.arguments = 'size={size},seed={seed}'
  job = lambda text: cells.Job(cells.parse(text), 'all', 0)
  assert cells.float_config(config, job('1m/float')).model.dropout > 0
  for text in ('1m/float continued', '1m/uniform qat:8', '1m/s8bqat:3'):
    assert cells.train_config(config, job(text)).model.dropout == 0


def test_what_is_tuned_is_scored_on_development_data():
  config = asc_strings.get_config()
  jobs = cells.jobs(config, 'ablation')
  assert {job.split for job in jobs} == {'dev'}
  claims = cells.jobs(config, 'curve')
  assert {job.split for job in claims} == {'eval'}


def test_a_rate_of_its_own_is_found_by_name_and_overruled_by_the_cell():
  config = tiny.experiment()
  config.finetune.rates['s8bqat:2'] = 0.5
  rates = [
    cells.train_config(
      config, cells.Job(cells.parse(f'tiny/{text}'), 'all', 0)
    ).train.learning_rate
    for text in ('s8bqat:2', 's8bqat:2?lr=0.25', 's8bqat:4')
  ]
  assert rates == [0.5, 0.25, config.finetune.train.learning_rate]
  config.finetune.rates['s8bqatt:2'] = 0.5
  with pytest.raises(ValueError, match="'s8bqatt:2': expected METHOD:BITS"):
    cells.jobs(config, 'quick')
