import random

import hypothesis
import pytest
from hypothesis import strategies as st

from s8bqat_jax.data import select


def _columns(speakers, **more):
  return {
    'text': [f't{i}' for i in range(len(speakers))],
    'utt_id': [f'u{i}' for i in range(len(speakers))],
    'speaker': list(speakers),
  } | more


@hypothesis.given(
  st.integers(0, 60), st.lists(st.floats(0.1, 10), min_size=1, max_size=5)
)
def test_deal_gives_each_hand_its_share_of_every_stretch(size, shares):
  hands = select.deal([str(i) for i in range(size)], shares)
  for end in range(size + 1):
    for hand, share in enumerate(shares):
      wanted = share / sum(shares) * end
      # Greedy dealing may lag a little more than rounding would.
      assert abs(hands[:end].count(hand) - wanted) < len(shares)


def test_a_speaker_is_on_one_side_and_every_row_on_some():
  speakers = [f's{i % 23}' for i in range(200)]
  columns = _columns(speakers)
  sides = {
    s: select.rows(columns, {'split': s}) for s in ('train', 'dev', 'eval')
  }
  assert sorted(sum(sides.values(), [])) == list(range(200))
  owners = [{speakers[i] for i in rows} for rows in sides.values()]
  assert not (owners[0] & owners[1] or owners[0] & owners[2])
  assert not owners[1] & owners[2]
  assert [len(o) for o in owners] == [19, 2, 2]


def test_shares_are_counts_and_balanced_over_a_column():
  speakers = [f's{i}' for i in range(125)]
  ages = [str(5 + i % 60) for i in range(125)]
  columns = _columns(speakers, age=ages)
  sizes, means = [], []
  for split in ('train', 'dev', 'eval'):
    rows = select.rows(
      columns, {'split': split, 'shares': '85,15,25', 'split_by': 'age'}
    )
    sizes.append(len(rows))
    means.append(sum(int(ages[i]) for i in rows) / len(rows))
  assert sizes == [85, 15, 25]
  assert max(means) - min(means) < 3


@pytest.mark.parametrize('unknown', ['nan', 'NaN', ''])
def test_a_value_that_is_no_number_comes_last_in_any_order(unknown):
  values = [unknown if i % 3 else str(i) for i in range(30)]
  expected = sorted(values, key=select._sort_key)
  shuffled = random.Random(0).sample(values, len(values))
  assert sorted(shuffled, key=select._sort_key) == expected
  assert expected[:10] == [str(i) for i in range(0, 30, 3)]


def test_folds_evaluate_every_speaker_once():
  speakers = [f's{i}' for i in range(24) for _ in range(2)]
  columns = _columns(speakers)
  evaluated, devs = [], []
  for fold in range(4):
    options = {'folds': '4', 'fold': str(fold)}
    sides = [
      {speakers[i] for i in select.rows(columns, options | {'split': s})}
      for s in ('train', 'dev', 'eval')
    ]
    assert [len(s) for s in sides] == [15, 3, 6]
    assert len(set().union(*sides)) == 24
    evaluated += sides[2]
    devs.append(frozenset(sides[1]))
  assert sorted(evaluated) == sorted(set(speakers))
  assert len(set(devs)) > 1


def test_filters():
  columns = _columns('aabbc', text=['x', 'y', 'x', 'z', 'x'])
  rows = select.rows
  assert rows(columns, {'speakers': 'a,c'}) == [0, 1, 4]
  assert rows(columns, {'exclude_speakers': 'a'}) == [2, 3, 4]
  assert rows(columns, {'texts': 'x', 'exclude_speakers': 'b'}) == [0, 4]
  limited = rows(columns, {'limit': '2'})
  assert len(limited) == 2 and limited == rows(columns, {'limit': '2'})
  given = _columns('ab', official=['train', 'test'])
  assert rows(given, {'split_column': 'official', 'split': 'test'}) == [1]


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'split': 'test'}, 'train, dev, eval'),
    ({'speakers': 'q'}, 'q not found'),
    ({'split_column': 'no', 'split': 'x'}, 'no such column'),
    ({'split_column': 'text'}, 'needs split='),
    *(
      ({'split_column': 'text', 'split': 't0', name: value}, f'{name}= deals')
      for name, value in {
        'folds': '2',
        'fold': '1',
        'shares': '80,10,10',
        'split_by': 'text',
        'dev_speakers': '1',
      }.items()
    ),
    ({'folds': '4', 'fold': '4', 'split': 'dev'}, '0 to 3'),
    ({'folds': '9', 'split': 'dev'}, 'only 5 speakers'),
    ({'folds': '4'}, 'needs split='),
    ({'fold': '1', 'split': 'dev'}, 'needs folds='),
    ({'shares': '1,2', 'split': 'dev'}, 'three numbers'),
    ({'shares': '100,0,0', 'split': 'eval'}, 'eval gets none of 5 speakers'),
    ({'speakers': 'a', 'split': 'dev'}, 'dev gets none of 1 speakers: give it'),
    ({'speakers': 'a', 'texts': 't1', 'limit': '1', 'split': 'dev'}, 'shares='),
    ({'folds': '2', 'dev_speakers': '9', 'split': 'dev'}, 'dev_speakers=9'),
    ({'split': 'dev', 'split_by': 'age'}, 'no such column'),
    ({'texts': 'zz'}, 'zz not found'),
    ({'limit': '0'}, 'at least 1'),
  ],
)
def test_errors(options, message):
  with pytest.raises(ValueError) as e:
    select.rows(_columns('abcde'), options)
  assert message in str(e.value)


def test_splitting_without_speakers_is_an_error():
  columns = _columns('ab')
  del columns['speaker']
  for options in ({'split': 'dev'}, {'speakers': 'a'}):
    with pytest.raises(ValueError, match='needs a column `speaker`'):
      select.rows(columns, options)


def test_case():
  assert select.change_case('Ab c', {}) == 'Ab c'
  assert select.change_case('Ab c', {'case': 'lower'}) == 'ab c'
  assert select.change_case('Ab c', {'case': 'upper'}) == 'AB C'
  with pytest.raises(ValueError, match='lower, upper'):
    select.change_case('a', {'case': 'title'})
