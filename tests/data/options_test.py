import pytest

from s8bqat_jax.data import options


def test_values():
  given = {'n': '3', 'h': '0.5', 's': 'dev', 'l': 'a, b', 'i': '-5-20'}
  assert options.integer(given, 'n', 1) == 3
  assert options.integer(given, 'absent', 1) == 1
  assert options.number(given, 'h', 1.0) == 0.5
  assert options.choice(given, 's', ('dev', 'eval'), 'eval') == 'dev'
  assert options.names(given, 'l') == ['a', 'b']
  assert options.names(given, 'absent') is None
  assert options.interval(given, 'i', None) == (-5, 20)
  assert options.interval({'i': '7'}, 'i', None) == (7, 7)
  assert options.interval({'i': 'clean'}, 'i', (0, 1)) is None
  assert options.interval({}, 'i', (0, 1)) == (0, 1)


@pytest.mark.parametrize(
  ('read', 'value', 'message'),
  [
    (lambda o: options.integer(o, 'n', 1), 'x', "n='x': expected a whole"),
    (lambda o: options.integer(o, 'n', 1, least=1), '0', 'at least 1'),
    (lambda o: options.number(o, 'n', 1.0), 'x', 'expected a number'),
    (lambda o: options.number(o, 'n', 1.0), '0', 'positive'),
    (lambda o: options.number(o, 'n', 1.0), 'nan', 'positive'),
    (lambda o: options.choice(o, 'n', ('a',), 'a'), 'b', 'one of a'),
    (lambda o: options.names(o, 'n'), 'a,,b', 'empty item'),
    (lambda o: options.interval(o, 'n', None), '5-x', 'LO-HI'),
    (lambda o: options.interval(o, 'n', None), '5-1', 'above the upper'),
    (lambda o: options.interval(o, 'n', None), '0-inf', 'finite'),
    (lambda o: options.interval(o, 'n', None), 'nan', 'finite'),
  ],
)
def test_errors_name_the_option(read, value, message):
  with pytest.raises(ValueError, match='n=') as e:
    read({'n': value})
  assert message in str(e.value)
