"""The language model experiment, whole, on a toy language."""

import json

import jax
import ml_collections
import numpy as np
import pytest

from experiments import (
  language_model,
  lm_agreement,
  lm_sensitivity,
  lm_stages,
  methods,
)
from experiments import lm_matrix as lib
from s8bqat_jax import sensitivity, training
from s8bqat_jax.artifacts import packed_file
from s8bqat_jax.data import text as text_lib
from s8bqat_jax.data import text_windows
from s8bqat_jax.quantizers import codebook
from s8bqat_jax.quantizers import tree as trees
from tests.experiments import toy_language


@pytest.fixture(scope='module')
def config(tmp_path_factory):
  folder = tmp_path_factory.mktemp('text')
  config = toy_language.config(folder, train=2000, held_out=200)
  config.name = 'toy'
  config.data.batch_size = 8
  config.model.update({'width': 16, 'ffn_width': 32})
  config.train.update({'steps': 150, 'warmup_steps': 20})
  config.finetune.train.learning_rate = 2e-3
  config.sensitivity.update({'max_probes': 64, 'rtol': 0.5, 'allocations': 20})
  config.finetune.watch_every = 5
  config.points = (3,)
  config.choices = (2, 3, 4)
  return config


@pytest.fixture(scope='module')
def stages(config, tmp_path_factory):
  corpora = lm_stages.Corpora(config)
  root = tmp_path_factory.mktemp('stages')
  return lm_stages.Stages(config, corpora, root, progress=False)


@pytest.fixture(scope='module')
def found(stages):
  return lm_sensitivity.Sensitivity(stages)


def test_the_float_model_learns_and_its_file_is_what_is_scored(stages):
  metrics = stages.evaluate(stages.float_model())
  # Twenty words, two of which may follow each: learned, not guessed.
  assert 1.5 < metrics['perplexity'] < 8
  made, params, _ = language_model.load(stages.float_model())
  nats_N = language_model.Scorer(made, 16).token_nats(
    params, stages.corpora.eval, 8
  )
  again = text_windows.perplexity(nats_N.sum(), stages.corpora.eval.words)
  np.testing.assert_allclose(again, metrics['perplexity'], rtol=1e-5)
  lines_L = np.load(metrics['line_nats'])
  assert len(lines_L) == len(stages.corpora.eval_text.lines)
  np.testing.assert_allclose(lines_L.sum(), nats_N.sum(), rtol=1e-5)


def test_a_stage_runs_once(stages, monkeypatch):
  path = stages.train('ptq lloyd-max', 3)
  before = path.stat().st_mtime_ns
  monkeypatch.setattr(packed_file, 'save', None)
  assert stages.train('ptq lloyd-max', 3) == path
  assert path.stat().st_mtime_ns == before


def test_a_float_model_is_taken_from_where_it_is_published(
  config, stages, tmp_path, monkeypatch
):
  stages.float_model()
  monkeypatch.setattr(lm_stages.Stages, 'fit', None)
  floats = (stages.root.parent,)  # above the stages: looked for below

  def other(seed):
    return lm_stages.Stages(
      config, stages.corpora, tmp_path, seed, float_runs=floats
    )

  assert other(0).float_done() and not other(1).float_done()
  assert other(0).float_model() == stages.float_model()
  own = other(0).train_folder('admm', 3)
  assert own.name == stages.train_folder('admm', 3).name
  assert own.is_relative_to(tmp_path)


def test_every_metric_allocates_within_the_bytes_of_uniform_precision(found):
  sizes = found.sizes()
  budget = sum(of[3] for of in sizes.values())
  for metric in lm_sensitivity.METRICS:
    bits = found.allocation(metric, 3).bits
    assert set(bits) == set(sizes)
    assert sum(sizes[n][b] for n, b in bits.items()) <= budget, metric


