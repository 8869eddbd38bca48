"""Tests of significance: scipy's special cases, coverage, degenerate data."""

import numpy as np
import pytest
import scipy.stats

from s8bqat_jax.speech import significance


def test_mapsswe_is_the_paired_t_statistic_with_a_normal_tail():
  rng = np.random.default_rng(0)
  a, b = rng.poisson(2.0, 400), rng.poisson(1.8, 400)
  result = significance.mapsswe(a, b)
  t = scipy.stats.ttest_rel(a, b)
  np.testing.assert_allclose(result.z, t.statistic)
  # 400 pairs: the t and the normal tail nearly coincide.
  np.testing.assert_allclose(result.p, t.pvalue, atol=1e-4)
  assert 0 < result.p < 1e-3
  swapped = significance.mapsswe(b, a)
  assert swapped.z == -result.z and swapped.p == result.p


def test_mapsswe_on_degenerate_data():
  assert significance.mapsswe([1, 2, 3], [1, 2, 3]) == (0.0, 1.0)
  assert significance.mapsswe([1, 2], [2, 1]).p == 1.0
  assert significance.mapsswe([2, 3, 4], [1, 2, 3]) == (np.inf, 0.0)
  thirds = np.arange(1, 4) / 3  # means over seeds
  assert significance.mapsswe(thirds + 0.1, thirds) == (np.inf, 0.0)
  assert significance.mapsswe(thirds, thirds + 1e-16) == (0.0, 1.0)
  for a, b in [([], []), ([1], [1]), ([1, 2], [1, 2, 3])]:
    with pytest.raises(ValueError, match='shapes'):
      significance.mapsswe(a, b)
  with pytest.raises(ValueError, match='finite'):
    significance.mapsswe([1, np.nan, 2], [1, 2, 2])


def _one_each(n):
  return [f'speaker {i}' for i in range(n)]


def test_one_utterance_per_speaker_is_the_plain_bootstrap():
  rng = np.random.default_rng(0)
  errors, words = rng.poisson(1.5, 300), np.full(300, 10)
  got = significance.rate_interval(errors, words, _one_each(300))
  plain = scipy.stats.bootstrap(
    (errors / 10,), np.mean, method='percentile', rng=0
  ).confidence_interval
  np.testing.assert_allclose(got, plain, atol=0.004)


def test_speakers_of_unequal_length_count_by_their_words():
  rng = np.random.default_rng(1)
  words = rng.integers(1, 40, 200)
  errors = rng.binomial(words, rng.uniform(0.1, 0.5, 200))
  got = significance.rate_interval(errors, words, _one_each(200))
  plain = scipy.stats.bootstrap(
    (errors, words),
    lambda e, w, axis: e.sum(axis) / w.sum(axis),
    paired=True,
    vectorized=True,
    method='percentile',
    rng=0,
  ).confidence_interval
  np.testing.assert_allclose(got, plain, atol=0.004)


def _clustered(rng, speakers, per_speaker, rate=0.2, spread=0.5, words=10):
  """Errors whose rate differs between speakers."""
  ability = np.exp(spread * rng.normal(size=speakers) - spread**2 / 2)
  rates = np.repeat(rate * ability, per_speaker)
  return rng.poisson(rates * words), np.repeat(np.arange(speakers), per_speaker)


def test_clustered_intervals_cover_and_naive_ones_do_not():
  rng = np.random.default_rng(0)
  clustered = naive = 0
  trials, words = 60, np.full(400, 10)
  for trial in range(trials):
    errors, speakers = _clustered(rng, 20, 20)
    low, high = significance.rate_interval(
      errors, words, speakers, replicates=300, seed=trial
    )
    clustered += low <= 0.2 <= high
    low, high = significance.rate_interval(
      errors, words, _one_each(400), replicates=300, seed=trial
    )
    naive += low <= 0.2 <= high
  assert clustered >= 0.83 * trials
  assert naive <= 0.65 * trials


def test_false_alarms_are_rare_and_real_gains_are_found():
  rng = np.random.default_rng(1)
  alarms = found = 0
  trials, words = 40, np.full(400, 10)
  for trial in range(trials):
    a, speakers = _clustered(rng, 20, 20)
    # Same speakers, same abilities: half of A's errors, thinned or shared.
    b = rng.binomial(a, 0.8) + rng.poisson(0.2 * a.mean(), a.shape)
    better = rng.binomial(a, 0.8)
    run = lambda b, a=a, s=speakers, t=trial: significance.compare(
      a, b, words, s, replicates=300, seed=t
    )
    alarms += run(b).p_bootstrap < 0.05
    found += run(better).p_bootstrap < 0.05
  assert alarms <= 0.15 * trials
  assert found >= 0.95 * trials


