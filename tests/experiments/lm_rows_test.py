"""Rows of the language model experiment, here and published."""

import json

import numpy as np
import pytest

from experiments import (
  evaluations,
  lm_matrix,
  lm_rows,
  lm_sensitivity,
  lm_stages,
  results,
)
from tests.experiments import toy_language

pytestmark = pytest.mark.usefixtures('quick_fit')
JOBS = [
  lm_matrix.Job(0, lm_matrix.Cell('float')),
  lm_matrix.Job(0, lm_matrix.Cell('admm', 3)),
  lm_matrix.Job(0, lm_matrix.Cell('ptq lloyd-max', 3, 'size')),
]


@pytest.fixture(scope='module')
def config(tmp_path_factory):
  config = toy_language.config(
    tmp_path_factory.mktemp('text'), train=200, held_out=60
  )
  config.train.update({'steps': 8, 'log_every': 4})
  config.finetune.share = 1.0
  config.points = (3,)
  config.choices = (2, 3)
  return config


@pytest.fixture(scope='module')
def published(tmp_path_factory):
  return tmp_path_factory.mktemp('published')


@pytest.fixture(scope='module')
def corpora(config):
  return lm_stages.Corpora(config)


@pytest.fixture(scope='module')
def make(config, corpora, published):
  """Rows whose stages are in a folder."""

  def rows(root, config=config, **options):
    found = {
      (seed, False): lm_sensitivity.Sensitivity(
        lm_stages.Stages(config, corpora, root, seed, progress=False)
      )
      for seed in (0, 1)
    }
    return lm_rows.Rows(found, None, published, root / 'kept', **options)

  return rows


@pytest.fixture(scope='module')
def worked(make, tmp_path_factory):
  """Rows worked out by training, which published them."""
  matrix = make(tmp_path_factory.mktemp('stages'), publishes=True)
  return matrix, [matrix.row(job) for job in JOBS]


@pytest.fixture
def no_training(worked, monkeypatch):
  monkeypatch.delattr(lm_stages.Stages, 'fit')
  monkeypatch.delattr(lm_stages.Stages, 'train')


def test_a_row_says_what_was_trained_and_scored(worked):
  matrix, rows = worked
  floats, admm, mixed = rows
  assert (floats['bits'], admm['bits'], admm['point']) == (32, 3, 3)
  assert [r['step'] for r in admm['logged'] if 'loss' in r] == [4, 8]
  assert set(mixed['allocation'].values()) <= {2, 3} and not mixed['logged']
  assert 0.5 < mixed['share_of_budget'] <= 1
  stages = matrix.model(JOBS[1]).stages
  assert admm['metrics'] == stages.evaluate(stages.train('admm', 3))
  for row in rows:
    said = lm_rows.outcome(row)
    json.dumps(said)
    assert said['metrics']['perplexity'] == row['metrics']['perplexity']
    assert not {'logged', 'line_nats'} & {*said, *said['metrics']}


@pytest.mark.usefixtures('no_training')
def test_published_rows_need_no_training(worked, make, corpora, tmp_path):
  _, rows = worked
  elsewhere = make(tmp_path / 'empty')
  assert all(map(elsewhere.done, JOBS))
  again = [elsewhere.row(job) for job in JOBS]
  assert list(map(lm_rows.outcome, again)) == list(map(lm_rows.outcome, rows))
  assert [r['logged'] for r in again] == [r['logged'] for r in rows]
  cells = [job.cell for job in JOBS]
  compared = [
    lm_matrix.comparisons(
      {(job.cell, job.seed): row['metrics'] for job, row in zip(JOBS, of)},
      corpora.eval_text,
      [(cells[0], cells[1]), (cells[0], cells[2])],
      (0, 1),
    )
    for of in (again, rows)
  ]
  assert len(compared[0]) == 2 and compared[0] == compared[1]


@pytest.mark.usefixtures('worked')
@pytest.mark.parametrize(
  'other',
  [
    {'finetune.share': 0.5},
    {'train.learning_rate': 0.5},
    {'data.score_context': 4},
  ],
  ids=str,
)
def test_rows_of_another_model_are_not_taken(make, config, other, tmp_path):
  changed = config.copy_and_resolve_references()
  changed.update_from_flattened_dict(other)
  admm = JOBS[1]
  assert not make(tmp_path, changed).done(admm)
  assert not make(tmp_path).done(lm_matrix.Job(1, admm.cell))


@pytest.mark.usefixtures('worked')
def test_an_allocation_counts_by_its_scores_and_choices(make, config, tmp_path):
  _, uniform, mixed = JOBS
  changed = config.copy_and_resolve_references()
  changed.sensitivity.max_probes += 1
  changed.sensitivity.allocations += 1  # that predictions are held against
  assert not make(tmp_path, changed).done(mixed)
  assert make(tmp_path, changed).done(uniform)
  changed.sensitivity.max_probes -= 1
  assert make(tmp_path, changed).done(mixed)


@pytest.mark.usefixtures('no_training')
def test_what_was_worked_here_comes_before_what_is_published(
  worked, make, published, tmp_path
):
  matrix, rows = worked
  moved = lm_rows.Rows(matrix.models, None, tmp_path / 'none', tmp_path)
  assert all(map(moved.done, JOBS))  # by its stages
  (kept,) = published.glob('admm_3-0-*')
  spoiled = make(tmp_path / 'empty')
  whole = kept.read_bytes()
  try:
    kept.write_bytes(whole[:50])
    with pytest.raises(ValueError, match='is no evaluation'):
      spoiled.row(JOBS[1])
  finally:
    kept.write_bytes(whole)


FOLDERS = sorted((results.FOLDER / 'evaluations').glob('lm_*'))


@pytest.mark.parametrize('folder', FOLDERS, ids=[p.name for p in FOLDERS])
def test_published_perplexities_are_those_of_their_lines(folder):
  for path in folder.iterdir():
    row, arrays = evaluations.read(path, 'row', 'arrays')
    metrics = row['metrics']
    nats = np.sum(arrays['line_nats'])
    assert np.exp(nats / metrics['words']) == pytest.approx(
      metrics['perplexity'], rel=1e-5
    )
