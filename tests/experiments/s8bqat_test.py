"""The pipeline on a tiny problem: what is cached, equal, counted, listed."""

import dataclasses
import json
import shutil

import jax
import matplotlib.pyplot as plt
import pytest

pytest.importorskip('espeakng_loader')

from experiments import (
  cells,
  integer_recognizer,
  keys,
  matrix,
  overview,
  plots,
  recognizer,
  results,
  scoring,
)
from experiments.configs.s8bqat import asc_strings, speechocean
from experiments.stage_cache import RESULT, STAGE
from experiments.stages import HYPOTHESES, Stages, trained_hypotheses
from s8bqat_jax import data
from s8bqat_jax.artifacts import packed_file
from s8bqat_jax.quantizers import tree as trees
from tests.experiments import tiny


@pytest.fixture(scope='module')
def done(tmp_path_factory):
  """The stages of two cells, and their metrics."""
  config = tiny.experiment()
  config.activation_bits = 8
  folder = tmp_path_factory.mktemp('runs')
  kept = Stages(config, folder, progress=False)
  jobs = cells.jobs(config, 'quick')
  found, not_run = matrix.run(kept, jobs)
  assert not not_run
  return config, kept, jobs, found


def test_seeds_share_a_float_model_if_the_config_says_so(tmp_path):
  config = tiny.experiment()
  kept = Stages(config, tmp_path)
  jobs = [cells.Job(cells.parse('tiny/s8bqat:3'), 'all', s) for s in (0, 1)]
  for arguments, models in (('seed={seed}', 2), ('', 1)):
    config.float.arguments = arguments
    made = [cells.train_config(config, job) for job in jobs]
    assert [config.seed for config in made] == [0, 1]
    assert len({config.starts_from for config in made}) == models
    assert len({kept.float_folder(job) for job in jobs}) == models


def test_the_file_is_what_was_trained(done):
  _, kept, jobs, found = done
  for job in jobs:
    assert found[job]['equal_to_training'] == 16
    packed = packed_file.load(kept.train(job)['file'])
    encoded = trees.quantized(packed.tree)
    assert {q.bits for q in encoded.values()} <= {job.cell.bits}
    assert 'ctc_out' not in packed.tree
    assert ('activations' in packed.config) == (job.cell.bits <= 8)
  trained = jobs[-1]
  recognizer, params, _ = integer_recognizer.load(kept.train(trained)['file'])
  assert recognizer.transformed is not None
  scores = kept.evaluate(trained)
  float_bytes = found[jobs[0]]['bytes']
  assert scores['encoded_bytes'] <= scores['bytes'] < float_bytes / 3
  assert scores['index_traffic_1'] > 3 * scores['index_traffic_8'] > 0
  assert scores['index_traffic_8'] < scores['int8_traffic_8'] / 3


def test_another_split_is_another_scoring_of_the_same_training(done):
  _, kept, jobs, found = done
  job = jobs[1]._replace(split='dev')
  folder = kept.train_folder(job)
  before = {path: path.read_bytes() for path in folder.glob('*.*')}
  metrics = kept.evaluate(job)
  assert metrics['spec'] != found[jobs[1]]['spec']
  assert metrics['equal_to_training'] == 16
  after = {path: path.read_bytes() for path in folder.glob('*.*')}
  dev = data.load(metrics['spec'])
  assert after.keys() - before.keys() == {folder / trained_hypotheses(dev)}
  assert after | before == after


def test_an_option_at_its_default_is_the_same_training(done):
  config, kept, _, _ = done
  rate = config.finetune.train.learning_rate
  folders = [
    kept.train_folder(cells.Job(cells.parse(f'tiny/s8bqat:2{text}'), 'all', 0))
    for text in ('', f'?lr={rate}&every=1&pull=4', '?every=2')
  ]
  assert folders[0] == folders[1] != folders[2]


