"""Which rows of a table a spec selects: splits by speaker, and filters.

Every rule is a function of the table alone, so that two machines agree. A
speaker is on one side of a split, never on two.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence

from s8bqat_jax.data import options as options_lib

SPLITS = ('train', 'dev', 'eval')

OPTIONS = {
  'split': 'train, dev or eval; with split_column any value of that column',
  'split_column': "column that says each row's split",
  'shares': 'speakers in train,dev,eval (80,10,10)',
  'split_by': 'column (e.g. age) over which the splits are balanced',
  'folds': 'speakers are cut into this many folds; eval is fold `fold`',
  'fold': 'which fold is eval (0 .. folds-1)',
  'dev_speakers': 'with folds: speakers for dev (a sixth of those not in eval)',
  'speakers': 'keep these, comma-separated',
  'exclude_speakers': 'drop these, comma-separated',
  'texts': 'keep rows whose transcript is one of these, comma-separated',
  'case': "lower or upper: change the transcripts' case",
  'limit': 'keep a fixed random choice of this many rows',
}


def _hash(text: str) -> str:
  return hashlib.sha256(text.encode()).hexdigest()


def _sort_key(value: str) -> tuple[float, str]:
  try:
    number = float(value)
  except ValueError:
    return math.inf, value
  # A NaN is before nothing and after nothing: the order would be by chance.
  return (math.inf, value) if math.isnan(number) else (number, '')


def deal(names: Sequence[str], shares: Sequence[float]) -> list[int]:
  """Deals names to hands so that every stretch of the list is balanced.

  Args:
    names: Distinct names, in the order over which to balance.
    shares: How much of the list each hand gets (any unit).

  Returns:
    The hand of each name. Hand sizes are about their shares.
  """
  total = sum(shares)
  counts = [0] * len(shares)
  hands = []
  for k in range(len(names)):
    lack = [s / total * (k + 1) - c for s, c in zip(shares, counts)]
    hand = max(range(len(shares)), key=lack.__getitem__)
    counts[hand] += 1
    hands.append(hand)
  return hands


def _speaker_order(
  speakers_N: Sequence[str], balance_N: Sequence[str] | None
) -> list[str]:
  """Distinct speakers in hash order, or by the balancing column first."""
  value = dict(zip(reversed(speakers_N), reversed(balance_N or [])))
  return sorted(
    set(speakers_N), key=lambda s: (_sort_key(value.get(s, '')), _hash(s))
  )


def _split_of_speaker(
  speakers_N: Sequence[str],
  balance_N: Sequence[str] | None,
  options: Mapping[str, str],
) -> dict[str, str]:
  order = _speaker_order(speakers_N, balance_N)
  if 'folds' in options:
    folds = options_lib.integer(options, 'folds', 4, least=2)
    fold = options_lib.integer(options, 'fold', 0)
    if fold >= folds:
      raise ValueError(f'fold={fold}: expected 0 to {folds - 1}')
    if len(order) < folds:
      raise ValueError(f'folds={folds}: there are only {len(order)} speakers')
    hands = deal(order, [1] * folds)
    rest = [s for s, hand in zip(order, hands) if hand != fold]
    default = max(1, round(len(rest) / 6))
    dev = options_lib.integer(options, 'dev_speakers', default)
    if dev >= len(rest):
      raise ValueError(f'dev_speakers={dev}: only {len(rest)} are not in eval')
    shares = [len(rest) - dev, dev]
    turn = fold * len(rest) // folds  # other dev speakers in every fold
    rest = rest[turn:] + rest[:turn]
    side = dict(zip(rest, deal(rest, shares)))
    return {s: SPLITS[side.get(s, 2)] for s in order}
  for name in ('fold', 'dev_speakers'):
    if name in options:
      raise ValueError(f'{name}= needs folds=, e.g. folds=4')
  texts = options_lib.names(options, 'shares') or ['80', '10', '10']
  try:
    sizes = [float(t) for t in texts]
  except ValueError:
    sizes = []
  if len(sizes) != 3 or min(sizes) < 0 or not sum(sizes):
    raise ValueError(
      f'shares={",".join(texts)}: expected three numbers, train,dev,eval'
    )
  return {s: SPLITS[h] for s, h in zip(order, deal(order, sizes))}


def _column(
  columns: Mapping[str, Sequence[str]], options: Mapping[str, str], name: str
) -> Sequence[str]:
  column = options[name]
  if column not in columns:
    raise ValueError(
      f'{name}={column}: there is no such column; there are '
      f'{", ".join(columns)}'
    )
  return columns[column]


def _known(wanted: Sequence[str], there: set[str], name: str) -> set[str]:
  missing = sorted(set(wanted) - there)
  if missing:
    shown = ', '.join(sorted(there)[:30])
    raise ValueError(
      f'{name}: {", ".join(missing)} not found; there are {len(there)}: {shown}'
    )
  return set(wanted)


def rows(
  columns: Mapping[str, Sequence[str]], options: Mapping[str, str]
) -> list[int]:
  """Returns the rows that the options select, in table order.

  Args:
    columns: The table; `text` and `utt_id` must be there, `speaker` for splits
      by speaker.
    options: The options of a spec; those of other modules are ignored.

  Returns:
    Row numbers. Selecting nothing is an error.
  """
  keep = list(range(len(columns['text'])))
  speakers_N = columns.get('speaker')
  plain_split = 'split' in options and 'split_column' not in options
  if not plain_split:
    dealing = {'folds', 'fold', 'shares', 'split_by', 'dev_speakers'}
    for name in sorted(dealing & set(options)):
      raise ValueError(
        f'{name}= deals speakers to splits: it needs split=train, split=dev or '
        'split=eval, and no split_column='
      )
  by_speaker = plain_split or {'speakers', 'exclude_speakers'} & set(options)
  if speakers_N is None and by_speaker:
    raise ValueError(
      'splitting by speaker needs a column `speaker`; there are '
      f'{", ".join(columns)}. Add one, or name a column with split_column='
    )
  for name in ('speakers', 'exclude_speakers'):
    wanted = options_lib.names(options, name)
    if wanted is not None and speakers_N is not None:
      chosen = _known(wanted, set(speakers_N), name)
      inside = name == 'speakers'
      keep = [i for i in keep if (speakers_N[i] in chosen) == inside]
  if 'split_column' in options:
    values_N = _column(columns, options, 'split_column')
    if 'split' not in options:
      raise ValueError('split_column= needs split=, one of its values')
    split = options['split']
    _known([split], set(values_N), 'split')
    keep = [i for i in keep if values_N[i] == split]
  elif 'split' in options and speakers_N is not None:
    split = options_lib.choice(options, 'split', SPLITS, 'train')
    balance_N = None
    if 'split_by' in options:
      balance = _column(columns, options, 'split_by')
      balance_N = [balance[i] for i in keep]
    side = _split_of_speaker([speakers_N[i] for i in keep], balance_N, options)
    dealt = [i for i in keep if side[speakers_N[i]] == split]
    if keep and not dealt:
      raise ValueError(
        f'split={split} gets none of {len(side)} speakers: give it more with '
        'shares=, or name a column with split_column='
      )
    keep = dealt
  wanted = options_lib.names(options, 'texts')
  if wanted is not None:
    texts_N = columns['text']
    chosen = _known(wanted, set(texts_N), 'texts')
    keep = [i for i in keep if texts_N[i] in chosen]
  if 'limit' in options:
    limit = options_lib.integer(options, 'limit', 1, least=1)
    ids_N = columns['utt_id']
    keep = sorted(sorted(keep, key=lambda i: _hash(ids_N[i]))[:limit])
  if not keep:
    raise ValueError('these options select no row')
  return keep


def change_case(text: str, options: Mapping[str, str]) -> str:
  """Returns the transcript in the case that `case=` asks for."""
  if 'case' not in options:
    return text
  case = options_lib.choice(options, 'case', ('lower', 'upper'), 'lower')
  return text.lower() if case == 'lower' else text.upper()


def table(
  columns: Mapping[str, Sequence[str]], options: Mapping[str, str]
) -> dict[str, list[str]]:
  """Returns the columns cut down to the rows that the options select.

  Args:
    columns: As for `rows`.
    options: As for `rows`.
  """
  keep = rows(columns, options)
  return {name: [values[i] for i in keep] for name, values in columns.items()}