def test_a_budget_of_bytes_is_that_of_the_file(stages, found):
  files = {
    b: stages.train('ptq lloyd-max', b).stat().st_size for b in (2, 3, 4)
  }
  for wanted in (0.5 * (files[2] + files[3]), 0.5 * (files[3] + files[4])):
    bits = found.allocation('size', f'{wanted:.0f}B').bits
    assert len(set(bits.values())) > 1
    file = stages.train('ptq lloyd-max', bits).stat().st_size
    assert 0.93 * wanted < file <= wanted
  metrics = stages.evaluate(stages.train('ptq lloyd-max', 3))
  ratio = found.budget(f'{metrics["ratio_fp32"]:.3f}x')
  np.testing.assert_allclose(ratio, found.budget(3), rtol=0.01)


@pytest.mark.parametrize('point', [7, '3', 'x', '16 x', '1e5B', '0x', True])
def test_a_budget_that_means_nothing(found, point):
  with pytest.raises(ValueError, match='expected bits out of config.choices'):
    found.budget(point)
  config = found.config.copy_and_resolve_references()
  config.points = (3, point)
  with pytest.raises(ValueError, match='expected bits out of config.choices'):
    lm_sensitivity.check_points(config)


def test_a_budget_below_every_file(found):
  with pytest.raises(
    sensitivity.InfeasibleError,
    match="'1000B', a file of 1,000 bytes; the smallest.* 2 bits, has",
  ):
    found.allocation('size', '1000B')
  cell = lib.Cell('admm', '1000B', 'size')
  assert not lib.done(cell, found)
  job = lib.Job(0, cell)
  rows, failed = lib.run([job], lambda job: lib.bits_of(job.cell, found))
  assert not rows and 'failed' in failed[0]


@pytest.mark.parametrize(
  'field, value, message',
  [
    ('easy_points', ('8x',), "easy_points has '8x': expected 1..8 bits"),
    ('easy_points', (9,), 'easy_points has 9: expected 1..8 bits'),
    (
      'mixed',
      {'admm': ('kl', 'luck')},
      "'admm' by kl, luck: expected a method",
    ),
    ('mixed', {'float': ('kl',)}, "'float' by kl: expected a method that"),
    ('mixed', {'adm': ('kl',)}, "'adm' by kl: expected a method that"),
    ('mixed', {'coarse int8': ('kl',)}, 'of all weights alike, and not other'),
  ],
)
def test_cells_that_mean_nothing(config, field, value, message):
  config = config.copy_and_resolve_references()
  config[field] = ml_collections.ConfigDict({field: value})[field]
  with pytest.raises(ValueError, match=message):
    lm_sensitivity.check_points(config)


def test_only_whole_bits_have_uniform_cells(config):
  config = config.copy_and_resolve_references()
  config.points = (3, '8x')
  config.easy_points = (6,)
  config.mixed['straight-through'] = ('kl',)
  cells = list(lib.cells(config))
  at = {p: [c for c in cells if c.point == p] for p in config.points}
  assert {c.metric for c in at['8x']} == set(lm_sensitivity.METRICS)
  assert {c.method for c in at['8x']} == {'admm', 'straight-through'}
  assert {c.method for c in at[3] if c.metric is None} == {*lib.UNIFORM, 'admm'}
  assert {c.method for c in cells if c.point == 6} == set(lib.EASY)
  assert len(set(cells)) == len(cells)
  for pair in lib.pairs(config):
    assert set(pair) <= set(cells)


def test_cells_of_a_smaller_model_are_compared_with_the_headline(config):
  config = config.copy_and_resolve_references()
  config.smaller.cells = ('float', 'ptq lloyd-max, 8')
  with pytest.raises(ValueError, match='smaller has cells and no model'):
    lib.check(config)
  config.smaller.model.width = 8
  config.headline = 'admm, 3'
  lib.check(config)
  cells, pairs = list(lib.cells(config)), list(lib.pairs(config))
  floats, rounded = (
    lib.Cell('float', smaller=True),
    lib.Cell('ptq lloyd-max', 8, smaller=True),
  )
  assert cells[-2:] == [floats, rounded]
  assert str(rounded) == 'smaller ptq lloyd-max, 8'
  # Of the two models together nothing else is asked.
  assert [p for p in pairs if p[0].smaller or p[1].smaller] == [
    (floats, rounded),
    (floats, lib.Cell('admm', 3)),
    (rounded, lib.Cell('admm', 3)),
  ]
  assert len(set(pairs)) == len(pairs)