def test_what_is_published_needs_no_training(done, monkeypatch, tmp_path):
  config, kept, jobs, found = done
  with pytest.raises(ValueError, match='published'):
    dataclasses.replace(kept, publishes=True)
  here = dataclasses.replace(
    kept, published=tmp_path / 'published', publishes=True
  )
  for job in jobs:
    assert here.evaluate(job) == found[job]
  assert len(list(here.published.iterdir())) == len(jobs)
  elsewhere = dataclasses.replace(here, root=tmp_path / 'empty')
  monkeypatch.setattr('experiments.trainer.run', None)
  assert matrix.estimated_hours(elsewhere, jobs) == 0
  again, not_run = matrix.run(elsewhere, jobs)
  assert not not_run
  plan = cells.plan(config, 'quick')
  assert matrix.rows(config, again, plan) == matrix.rows(config, found, plan)
  folder = tmp_path / 'results'
  matrix.report(config, elsewhere, 'tiny', again, [], folder, plan)
  # Weights and their way are not published.
  assert {p.name for p in folder.glob('*.png')} == {'tiny.png'}
  # Another split, other options, other floats: nothing is published of these.
  config = tiny.experiment()
  config.activation_bits = 8
  config.float.arguments = 'seed=1'
  other = dataclasses.replace(elsewhere, config=config)
  assert not other.done(jobs[1])
  assert not elsewhere.done(jobs[1]._replace(split='dev'))
  assert not elsewhere.done(jobs[1]._replace(seed=1))


def test_two_checkpoints_of_one_config_carry_no_claim(done):
  config, _, jobs, found = done
  three = cells.Plan(('all',), (0, 1, 2))
  of_seeds = {
    job._replace(seed=seed): found[job] for job in jobs for seed in three.seeds
  }
  (compared,) = matrix.comparisons(config, of_seeds, three)
  assert compared['same_checkpoint'] and compared['no_loss'] is not None
  of_seeds[jobs[1]._replace(seed=1)] = {**found[jobs[1]], 'float': 'another'}
  (compared,) = matrix.comparisons(config, of_seeds, three)
  assert not compared['same_checkpoint'] and compared['no_loss'] is None


def test_fine_tuning_is_not_chosen_by_development_data(done):
  _, kept, jobs, _ = done
  float_folder, tuned = kept.float_folder(jobs[1]), kept.train_folder(jobs[1])
  assert (float_folder / recognizer.MODEL_FILE).exists()
  assert (tuned / 'shipped.safetensors').exists()
  assert not (tuned / recognizer.MODEL_FILE).exists()


def test_a_difference_from_training_is_an_error(done, tmp_path):
  _, kept, jobs, _ = done
  copy = dataclasses.replace(kept, root=tmp_path)
  for folder in (Stages.float_folder, Stages.train_folder):
    shutil.copytree(folder(kept, jobs[0]), folder(copy, jobs[0]))
  path = copy.in_training(jobs[0])
  hypotheses = scoring.read_hypotheses(path)
  hypotheses[3] = hypotheses[3]._replace(hypothesis='seven')
  scoring.write_hypotheses(path, hypotheses)
  with pytest.raises(RuntimeError, match='1 of 16 hypotheses differ'):
    copy.evaluate(jobs[0])


def test_other_floats_are_another_training(done, tmp_path):
  _, kept, jobs, _ = done
  copy = dataclasses.replace(kept, root=tmp_path)
  assert not copy.done(jobs[1])
  shutil.copytree(kept.float_folder(jobs[1]), copy.float_folder(jobs[1]))
  assert copy.train_folder(jobs[1]).name == kept.train_folder(jobs[1]).name
  file = copy.float_folder(jobs[1]) / recognizer.MODEL_FILE
  packed = packed_file.load(file)
  tree = jax.tree.map(lambda x: 2 * x, packed.tree)
  packed_file.save(file, tree, config=packed.config, tokenizer=packed.tokenizer)
  assert copy.train_folder(jobs[1]).name != kept.train_folder(jobs[1]).name


def test_a_rerun_does_nothing_and_a_limit_leaves_the_rest(
  done, monkeypatch, tmp_path
):
  config, kept, jobs, found = done
  monkeypatch.setattr('experiments.trainer.run', None)
  assert matrix.estimated_hours(kept, jobs) == 0
  again, not_run = matrix.run(kept, jobs, max_hours=0.0)
  assert not not_run
  for job in jobs:
    assert again[job]['wer'] == found[job]['wer']
  empty = dataclasses.replace(kept, root=tmp_path)
  none, not_run = matrix.run(empty, jobs, max_hours=-1.0)
  assert not none and not_run == [str(job) for job in jobs]