def test_comparison_of_known_counts():
  a = np.array([[2, 0, 4, 2], [2, 2, 2, 2]])
  b = np.array([[1, 0, 3, 2], [2, 1, 1, 2]])
  result = significance.compare(a, b, [5, 5, 5, 5], ['x', 'x', 'y', 'y'])
  assert result.rate_a == 0.4 and result.rate_b == 0.3
  np.testing.assert_allclose(result.relative, -0.25)
  assert result.interval.low <= result.relative <= result.interval.high
  expected = significance.mapsswe([2, 1, 3, 2], [1.5, 0.5, 2, 2])
  assert result.p_mapsswe == expected.p


def test_seeds_widen_the_interval_and_do_not_narrow_it():
  rng = np.random.default_rng(0)
  utterance = rng.poisson(2.0, 200)
  # Five seeds, each with errors of its own level, on the same utterances.
  seeds = np.stack([utterance + level for level in [0, 0, 1, 2, 3]])
  words, speakers = np.full(200, 10), _one_each(200)
  width = lambda e: np.ptp(significance.rate_interval(e, words, speakers))
  assert width(seeds) > 2 * width(seeds[2])
  # Copies of one seed add no certainty.
  same = np.stack([utterance] * 5)
  np.testing.assert_allclose(width(same), width(utterance), rtol=0.15)


def test_folds_cover_what_their_models_differ_by():
  """Each fold's model is good or bad for all of its speakers."""
  rng = np.random.default_rng(0)
  folds, covered, blind = np.repeat(np.arange(8), 50), 0, 0
  speakers, words = np.repeat(np.arange(40), 10), np.full(400, 100)
  trials = 60
  for trial in range(trials):
    errors = rng.poisson(20 * np.exp(0.3 * rng.normal(size=8) - 0.045)[folds])
    run = lambda *labels, e=errors, t=trial: significance.rate_interval(
      e, words, speakers, *labels, replicates=300, seed=t
    )
    low, high = run(folds)
    covered += low <= 0.2 <= high
    low, high = run()
    blind += low <= 0.2 <= high
  assert covered >= 0.83 * trials
  assert blind <= 0.7 * trials


def test_a_gain_in_half_of_the_folds_is_not_shown():
  words, speakers = np.full(240, 5), np.repeat(np.arange(24), 10)
  folds = np.repeat(np.arange(4), 60)
  a = np.full(240, 2)
  b = a - (folds > 1)
  assert significance.compare(a, b, words, speakers).p_bootstrap < 0.01
  assert significance.compare(a, b, words, speakers, folds).p_bootstrap > 0.05
  everywhere = significance.compare(a, a - 1, words, speakers, folds)
  assert everywhere.p_bootstrap < 0.01


def test_seeds_are_drawn_for_each_fold_anew():
  """Trainings of different folds have nothing in common but their number."""
  # Errors of four trainings in each of four folds, 100 utterances each.
  levels_SxF = np.array(
    [[1, 3, 1, 3], [3, 1, 3, 1], [1, 3, 1, 3], [3, 1, 3, 1]]
  )
  errors = np.repeat(levels_SxF, 100, axis=1)
  folds = np.repeat(np.arange(4), 100)
  speakers = [f'{f}' for f in folds]
  units = np.full(400, 10)
  low, high = significance.rate_interval(errors, units, speakers, folds)
  # The mean of 16 draws of 1 or 3, over 10 units each.
  assert high - low == pytest.approx(2 * 1.96 * 0.1 / 4, rel=0.3)


def test_non_inferiority_needs_evidence_not_a_large_p():
  rng = np.random.default_rng(0)
  words = np.full(4000, 10)
  a = rng.poisson(2.0, 4000)
  equal = significance.compare(a, a, words, _one_each(4000), replicates=300)
  assert equal.relative == 0 and equal.non_inferior() and equal.p_bootstrap == 1
  few = significance.compare(
    a[:20], rng.poisson(2.0, 20), words[:20], _one_each(20), replicates=300
  )
  assert few.p_bootstrap > 0.05 and not few.non_inferior()
  worse = significance.compare(
    a, a + rng.binomial(1, 0.2, 4000), words, _one_each(4000), replicates=300
  )
  assert not worse.non_inferior() and worse.non_inferior(margin=0.2)