def test_the_smaller_model_differs_in_what_is_said_of_it(config):
  config = config.copy_and_resolve_references()
  config.smaller.model.width = 8
  config.smaller.train.learning_rate = 0.5
  found = lib.smaller(config)
  assert (found.model.width, found.train.learning_rate) == (8, 0.5)
  found.model.width = config.model.width
  found.train.learning_rate = config.train.learning_rate
  assert found.to_json() == config.to_json() and config.model.width != 8


@pytest.mark.parametrize('name', ['adm, 3', 'admm', 'admm, 9', 'float, 3', ''])
def test_names_that_are_no_uniform_cell(name):
  with pytest.raises(ValueError, match='expected a float method, or one of'):
    lib.uniform(name)


@pytest.mark.parametrize(
  'field, value, message',
  [
    ('headline', 'admm, 7', "headline is 'admm, 7': expected a cell of the"),
    ('headline', 'straight_through, 3', 'expected a float method'),
    ('finetune.freeze', 'best', "freeze is 'best', expected 'last' or"),
    ('finetune.rates', {'adm': 1e-3}, "rates has 'adm': expected one of fl"),
  ],
)
def test_what_would_fail_after_hours_fails_before(
  config, field, value, message
):
  config = config.copy_and_resolve_references()
  config.update_from_flattened_dict({field: value})
  with pytest.raises(ValueError, match=message):
    lib.check(config)


def test_sizes_are_what_a_tensor_adds_to_a_file(stages, found):
  sizes = found.sizes()
  at = {b: sum(of[b] for of in sizes.values()) for b in (2, 4)}
  files = {b: stages.train('ptq lloyd-max', b).stat().st_size for b in (2, 4)}
  # Headers are shared between tensors, codes are not.
  np.testing.assert_allclose(files[4] - files[2], at[4] - at[2], rtol=0.02)


def test_admm_on_allocated_bits_ships_them(stages, found):
  bits = found.allocation('kl', 3).bits
  path = stages.train('admm', bits)
  tree = packed_file.load(path).tree
  shipped = trees.named(tree)
  assert {n: shipped[n].bits for n in bits} == bits
  trained = stages.evaluate(path)
  rounded = stages.evaluate(stages.train('ptq lloyd-max', bits))
  assert trained['perplexity'] < rounded['perplexity']
  # What was watched is what would have shipped.
  logged = training.read_metrics(path.parent)
  watched = [r['dev/perplexity'] for r in logged if 'dev/perplexity' in r]
  assert len(watched) > 1
  np.testing.assert_allclose(watched[-1], trained['dev_perplexity'], rtol=1e-5)


def test_divergences_are_of_each_tensor_alone(stages, found):
  rows = found.divergences()
  params = stages.float_params()
  logits = lambda p, x: stages.model.logits(p, x[:, :-1])
  logs = lambda p: [jax.nn.log_softmax(logits(p, x)) for x in found.windows()]
  float_logs = logs(params)
  for row in rows[:3]:
    name, bits = row['tensor'], row['bits']
    tensor = trees.named(params)[name]
    snapped = codebook.snap(
      tensor, methods.fit_centroids(tensor, 2**bits, rows=False)
    )
    alone = trees.replace(params, {name: snapped})
    nats = np.mean(
      [
        (np.exp(a) * (a - b)).sum(-1).mean()
        for a, b in zip(float_logs, logs(alone))
      ]
    )
    np.testing.assert_allclose(row['nats'], nats, rtol=0.02, atol=1e-6)
  for bits in stages.config.choices:
    of = [row for row in rows if row['bits'] == bits]
    assert [row['tensor'] for row in of] == list(found.sizes())
    for parts in 'weights_percent', 'nats_percent':
      np.testing.assert_allclose(sum(row[parts] for row in of), 100, rtol=1e-6)