@pytest.mark.parametrize('name', ['x', 'corpus/x', 'experiment/float/x'])
def test_a_float_model_is_taken_from_a_finished_run(done, tmp_path, name):
  config, kept, jobs, _ = done
  run = tmp_path / 'floats' / name
  run.mkdir(parents=True)
  wanted = keys.about(cells.float_config(config, jobs[0]))
  (run / STAGE).write_text(json.dumps(wanted))
  other = dataclasses.replace(
    kept, root=tmp_path / 'none', float_runs=(tmp_path / 'floats',)
  )
  assert not other.float_done(jobs[0])  # not finished
  (run / RESULT).write_text('{}')
  assert other.float_done(jobs[0])
  assert other.float_model(jobs[0]).parent == run
  heard = {**wanted['fingerprints'], 'train': 'f' * 16}
  for change in (
    {'fingerprints': heard},
    {'train': {**wanted['train'], 'learning_rate': 1.0}},
    {'vocabulary': 4096},  # a language model, say
  ):
    (run / STAGE).write_text(json.dumps({**wanted, **change}))
    assert not other.float_done(jobs[0])


@pytest.mark.parametrize(
  'path',
  sorted((results.MODELS / 'float' / 'asc_strings').glob('*')),
  ids=lambda path: path.name,
)
def test_published_floats_are_of_todays_config(path):
  size, fold = path.name.split('-')
  config = asc_strings.get_config()
  job = cells.Job(cells.Cell(size, 'float'), fold, 0)
  plain = keys.without_data(cells.float_config(config, job))
  wanted = json.loads(json.dumps(plain))
  stored = json.loads((path / STAGE).read_text())
  assert set(stored.pop('fingerprints')) == {'train', 'dev'}
  assert keys.anywhere(stored) == keys.anywhere(wanted)
  assert (path / RESULT).exists() and (path / recognizer.MODEL_FILE).exists()


@pytest.mark.parametrize('module', [asc_strings, speechocean])
def test_published_floats_are_found_wherever_the_data_is(module):
  config = module.get_config()
  job = cells.Job(cells.parse('90k/float'), '0', 0)
  made = []
  for data_folder in ('../shared/data', '/elsewhere/corpora'):
    config.data = data_folder
    made.append(json.loads(cells.float_config(config, job).to_json()))
  assert made[0] != made[1]
  assert keys.anywhere(made[0]) == keys.anywhere(made[1])
  sections = [c['data'] for c in (made[1], made[1].get('pretrain')) if c]
  sections[-1]['train'] += '&snr=1-2'
  assert keys.anywhere(made[0]) != keys.anywhere(made[1])


def test_rows_and_comparisons(done, tmp_path):
  config, kept, jobs, found = done
  plan = cells.plan(config, 'quick')
  rows = matrix.report(
    config, kept, 'tiny', found, ['something'], tmp_path / 'results', plan
  )
  assert [row['cell'] for row in rows] == [str(job.cell) for job in jobs]
  stored = json.loads((tmp_path / 'results' / 'tiny.json').read_text())
  assert stored['rows'] == rows and stored['not_run'] == ['something']
  compared = {(c['a'], c['b']): c for c in stored['comparisons']}
  ours = compared['tiny/float', 'tiny/s8bqat:2?pull=2']
  a, b = (found[job]['wer'] for job in jobs)
  assert ours['relative'] == pytest.approx(100 * (b - a) / a)
  assert ours['relative_per_seed'] == pytest.approx([ours['relative']])
  assert ours['bytes_ratio'] < 0.5 and not ours['headline']
  assert not any('latency' in key for key in ours)  # of a float: none
  pictures = {p.name for p in (tmp_path / 'results').glob('*.png')}
  assert pictures == {'tiny.png', 'tiny_distance.png', 'tiny_weights.png'}


