"""Rules as data: order, groups, and errors that help."""

import jax.numpy as jnp
import numpy as np
import pytest

from s8bqat_jax.quantizers import rules
from s8bqat_jax.quantizers.rules import Rule
from tests.quantizers import kinds


def _stack(layers=2):
  layer = lambda: {
    'attention': {'kernel': jnp.ones((2, 2))},
    'norm': {'scale': jnp.ones(2)},
  }
  return {
    'encoder': {f'layer_{i}': layer() for i in range(layers)},
    'decoder': {'kernel': jnp.ones((2, 2))},
    'steps': jnp.ones((2, 2), jnp.int32),
  }


@pytest.mark.parametrize('kind', kinds.KINDS)
@pytest.mark.parametrize('bits, levels', [(1, 2), ('ternary', 3), (8, 256)])
def test_plain_bits_mean_every_weight(kind, bits, levels):
  specs = rules.resolve(bits, kinds.make(kind))
  assert list(specs) == kinds.WEIGHTS
  assert {spec.levels for spec in specs.values()} == {levels}
  assert all(spec.group == name for name, spec in specs.items())


@pytest.mark.parametrize(
  'same',
  [
    np.int64(4),
    np.uint8(4),
    Rule('.*', 4),
    ('.*', 4),
    [('.*', np.int32(4))],
  ],
)
def test_numpy_bits_and_a_bare_rule_are_rules_too(same):
  params = kinds.make(kinds.KINDS[0])
  specs = rules.resolve(same, params)
  assert specs == rules.resolve(4, params)
  assert {type(spec.levels) for spec in specs.values()} == {int}


def test_bits_of_a_spec():
  bits = [rules.Spec('', n, '').bits for n in (2, 3, 4, 5, 256)]
  assert bits == [1, 2, 2, 3, 8]


def test_the_first_match_wins_and_must_match_the_whole_name():
  specs = rules.resolve(
    [
      Rule('encoder/layer_0/.*', 2),
      Rule('encoder/.*', 4),
      Rule('.*coder/kernel', 8),
    ],
    _stack(),
  )
  assert {name: spec.levels for name, spec in specs.items()} == {
    'decoder/kernel': 256,
    'encoder/layer_0/attention/kernel': 4,
    'encoder/layer_1/attention/kernel': 16,
  }


def test_what_no_rule_or_a_rule_of_none_matches_stays_float():
  assert list(rules.resolve([Rule('decoder/.*', 3)], _stack())) == [
    'decoder/kernel'
  ]
  specs = rules.resolve([('decoder/.*', None), ('.*', 3)], _stack(1))
  assert list(specs) == ['encoder/layer_0/attention/kernel']


def test_groups_may_refer_to_the_pattern():
  specs = rules.resolve(
    [
      Rule(r'encoder/(layer_\d+)/.*', 4, r'the \1'),
      Rule('.*', 4, 'rest'),
    ],
    _stack(),
  )
  assert [spec.group for spec in specs.values()] == [
    'rest',
    'the layer_0',
    'the layer_1',
  ]


@pytest.mark.parametrize(
  'unused',
  [
    'decoder',  # not a whole name
    'encoder/layer_7/.*',
    'encoder/layer_0/norm/scale',  # one axis
    'steps',  # integers
  ],
)
def test_an_unused_rule_is_an_error_that_lists_the_weights(unused):
  with pytest.raises(ValueError) as error:
    rules.resolve([Rule('.*kernel', 4), Rule(unused, 8)], _stack())
  message = str(error.value)
  assert repr(unused) in message
  assert 'encoder/layer_1/attention/kernel' in message
  assert 'norm' not in message.split('are:')[1]


def test_a_rule_that_an_earlier_one_shadows_is_an_error():
  with pytest.raises(ValueError, match='decoder'):
    rules.resolve([Rule('.*', 4), Rule('decoder/kernel', 8)], _stack())


def test_params_without_weights_are_an_error():
  with pytest.raises(ValueError, match='none'):
    rules.resolve(4, {'bias': jnp.ones(3)})


@pytest.mark.parametrize('bits', [0, 9, 1.5, True, 'binary'])
def test_bits_out_of_range_are_an_error(bits):
  with pytest.raises(ValueError, match='bits must be'):
    rules.as_rules([Rule('.*', bits)])


def test_a_pattern_that_is_no_regular_expression_is_an_error():
  with pytest.raises(ValueError, match='regular expression'):
    rules.as_rules([Rule('*', 4)])


@pytest.mark.parametrize(
  'wrong',
  [
    ['abc'],
    [4],
    [('.*',)],
    [('.*', 4, 'a', 1)],
    Rule('.*', 4, 7),
    Rule(b'.*', 4),
  ],
)
def test_what_is_no_rule_is_an_error_that_says_what_one_is(wrong):
  with pytest.raises(ValueError, match=r'expected Rule\(pattern, bits'):
    rules.as_rules(wrong)


@pytest.mark.parametrize('group', [r'\1', r'\g<layer>'])
def test_a_group_that_the_pattern_does_not_capture_is_an_error(group):
  with pytest.raises(ValueError, match='does not capture'):
    rules.resolve([Rule('.*', 4, group)], _stack())


def test_bits_by_name_become_rules():
  by_name = {'decoder/kernel': 3, 'encoder/layer_0/attention/kernel': None}
  specs = rules.resolve(rules.from_bits(by_name), _stack())
  assert {n: s.bits for n, s in specs.items()} == {'decoder/kernel': 3}


def test_bits_by_name_are_checked_at_once():
  with pytest.raises(ValueError, match='bits must be'):
    rules.from_bits({'decoder/kernel': 33})


def test_a_name_may_hold_a_line_break():
  assert list(rules.resolve(4, {'a\nb': jnp.ones((2, 2))}))