def test_predictions_are_held_against_measured_harm(stages, found):
  rows = lm_agreement.agreement(found)
  by_metric = {row['metric']: row['spearman'] for row in rows}
  assert set(by_metric) == set(lm_sensitivity.METRICS)
  assert {row['allocations'] for row in rows} == {20}
  assert by_metric['kl'] > 0.5
  (kl,) = (row for row in rows if row['metric'] == 'kl')
  assert kl['rise_best_random'] < kl['rise_random']
  assert kl['rise_chosen'] < kl['rise_random']
  params = stages.float_params()
  windows = found.windows(dev=True, factor=lm_agreement.DEV_WINDOWS)
  loss = lambda p: np.mean([stages.model.nll(p, x).mean() for x in windows])
  rise = loss(found.quantized(dict.fromkeys(found.sizes(), 3))) - loss(params)
  np.testing.assert_allclose(kl['rise_equal_bits'], rise, rtol=1e-3)


def test_a_point_that_no_metric_can_meet_costs_no_other_seed(
  found, monkeypatch, capsys
):
  def agreement(of_seed, metrics):
    if of_seed is found:
      raise sensitivity.InfeasibleError('too small')
    return [{'metric': 'kl', 'point': 3}]

  monkeypatch.setattr(lm_agreement, 'agreement', agreement)
  found.divergences()
  other = lm_sensitivity.Sensitivity(found.stages)
  rows = lm_agreement.agreements({0: found, 1: other})
  assert rows == [{'seed': 1, 'metric': 'kl', 'point': 3}]
  assert 'too small' in capsys.readouterr().out


def test_agreement_found_elsewhere_stays(config, stages, found, monkeypatch):
  monkeypatch.setattr(
    lm_agreement,
    'agreement',
    lambda of_seed, metrics: [{'metric': 'kl', 'point': 3, 'spearman': 0.9}],
  )
  found.divergences()
  of = lambda seed, metric, spearman: {
    'seed': seed,
    'metric': metric,
    'point': 3,
    'spearman': spearman,
  }
  far = lm_stages.Stages(config, stages.corpora, stages.root, seed=7)
  models = {0: found, 7: lm_sensitivity.Sensitivity(far)}
  so_far = of(0, 'kl', 0.1), of(0, 'trace', 0.2), of(7, 'kl', 0.3)
  assert lm_agreement.agreements(models, so_far) == [
    of(0, 'kl', 0.9),
    *so_far[1:],
  ]


def test_random_allocations_differ_and_cost_alike(found):
  rng = np.random.default_rng(0)
  drawn = lm_agreement._random_allocations(found, 3, 12, rng)
  spent = [sum(found.sizes()[n][b] for n, b in d.items()) for d in drawn]
  assert len({tuple(sorted(d.items())) for d in drawn}) == len(drawn) > 5
  assert max(spent) <= found.budget(3) and min(spent) > 0.8 * found.budget(3)


def test_a_cell_that_diverges_costs_no_other():
  good, bad = lib.Cell('float'), lib.Cell('admm', 2)

  def score(job):
    if job.cell == bad:
      raise FloatingPointError('the loss is NaN at step 7')
    return {'method': job.cell.label, 'seed': job.seed, 'perplexity': 9.0}

  asked = [lib.Job(seed, cell) for seed in (0, 1) for cell in (bad, good)]
  rows, failed = lib.run(asked, score)
  assert list(rows) == [(0, good), (1, good)]
  assert failed[1] == 'admm, 2, seed 1: failed: the loss is NaN at step 7'
  names = [str(job) for job in asked]
  assert lib.run(asked, score, max_hours=-1.0) == ({}, names)


def test_what_is_done_is_not_charged(config, stages, found):
  rest = lib.Cell('float continued')
  before = lib.estimated_hours(config, [(found, [rest])])
  assert before > 0 and not lib.done(rest, found)
  kept = lib.Cell('ptq lloyd-max', 3)
  stages.train('ptq lloyd-max', 3)
  assert lib.done(kept, found)
  assert lib.estimated_hours(config, [(found, [kept])]) == 0


def test_a_model_that_nothing_is_asked_of_is_not_charged(
  config, stages, tmp_path
):
  other = lm_stages.Stages(config, stages.corpora, tmp_path, seed=7)
  other = lm_sensitivity.Sensitivity(other)
  assert not other.stages.float_done()
  assert lib.estimated_hours(config, [(other, [])]) == 0
  assert lib.estimated_hours(config, [(other, [lib.Cell('float')])]) > 0