def test_floats_are_drawn_against_parameters(done, tmp_path):
  config, kept, jobs, found = done
  floats = {
    job: {**found[jobs[0]], 'parameters': 1000 * (1 + i)}
    for i, size in enumerate(('small', 'large'))
    for seed in (0, 1)
    for job in [jobs[0]._replace(cell=cells.Cell(size, 'float'), seed=seed)]
  }
  plan = cells.Plan(('all',), (0, 1))
  rows = matrix.report(config, kept, 'floats', floats, [], tmp_path, plan)
  assert {p.name for p in tmp_path.glob('*.png')} == {'floats.png'}
  figure, axes = plt.subplots()
  plots.error_against_weights(rows, axes)
  shown = [text.get_text() for text in axes.texts]
  assert shown == ['small', 'large']  # once each: of all seeds
  wer = found[jobs[0]]['wer']
  assert {text.xy for text in axes.texts} == {(1000, wer), (2000, wer)}
  plt.close(figure)


def test_an_experiment_in_one_picture(done, tmp_path):
  config, kept, jobs, found = done
  rows = matrix.rows(config, found, cells.plan(config, 'quick'))
  overview.write(kept, rows, found, tmp_path / 'all.png')
  assert (tmp_path / 'all.png').stat().st_size > 10_000

  figure, (curves, words) = plt.subplots(1, 2)
  overview.training_curves(kept, found, curves)
  of_float, of_s8bqat = curves.lines
  assert of_float.get_label() == 'float'
  # A method goes on where the float model ends.
  assert of_float.get_xdata()[-1] < of_s8bqat.get_xdata()[0]
  steps = [text.xy[0] for text in curves.texts]
  assert steps == [3, 6]  # where development data was scored

  overview.recognized(kept, jobs[1], words)
  said, heard = words.get_title().split('\n')
  scored = {
    h.reference: h.hypothesis
    for h in scoring.read_hypotheses(kept.in_training(jobs[1]))
  }
  # Batch and stream hear the same.
  assert heard.split('hears: ')[1] == scored[said.removeprefix('said: ')]
  assert [text.get_text() for text in words.texts] == (
    heard.split('hears: ')[1].split()
  )
  plt.close(figure)


def test_an_ablation_is_drawn_as_rows(done, tmp_path):
  config, kept, jobs, found = done
  texts = ('tiny/s8bqat:2', 'tiny/s8bqat:2?every=2', 'tiny/acosr:2')
  of_cells = {
    jobs[1]._replace(cell=cells.parse(text)): found[jobs[1]] for text in texts
  }
  plan = cells.plan(config, 'quick')
  rows = matrix.report(config, kept, 'parts', of_cells, [], tmp_path, plan)
  assert {p.name for p in tmp_path.glob('*.png')} == {'parts.png'}
  figure, axes = plt.subplots()
  plots.error_by_method(rows, axes)
  shown = [text.get_text() for text in axes.get_yticklabels()]
  assert shown == ['s8bqat', 's8bqat (every 2)', 'acosr']
  plt.close(figure)


def test_what_runs_in_integers_is_compared_in_latency(done):
  config, _, jobs, found = done
  metrics = found[jobs[1]]
  ours, control = (
    cells.Job(cells.parse(text), 'all', 0)
    for text in ('tiny/s8bqat:2', 'tiny/uniform qat:8')
  )
  slower = {**metrics, 'u65_512_latency_ms_8': 4.0, 'bytes': 1000}
  quicker = {**metrics, 'u65_512_latency_ms_8': 3.0, 'bytes': 500}
  (compared,) = matrix.comparisons(
    config, {ours: quicker, control: slower}, cells.plan(config, 'quick')
  )
  assert (compared['a'], compared['b']) == (str(control.cell), str(ours.cell))
  assert compared['u65_512_latency_ms_8_ratio'] == 0.75
  assert compared['bytes_ratio'] == 0.5
  assert compared['index_traffic_1_ratio'] == 1


