"""One recognizer in three arithmetics, by the command."""

import pathlib

import pytest

from experiments import integer_recognizer
from experiments import recognizer as recognizer_lib
from s8bqat_jax.artifacts import packed_file
from tests.experiments import commands


@pytest.fixture
def shipped(spoken, tree, ranges):
  """A file with codes and ranges, as fine-tuning writes it."""
  floats = packed_file.load(spoken[0])
  path = pathlib.Path(spoken[0]).with_name('shipped.safetensors')
  packed_file.save(
    path,
    recognizer_lib.without_ctc_head(tree),
    config={**floats.config, integer_recognizer.CONFIG_KEY: ranges},
    tokenizer=floats.tokenizer,
  )
  return path


def test_what_ships_is_scored_audited_and_streamed(spoken, shipped, tmp_path):
  found = commands.results(
    tmp_path / 'results',
    'experiments.integer_wer',
    f'--model={shipped}',
    f'--data={spoken[1]}',
    f'--out={tmp_path}/results',
  )
  assert [(row['bits'], row['arithmetic']) for row in found['rows']] == [
    (8, 'float'),
    (8, '8-bit twin'),
    (8, 'integer'),
  ]
  assert {row['metrics']['words'] for row in found['rows']} == {8}
  (proof,) = found['proofs'].values()
  assert proof['streaming']['compared'] > 0
  assert proof['streaming']['different'] == 0
  assert len(proof['audit']) == 4
  assert all(report['ok'] for report in proof['audit'].values())


def test_floats_without_data_to_calibrate_on(spoken, tmp_path):
  asr, spec, _ = spoken
  complaint = commands.refused(
    'experiments.integer_wer',
    f'--model={asr}',
    f'--data={spec}',
    f'--out={tmp_path}/results',
  )
  assert 'asr.safetensors has neither ranges nor development' in complaint
  assert not (tmp_path / 'results').exists()