def test_questions_name_cells_of_the_matrix(config):
  known = set(lib.cells(config))
  asked = list(lib.pairs(config))
  assert all(a in known and b in known and a != b for a, b in asked)
  assert len(set(asked)) == len(asked)
  assert (lib.Cell('straight-through', 3), lib.Cell('admm', 3)) in asked


def test_comparisons_are_of_seeds_that_both_have(tmp_path):
  a, b = lib.Cell('float'), lib.Cell('admm', 4)
  folders = {}
  for seed in (0, 1):
    for cell, rise in ((a, 0.0), (b, 0.1)):
      path = tmp_path / f'{cell.method}{seed}.npy'
      np.save(path, np.array([5.0, 4.0]) + rise * 10)
      size = 100 if cell == a else 20 + seed
      folders[cell, seed] = {'line_nats': path, 'bytes': size}
  absent = {'line_nats': tmp_path / 'absent.npy', 'bytes': 1}
  folders[lib.Cell('admm', 2), 7] = absent
  nine = ' '.join('abcdefghi')  # and an end
  corpus = text_lib.TextCorpus((nine, nine), '', '', (0, 1))
  (row,) = lib.comparisons(
    folders, corpus, [(a, b), (a, lib.Cell('admm', 2))], (0, 1)
  )
  assert row['seeds'] == [0, 1] and row['articles'] == 2
  # 1 nat over 10 words.
  np.testing.assert_allclose(row['relative'], 100 * np.expm1(0.1))
  np.testing.assert_allclose(row['ci95'], [100 * np.expm1(0.1)] * 2)
  assert len(row['relative_per_seed']) == 2
  np.testing.assert_allclose(row['relative_per_seed'], row['relative'])
  assert row['p'] < 0.01 and row['bytes_ratio'] == 0.205
  assert row['no_loss'] is None  # of two seeds


def test_words_of_sentences_add_up_to_the_stream(stages):
  made, params, _ = language_model.load(stages.float_model())
  scorer = language_model.Scorer(made)
  lines = ['w1 w3 w9', '', 'w2 unheard']
  found = scorer.word_log_probs(params, lines, batch_size=2)
  assert [len(x) for x in found] == [4, 1, 3]
  one = text_lib.encode(
    made.tokenizer, text_lib.TextCorpus(('w1 w3 w9',), '', '')
  )
  nll = jax.jit(made.nll)(params, np.concatenate([[0], one.ids_N])[None])
  np.testing.assert_allclose(found[0], -np.asarray(nll)[0], atol=1e-4)


class TestErrors:
  def test_budget_below_the_smallest_file(self, found):
    with pytest.raises(ValueError, match='below the smallest'):
      sensitivity.allocate(found.scores('size'), found.sizes(), 10)

  def test_vocabulary_that_is_not_the_models(self, stages, tmp_path):
    packed = packed_file.load(stages.float_model())
    tokenizer = {'kind': 'word', 'words': ['one', 'two']}
    path = tmp_path / 'other.safetensors'
    packed_file.save(
      path, packed.tree, config=packed.config, tokenizer=tokenizer
    )
    with pytest.raises(ValueError, match='vocabulary'):
      language_model.load(path)

  def test_a_file_of_another_kind(self, tmp_path):
    path = tmp_path / 'x.safetensors'
    packed_file.save(path, {'w': np.zeros(3, np.float32)})
    with pytest.raises(ValueError, match='no language model'):
      language_model.load(path)

  def test_unknown_vocabulary_and_field(self, config):
    broken = config.copy_and_resolve_references()
    broken.vocabulary = 'bytes'
    with pytest.raises(ValueError, match='word:SIZE or subword:SIZE'):
      lm_stages.Corpora(broken)
    with pytest.raises(ValueError, match="no field 'depth'"):
      language_model.from_config(
        {'depth': 3}, lm_stages.Corpora(config).tokenizer
      )


def test_results_are_json(stages, found):
  json.dumps([stages.evaluate(stages.float_model()), found.traces()[2]])
