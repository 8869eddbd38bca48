"""The comparison tool: figures by hand, and refusal of unequal data."""

import json
import subprocess
import sys

import pytest

from experiments import compare
from tests.experiments.commands import ROOT


def _write(path, rows):
  fields = ('utt_id', 'speaker', 'reference', 'hypothesis')
  lines = [json.dumps(dict(zip(fields, row, strict=True))) for row in rows]
  path.write_text('\n'.join(lines) + '\n', encoding='utf-8')
  return str(path)


_A = [
  ('u2', 'y', 'three four', 'three for'),
  ('u1', 'x', 'one two', 'won too'),
  ('u3', 'x', 'five', 'five'),
]
_B = [
  ('u1', 'x', 'one two', 'one too'),
  ('u2', 'y', 'three four', 'three for'),
  ('u3', 'x', 'five', 'five'),
]


def test_figures(tmp_path):
  a = compare.load(_write(tmp_path / 'a.jsonl', _A))
  b = compare.load(_write(tmp_path / 'b.jsonl', _B))
  assert a.errors_SxN.tolist() == [[2, 1, 0]]
  assert a.units_N.tolist() == [2, 2, 1]
  text = compare.report(a, b, 'wer', 0.03, 200)
  assert '3 utterances, 2 speakers, 5 words, 1 seed(s)' in text
  assert 'A  WER  60.00 %' in text and 'B  WER  40.00 %' in text
  assert 'relative change     -33.3 %' in text
  assert 'fewer than 10 speakers' in text
  assert 'with a power of 0.8' in text


def test_seeds_from_a_glob(tmp_path):
  for system, rows in [('a', _A), ('b', _B)]:
    for seed in range(2):
      _write(tmp_path / f'{system}{seed}.jsonl', rows)
  a = compare.load(f'{tmp_path}/a*.jsonl', 'cer')
  b = compare.load(f'{tmp_path}/b0.jsonl,{tmp_path}/b1.jsonl', 'cer')
  assert a.errors_SxN.shape == b.errors_SxN.shape == (2, 3)
  text = compare.report(a, b, 'cer', 0.03, 200)
  assert '21 characters, 2 seed(s)' in text and 'seeds 19.05 19.05' in text


@pytest.mark.parametrize(
  ['change', 'message'],
  [
    (lambda rows: rows[:2], '1 utterances are in .*a.jsonl but not in .*b.js'),
    (
      lambda rows: [*rows[:2], ('u3', 'x', 'fife', 'five')],
      "reference of 'u3' is 'five' in .*a.jsonl but 'fife' in .*b.jsonl",
    ),
    (
      lambda rows: [*rows[:2], ('u3', 'z', 'five', 'five')],
      "speaker of 'u3' is 'x'",
    ),
    (lambda rows: [*rows, rows[0]], "b.jsonl:4 repeats utterance 'u1'"),
    (lambda rows: [], 'b.jsonl has no utterances'),
  ],
)
def test_unequal_data_is_refused(tmp_path, change, message):
  a = compare.load(_write(tmp_path / 'a.jsonl', _A))
  path = _write(tmp_path / 'b.jsonl', change(_B))
  with pytest.raises(ValueError, match=message):
    compare.report(a, compare.load(path), 'wer', 0.03, 200)


def test_unreadable_files(tmp_path):
  path = tmp_path / 'x.jsonl'
  with pytest.raises(ValueError, match='no hypothesis file matches'):
    compare.load(str(path))
  there = _write(tmp_path / 'there.jsonl', _A)
  with pytest.raises(ValueError, match='no hypothesis file matches .*x.jsonl'):
    compare.load(f'{there},{path}')
  path.write_text('{"utt_id": "u"}\n')
  with pytest.raises(ValueError, match='x.jsonl:1 lacks speaker, reference'):
    compare.load(str(path))
  path.write_text('{\n')
  with pytest.raises(ValueError, match='x.jsonl:1 is not JSON'):
    compare.load(str(path))
  path.write_bytes(b'\xff\xfe')
  with pytest.raises(ValueError, match='x.jsonl: not UTF-8'):
    compare.load(str(path))
  model = tmp_path / 'a.safetensors'
  model.touch()
  with pytest.raises(ValueError, match='is a model, expected what it recogni'):
    compare.load(str(model))


def test_unequal_numbers_of_seeds(tmp_path):
  for name in ['a0', 'a1', 'b0']:
    _write(tmp_path / f'{name}.jsonl', _A)
  a = compare.load(f'{tmp_path}/a*.jsonl')
  b = compare.load(f'{tmp_path}/b*.jsonl')
  with pytest.raises(ValueError, match='A has 2 seeds .* B has 1'):
    compare.report(a, b, 'wer', 0.03, 200)


def test_command_line(tmp_path):
  a = _write(tmp_path / 'a.jsonl', _A)
  run = lambda *args: subprocess.run(
    [sys.executable, '-m', 'experiments.compare', *args],
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=120,
  )
  done = run(a, a, '--replicates=100')
  assert done.returncode == 0, done.stderr
  assert 'relative change     +0.0 %' in done.stdout
  failed = run(a, a + '.missing')
  assert failed.returncode == 1
  assert failed.stderr.strip().startswith('compare: no hypothesis file')