def test_folds_are_pooled_and_seeds_are_not(done, tmp_path):
  """Two folds are more speakers, two seeds the same ones twice."""
  config, kept, jobs, found = done
  job, metrics = jobs[0], found[jobs[0]]
  words, plan = metrics['words'], cells.plan(config, 'quick')
  for name, others, expected in (
    ('folds', [job._replace(part='1')], 2 * words),
    ('seeds', [job._replace(seed=1)], words),
  ):
    more = {job: metrics}
    for other in others:
      folder = tmp_path / name
      hypotheses = scoring.read_hypotheses(f'{metrics["folder"]}/{HYPOTHESES}')
      if name == 'folds':
        hypotheses = [
          h._replace(utt_id=f'x{h.utt_id}', speaker=f'x{h.speaker}')
          for h in hypotheses
        ]
      scoring.write_hypotheses(folder / HYPOTHESES, hypotheses)
      more[other] = {**metrics, 'folder': str(folder)}
    rows = matrix.rows(config, more, plan)
    assert rows[-1]['metrics']['words'] == expected
    assert rows[-1]['seed'] == ('all' if name == 'seeds' else 0)
    assert rows[-1]['metrics']['wer'] == pytest.approx(metrics['wer'])


def test_seeds_are_averaged_over_the_same_parts(done):
  """A seed without all parts spoils neither the mean nor the others."""
  config, _, jobs, found = done
  both = cells.Plan(('all', 'more'), (0, 1, 2))
  whole = {
    jobs[1]._replace(part=part, seed=seed): found[jobs[1]]
    for seed in (1, 2)
    for part in both.parts
  }
  rows = matrix.rows(config, {jobs[1]: found[jobs[1]], **whole}, both)
  assert [(row['seed'], row['complete']) for row in rows] == [
    (0, False),
    (1, True),
    (2, True),
    ('all', False),
  ]
  assert rows[-1]['seeds'] == [1, 2]
  words = found[jobs[1]]['words']
  assert rows[-1]['metrics']['words'] == 2 * words
  other = {jobs[1]._replace(part='more', seed=1): found[jobs[1]]}
  rows = matrix.rows(config, {**found, **other}, both)
  assert not any(row['seed'] == 'all' for row in rows)


def test_only_what_is_whole_and_untuned_carries_a_verdict(done):
  config, _, jobs, found = done
  (compared,) = matrix.comparisons(config, found, cells.plan(config, 'quick'))
  assert compared['complete'] and compared['no_loss'] is None  # one training
  parts = '0', '1', '2', '3'
  folds = {j._replace(part=p): found[j] for p in parts for j in jobs}
  config = config.copy_and_resolve_references()
  config.headline = tuple(str(job.cell) for job in jobs)
  for plan, expected in (
    (cells.Plan(parts), True),
    (cells.Plan(parts, split='dev'), False),
    (cells.Plan(parts, (0, 1)), False),
    (cells.Plan((*parts, '4')), False),
  ):
    *_, compared = matrix.comparisons(config, folds, plan)
    assert (compared['no_loss'] is not None) == expected
    assert not compared['headline']  # which takes five seeds
  assert cells.Plan(('all',), tuple(range(5))).carries_headline
  assert not cells.Plan(('all',), tuple(range(4))).carries_headline
  assert not cells.Plan(parts, tuple(range(5)), 'dev').carries_headline


def test_other_transcripts_are_other_data(done, tmp_path):
  config, _, jobs, found = done
  hypotheses = scoring.read_hypotheses(
    f'{found[jobs[1]]["folder"]}/{HYPOTHESES}'
  )
  hypotheses[0] = hypotheses[0]._replace(reference='another')
  scoring.write_hypotheses(tmp_path / HYPOTHESES, hypotheses)
  changed = {**found[jobs[1]], 'folder': str(tmp_path)}
  with pytest.raises(ValueError, match='scored on different utterances'):
    matrix.comparisons(
      config, {**found, jobs[1]: changed}, cells.plan(config, 'quick')
    )


def test_a_job_that_fails_costs_no_other(done, monkeypatch):
  _, kept, jobs, found = done
  whole = Stages.evaluate

  def evaluate(self, job):
    if job == jobs[0]:
      raise FloatingPointError('the loss is NaN at step 7')
    return whole(self, job)

  monkeypatch.setattr(Stages, 'evaluate', evaluate)
  again, missing = matrix.run(kept, jobs)
  assert list(again) == jobs[1:]
  assert missing == [f'{jobs[0]}: failed: the loss is NaN at step 7']


def test_what_is_cached_is_whole(done):
  _, kept, jobs, _ = done
  for job in jobs:
    folder = kept.train_folder(job)
    assert json.loads((folder / RESULT).read_text())['seconds'] > 0
    assert not list(folder.glob('*.partial*'))
