"""What experiments.export writes, and what experiments.latency prints of it."""

import json

import numpy as np
import pytest

from experiments import export_wer, exporting, integer_recognizer
from s8bqat_jax.export import program
from tests.experiments.commands import printed


@pytest.mark.parametrize('kind', ['tflite', 'onnx'])
def test_three_files_and_what_their_codes_mean(save, ranges, tmp_path, kind):
  module = {'tflite': 'ai_edge_litert', 'onnx': 'onnxruntime'}[kind]
  pytest.importorskip(module, reason='needs the export extra')
  path, out = save('model', ranges), tmp_path / 'out'
  text = printed(
    'experiments.export', f'--model={path}', f'--format={kind}', f'--out={out}'
  )
  told = json.loads((out / 'functions.json').read_text())
  assert set(told) == {'encoder', 'predictor', 'joint'}
  assert {p.name for p in out.iterdir()} == {
    'functions.json',
    *(f'{name}.{kind}' for name in told),
  }
  # What one function gives, the next takes: the same codes of the same reals.
  enc, pred = told['encoder']['outputs'][-1], told['predictor']['outputs'][-1]
  joint = told['joint']['inputs']
  for source, target in zip((enc, pred), joint, strict=True):
    assert {k: source[k] for k in ('dtype', 'scale', 'zero')} == {
      k: target[k] for k in ('dtype', 'scale', 'zero')
    }
  # States come first, and come back as they went in.
  for name in ('encoder', 'predictor'):
    *states, _ = told[name]['outputs']
    assert told[name]['inputs'][: len(states)] == states
  assert 'q_dot' in text


def test_codes_stand_for_reals(save, ranges, recognizer):
  fn = exporting.functions(save('model', ranges))['encoder']
  told = exporting.describe(fn)['inputs'][-1]
  feats = np.linspace(-2, 2, np.prod(told['shape'])).reshape(told['shape'])
  carry = recognizer.model.apply({}, 1, method='initial_carry')
  *_, codes = fn.quantize(carry, feats.astype(np.float32))
  real = (np.asarray(codes, float) - told['zero']) * told['scale']
  low, high = ranges['encode'][integer_recognizer._short('in:0')]
  # The range is widened to hold 0 and a whole number of codes.
  inside = (feats > low) & (feats < high)
  assert inside.sum() > 10
  assert np.abs(real - feats)[inside].max() <= 1.01 * told['scale']


def test_a_file_of_float_activations_is_refused(save):
  with pytest.raises(ValueError, match='no ranges of 8-bit'):
    exporting.functions(save('plain'))


def test_latency_prints_and_draws_every_machine(save, ranges, tmp_path):
  path = save('model', ranges)
  text = printed(
    'experiments.latency', f'--model={path}', '--per_op', f'--plot={tmp_path}'
  )
  names = {'encoder', 'predictor', 'joint'}
  for machine in ('n-bit-index NPU', 'int8 NPU', 'ethos-u55-128'):
    rows = [x for x in text.splitlines() if x.startswith(f'{machine:16}')]
    cells = [row[16:].split() for row in rows]
    found = {name: float(us) for name, us, *_ in cells if name in names}
    assert set(found) == names, machine
    assert found['encoder'] > found['joint'] > 0
  assert 'q_dot' in text  # --per_op
  drawn = {p.name for p in tmp_path.glob('*.png')}
  assert len(drawn) == 5 * len(names)
  assert {'int8_NPU_joint.png', 'ethos-u85-512_encoder.png'} < drawn


@pytest.mark.parametrize('kind', ['tflite', 'onnx'])
def test_every_operation_of_a_decoded_utterance_is_judged(save, ranges, kind):
  module = {'tflite': 'ai_edge_litert', 'onnx': 'onnxruntime'}[kind]
  pytest.importorskip(module, reason='needs the export extra')
  functions = exporting.functions(save('model', ranges))
  frames = functions['encoder'].jaxpr.in_avals[-1].shape
  feats = np.random.default_rng(0).normal(size=(3 * frames[1], frames[2]))
  run = {k: exporting.Watched(fn, kind) for k, fn in functions.items()}
  labels = export_wer.recognize(functions, run, feats.astype(np.float32))
  # One predictor step per label and one to begin with.
  for name, calls in (('encoder', 3), ('predictor', 1 + len(labels))):
    ops = program.read(functions[name]).ops
    per_call = [op.name for op in ops if op.name.startswith('q_')]
    assert [row.op for row in run[name].rows] == calls * per_call
    assert all(row.agreement.largest <= 2 for row in run[name].rows)