def test_same_seed_same_answer():
  rng = np.random.default_rng(0)
  errors, speakers = _clustered(rng, 5, 6)
  run = lambda seed: significance.rate_interval(
    errors, np.full(30, 10), speakers, replicates=200, seed=seed
  )
  assert run(0) == run(0) != run(1)


def test_a_difference_is_drawn_as_a_comparison_is():
  rng = np.random.default_rng(3)
  a_SxN = rng.gamma(2.0, 1.0, [2, 60])
  b_SxN = a_SxN + rng.normal(0.02, 0.3, a_SxN.shape)
  words_N = rng.integers(1, 9, 60)
  speakers_N = [str(n // 6) for n in range(60)]
  found = significance.difference(a_SxN, b_SxN, words_N, speakers_N)
  rise_SxN = b_SxN - a_SxN
  assert found.value == rise_SxN.mean(0).sum() / words_N.sum()
  assert found.interval.low < found.value < found.interval.high
  compared = significance.compare(a_SxN, b_SxN, words_N, speakers_N)
  assert found.p == compared.p_bootstrap
  back = significance.difference(b_SxN, a_SxN, words_N, speakers_N)
  np.testing.assert_allclose(back.interval[::-1], -np.array(found.interval))
  one = significance.difference([[1.0]], [[3.0]], [4], ['x'])
  assert one.value == 0.5 and one.p == 1 and np.isnan(one.interval).all()
  with pytest.raises(ValueError, match='equally many seeds'):
    significance.difference(a_SxN[:1], b_SxN, words_N, speakers_N)
  with pytest.raises(ValueError, match='finite'):
    significance.difference([[np.nan, 1.0]], [[1.0, 1.0]], [1, 1], ['a', 'b'])


def test_what_data_resolve_is_what_they_show_four_times_in_five():
  rng = np.random.default_rng(4)
  words, speakers = np.full(400, 10), np.repeat(np.arange(40), 10).astype(str)

  def compared(gain):
    a, _ = _clustered(rng, 40, 10)
    b = rng.poisson((1 - gain) * a)
    return significance.compare(a, b, words, speakers, replicates=300)

  gain = 0.05
  for _ in range(4):  # to the gain that is just resolved
    gain = np.mean([compared(gain).resolves for _ in range(5)])
  shown = [compared(gain).interval.high < 0 for _ in range(60)]
  assert 0.65 < np.mean(shown) < 0.95


def test_degenerate_comparisons():
  one = significance.compare([3], [2], [10], ['x'], replicates=50)
  assert one.p_mapsswe == one.p_bootstrap == 1.0 and not one.non_inferior()
  assert one.relative == pytest.approx(-1 / 3)
  assert np.isnan(significance.rate_interval([3], [10], ['x'])).all()
  with pytest.raises(ValueError, match='makes no error'):
    significance.compare([0, 0], [1, 0], [5, 5], ['x', 'y'])
  with pytest.raises(ValueError, match='no reference words'):
    significance.rate_interval([0], [0], ['x'])
  with pytest.raises(ValueError, match=r'\(1, 3\).*\(2,\)'):
    significance.rate_interval([1, 2, 3], [4, 4], ['x', 'y'])
  with pytest.raises(ValueError, match=r'\(1, 2\).*\(2, 2\)'):
    significance.compare([1, 2], [[1, 2], [1, 2]], [5, 5], ['x', 'y'])
  with pytest.raises(ValueError, match='expected 2 fold labels, got 1'):
    significance.rate_interval([1, 2], [4, 4], ['x', 'y'], ['f'])
  with pytest.raises(ValueError, match='finite'):
    significance.rate_interval([1, np.nan], [4, 4], ['x', 'y'])
  for words in (np.nan, -1):
    with pytest.raises(ValueError, match='words.* must be finite and not bel'):
      significance.rate_interval([1, 2], [4, words], ['x', 'y'])
  with pytest.raises(ValueError, match='no seeds'):
    significance.rate_interval(np.zeros([0, 2]), [4, 4], ['x', 'y'])
  with pytest.raises(ValueError, match='replicates=0'):
    significance.rate_interval([1, 2], [4, 4], ['x', 'y'], replicates=0)
