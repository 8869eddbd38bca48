"""The model that the repository carries: it loads, transcribes and scores."""

import json

import numpy as np
import pytest
import soundfile

pytest.importorskip('espeakng_loader')

from absl import app

from experiments import cells, demo, results, stages
from experiments.configs.s8bqat import asc_strings
from s8bqat_jax import data
from s8bqat_jax.artifacts import packed_file
from s8bqat_jax.quantizers import tree as trees
from tests.experiments.commands import printed

MODEL = results.MODELS / 'digits_4bit.safetensors'


def test_the_published_model_is_small_and_says_what_it_is():
  packed = packed_file.load(MODEL)
  encoded = trees.quantized(packed.tree)
  weights = sum(q.size for q in encoded.values())
  assert {q.bits for q in encoded.values()} == {4} and weights > 200_000
  assert MODEL.stat().st_size < 0.7 * weights
  assert packed.config['method']['name'] == 's8bqat'
  assert packed.config['activations']


def test_fresh_removes_a_demo_and_nothing_else(tmp_path):
  workdir = tmp_path / 'runs'
  for name in ('train/s8bqat-2', 'float', 'compiled'):
    (workdir / name).mkdir(parents=True)
  for name in ('demo.json', 'demo.png', MODEL.name, 'thesis.tex'):
    (workdir / name).write_text('x')
  with pytest.raises(app.UsageError, match='what no demo makes: thesis.tex'):
    demo._remove(workdir)
  (workdir / 'thesis.tex').rename(tmp_path / 'thesis.tex')
  demo._remove(workdir)
  assert not workdir.exists()
  demo._remove(workdir)  # There was none.


def test_it_transcribes_a_recording(tmp_path):
  """A voice that training never heard, from a WAV file to words."""
  corpus = data.load('espeak:digits?split=eval&utterances=24&snr=30-35')
  lengths = [len(text.split()) for text in corpus.texts_N]
  index = int(np.argsort(lengths)[len(lengths) // 2])
  path = tmp_path / 'x.wav'
  soundfile.write(path, corpus.pcm(index), corpus.sample_rate)
  said = corpus.texts_N[index].split()
  heard = printed('experiments.transcribe', f'--model={MODEL}', str(path))
  heard = heard.strip().removeprefix(f'{path}: ').split()
  common = sum(a == b for a, b in zip(said, heard))
  assert abs(len(said) - len(heard)) <= 1 and common >= len(said) / 2


def test_evaluate_takes_the_file_alone_and_computes_in_integers(tmp_path):
  out = tmp_path / 'hypotheses.jsonl'
  text = printed(
    'experiments.evaluate',
    f'--model={MODEL}',
    '--arithmetic=integer',
    '--data=espeak:digits?split=eval&utterances=24&snr=30-35',
    f'--hypotheses={out}',
  )
  scores = json.loads(text.strip().splitlines()[-1])
  assert scores['utterances'] == 24 and 0 <= scores['wer'] < 25
  assert len(out.read_text().splitlines()) == 24


def test_the_demo_refuses_arguments_it_does_not_know():
  with pytest.raises(app.UsageError, match='arguments please'):
    demo.main(['demo', 'please'])


def test_the_published_float_models_are_those_of_the_headline(
  corpora, tmp_path
):
  config = asc_strings.get_config()
  config.data = str(corpora('asc_commands').parent)
  kept = stages.Stages(config, tmp_path, (results.MODELS / 'float',))
  # Seeds and methods start from the same one.
  jobs = {(j.cell.size, j.part): j for j in cells.jobs(config, 'headline')}
  for job in jobs.values():
    assert kept.float_done(job), job
    assert packed_file.load(kept.float_model(job)).config['dev']['wer'] < 40
