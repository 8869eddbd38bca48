r"""Compares two systems on the same utterances: is B really better than A?

  python -m experiments.compare runs/a/hyp.jsonl runs/b/hyp.jsonl
  python -m experiments.compare 'runs/a_seed*/hyp.jsonl' \
    'runs/b_seed*/hyp.jsonl' --metric=cer --margin=0.01

A and B are hypothesis files as `experiments.evaluate` writes them (one JSON
object per line: utt_id, speaker, reference, hypothesis). Several seeds are
given as a glob or separated by commas; the n-th file of A and of B, in sorted
order, belong together.
"""

from __future__ import annotations

import glob
import json
import sys
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from absl import app, flags

from s8bqat_jax import files as files_lib
from s8bqat_jax.speech import significance, wer

_METRIC = flags.DEFINE_enum(
  'metric', 'wer', ['wer', 'cer'], 'Errors counted in words or characters.'
)
_MARGIN = flags.DEFINE_float(
  'margin', 0.03, 'Largest relative loss that still counts as no loss.'
)
_REPLICATES = flags.DEFINE_integer(
  'replicates', 4000, 'Bootstrap replicates.', lower_bound=100
)
_FIELDS = ('utt_id', 'speaker', 'reference', 'hypothesis')


class System(NamedTuple):
  """Errors of every seed of one system, utterances sorted by id."""

  files: list[str]
  utt_ids_N: list[str]
  speakers_N: list[str]
  references_N: list[str]
  errors_SxN: np.ndarray
  units_N: np.ndarray


def load(pattern: str, metric: str = 'wer') -> System:
  """Reads all seeds of a system.

  Args:
    pattern: files or globs, separated by commas.
    metric: 'wer' or 'cer'.

  Returns:
    The system. A ValueError names the file and line, or the utterance on
    which two seeds disagree.
  """
  files = []
  for part in pattern.split(','):
    found = sorted(glob.glob(part))
    if not found:
      raise ValueError(f'no hypothesis file matches {part!r}')
    files += found
  tables = [_read(file) for file in files]
  for file, table in zip(files[1:], tables[1:], strict=True):
    _check_same(files[0], tables[0], file, table)
  utt_ids = sorted(tables[0])
  rows = [tables[0][u] for u in utt_ids]
  references = [row['reference'] for row in rows]
  errors, units = [], np.zeros(0, int)
  for table in tables:
    hypotheses = [table[u]['hypothesis'] for u in utt_ids]
    counts = wer.count_errors(references, hypotheses)
    words = metric == 'wer'
    errors.append(counts.word_errors_N if words else counts.char_errors_N)
    units = counts.words_N if words else counts.chars_N
  return System(
    files,
    utt_ids,
    [row['speaker'] for row in rows],
    references,
    np.stack(errors),
    units,
  )


def report(
  a: System, b: System, metric: str, margin: float, replicates: int
) -> str:
  """Returns the comparison as text.

  Args:
    a: the reference system.
    b: the system that is to be as good or better.
    metric: 'wer' or 'cer', for the labels.
    margin: of non-inferiority, relative.
    replicates: of the bootstrap.
  """
  _check_same(a.files[0], _table(a), b.files[0], _table(b))
  if len(a.files) != len(b.files):
    raise ValueError(
      f'A has {len(a.files)} seeds ({", ".join(a.files)}), B has '
      f'{len(b.files)} ({", ".join(b.files)}): give equally many'
    )
  result = significance.compare(
    a.errors_SxN, b.errors_SxN, a.units_N, a.speakers_N, replicates=replicates
  )
  name, low, high = metric.upper(), *result.interval
  verdict = 'yes' if result.non_inferior(margin) else 'not shown'
  lines = [
    f'{len(a.utt_ids_N)} utterances, {len(set(a.speakers_N))} speakers, '
    f'{a.units_N.sum()} {"words" if metric == "wer" else "characters"}, '
    f'{len(a.files)} seed(s)',
    f'A  {name} {100 * result.rate_a:6.2f} %  {_per_seed(a)}',
    f'B  {name} {100 * result.rate_b:6.2f} %  {_per_seed(b)}',
    f'relative change     {100 * result.relative:+.1f} %',
    f'95% interval        [{100 * low:+.1f}, {100 * high:+.1f}] %, bootstrap '
    'over seeds, speakers, utterances',
    f'p                   {result.p_bootstrap:.4f} bootstrap, '
    f'{result.p_mapsswe:.4f} MAPSSWE',
    f'resolves            {100 * result.resolves:.1f} %, with a power of 0.8',
    f'no loss (< {100 * margin:g} %)     {verdict}',
  ]
  if len(set(a.speakers_N)) < 10:
    lines.append('fewer than 10 speakers: intervals are too narrow')
  return '\n'.join(lines)


def _read(file):
  if file.endswith('.safetensors'):
    raise ValueError(
      f'{file} is a model, expected what it recognizes: python -m '
      f'experiments.evaluate --model={file} --data=SPEC --hypotheses=FILE.jsonl'
    )
  table = {}
  for number, line in enumerate(files_lib.read_text(file).split('\n'), 1):
    if not line.strip():
      continue
    try:
      row = json.loads(line)
    except json.JSONDecodeError as error:
      raise ValueError(f'{file}:{number} is not JSON: {error}') from error
    missing = [f for f in _FIELDS if f not in row]
    if missing:
      raise ValueError(
        f'{file}:{number} lacks {", ".join(missing)}; expected the fields '
        f'{", ".join(_FIELDS)}'
      )
    if row['utt_id'] in table:
      raise ValueError(f'{file}:{number} repeats utterance {row["utt_id"]!r}')
    table[row['utt_id']] = row
  if not table:
    raise ValueError(f'{file} has no utterances')
  return table


def _table(system):
  rows = zip(
    system.utt_ids_N, system.speakers_N, system.references_N, strict=True
  )
  return {u: {'speaker': s, 'reference': r} for u, s, r in rows}


def _check_same(file_a, a, file_b, b):
  """Both files must hold the same utterances, speakers and references."""
  for here, there, utt_ids in [
    (file_a, file_b, sorted(a.keys() - b.keys())),
    (file_b, file_a, sorted(b.keys() - a.keys())),
  ]:
    if utt_ids:
      raise ValueError(
        f'{len(utt_ids)} utterances are in {here} but not in {there}, such as '
        f'{utt_ids[0]!r}: evaluate both on the same data'
      )
  for utt_id in sorted(a):
    for field in ('reference', 'speaker'):
      if a[utt_id][field] != b[utt_id][field]:
        raise ValueError(
          f'{field} of {utt_id!r} is {a[utt_id][field]!r} in {file_a} but '
          f'{b[utt_id][field]!r} in {file_b}: evaluate both on the same data'
        )


def _per_seed(system):
  rates = 100 * system.errors_SxN.sum(1) / max(1, system.units_N.sum())
  if len(rates) == 1:
    return system.files[0]
  return 'seeds ' + ' '.join(f'{rate:.2f}' for rate in rates)


def main(argv: Sequence[str]) -> None:
  if len(argv) != 3:
    raise app.UsageError('expected two arguments, A and B')
  try:
    a, b = (load(pattern, _METRIC.value) for pattern in argv[1:])
    print(report(a, b, _METRIC.value, _MARGIN.value, _REPLICATES.value))
  except (ValueError, OSError) as error:
    sys.exit(f'compare: {error}')


if __name__ == '__main__':
  app.run(main)
