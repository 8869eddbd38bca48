"""Bit allocation against brute force over every combination."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from s8bqat_jax.quantizers import rules
from s8bqat_jax.sensitivity import allocation as lib
from s8bqat_jax.sensitivity import pareto


def _brute_force(scores, sizes, budget, cycles=None):
  """The best bits by (score, bytes, cycles, bits in alphabetical order)."""
  names = sorted(scores)
  best = None
  for bits in itertools.product(*[sorted(scores[n]) for n in names]):
    score = sum(scores[n][b] for n, b in zip(names, bits))
    size = sum(sizes[n][b] for n, b in zip(names, bits))
    cycle = sum(cycles[n][b] for n, b in zip(names, bits)) if cycles else 0
    if budget.bytes is not None and size > budget.bytes:
      continue
    if budget.cycles is not None and cycle > budget.cycles:
      continue
    key = (round(score, 9), size, cycle, bits)
    if best is None or key < best:
      best = key
  return best and (best, dict(zip(names, best[3])))


@st.composite
def problems(draw):
  names = [f'layer{i}/kernel' for i in range(draw(st.integers(1, 4)))]
  widths = draw(
    st.lists(st.sampled_from(lib.BITS), min_size=1, max_size=4, unique=True)
  )
  # Few distinct values, so that ties abound.
  table = lambda values: {
    n: {b: draw(st.sampled_from(values)) for b in widths} for n in names
  }
  # And bytes of which one more or less is a small share.
  base = draw(st.sampled_from([0, 0, 20_000_000]))
  return (
    table([0.0, 0.125, 0.5, 1.0, 3.0, -0.25]),
    table([base + size for size in (1, 2, 3, 5, 8, 1000)]),
    table([1, 2, 4, 7]),
    len(names) * base + draw(st.integers(1, 40)),
    draw(st.one_of(st.none(), st.integers(1, 20))),
  )


@settings(max_examples=60)
@given(problems())
def test_equals_brute_force_ties_included(problem):
  scores, sizes, cycles, byte_budget, cycle_budget = problem
  budget = lib.Budget(byte_budget, cycle_budget)
  expected = _brute_force(scores, sizes, budget, cycles)
  if expected is None:
    with pytest.raises(lib.InfeasibleError):
      lib.allocate(scores, sizes, budget, cycles)
    return
  result = lib.allocate(scores, sizes, budget, cycles)
  assert result.bits == expected[1]
  assert result.score == pytest.approx(expected[0][0])
  assert result.bytes == expected[0][1] and result.cycles == expected[0][2]


@settings(max_examples=40)
@given(problems())
def test_front_equals_brute_force(problem):
  scores, sizes, _, _, _ = problem
  front = pareto.pareto_front(scores, sizes)
  names = sorted(scores)
  points = {
    (
      sum(sizes[n][b] for n, b in zip(names, bits)),
      sum(scores[n][b] for n, b in zip(names, bits)),
    )
    for bits in itertools.product(*[scores[n] for n in names])
  }
  expected, best = [], np.inf
  for cost, score in sorted(points):
    if score < best:
      expected.append((cost, score))
      best = score
  assert list(zip(front.cost_P, front.score_P)) == expected
  for point, (cost, score) in zip(front, expected):
    assert point.bytes == cost and point.score == pytest.approx(score)
    assert point.bytes == sum(sizes[n][b] for n, b in point.bits.items())


def _network(layers=8, seed=0):
  """Scores as a Transformer gives them: over nine orders of magnitude."""
  rng = np.random.default_rng(seed)
  shapes = {'embedding': 4096 * 192}
  for i in range(layers):
    for part, size in (('q', 192**2), ('k', 192**2), ('ffn', 192 * 768)):
      shapes[f'layer{i}/{part}'] = size
  scores = {
    n: {b: float(rng.lognormal() * size * 4.0**-b) for b in lib.BITS}
    for n, size in shapes.items()
  }
  sizes = {
    n: {b: size * b // 8 + 4 for b in lib.BITS} for n, size in shapes.items()
  }
  return scores, sizes


def test_program_and_front_agree_on_a_real_sized_network():
  scores, sizes = _network()
  front = pareto.pareto_front(scores, sizes)
  full = sum(4 * (s[8] - 4) for s in sizes.values())
  for ratio in (4.0, 7.3, 11.0, 16.0, 25.0):
    budget = full / ratio
    solved = lib.allocate(scores, sizes, budget)
    assert solved.score == pytest.approx(front.within(budget).score, rel=1e-9)
    assert solved.bytes <= budget
  assert np.all(np.diff(front.cost_P) > 0)
  assert np.all(np.diff(front.score_P) < 0)
  with pytest.raises(lib.InfeasibleError, match='below the smallest'):
    front.within(front.cost_P[0] - 1)


def test_byte_budget_is_kept_to_the_byte():
  # One byte too many must not pass as a rounding error of the solver.
  scores = {'a': {1: 1.0, 8: 0.0}, 'b': {1: 1.0, 8: 0.0}}
  sizes = {'a': {1: 1, 8: 10**9}, 'b': {1: 1, 8: 10**9 + 7}}
  assert lib.allocate(scores, sizes, 2 * 10**9 + 6).bits == {'a': 8, 'b': 1}
  assert lib.allocate(scores, sizes, 2 * 10**9 + 7).bits == {'a': 8, 'b': 8}


def test_order_of_the_tables_does_not_matter():
  scores, sizes = _network(layers=3)
  for table in scores.values():  # every tensor alike: ties everywhere
    table.update({b: 2.0**-b for b in lib.BITS})
  shuffled = {n: scores[n] for n in reversed(list(scores))}
  budget = sum(s[3] for s in sizes.values())
  first = lib.allocate(scores, sizes, budget)
  assert first == lib.allocate(shuffled, sizes, budget)


def test_trivial_budget_gives_every_tensor_its_best():
  scores, sizes = _network(layers=2)
  scores['layer0/q'][3] = -1.0
  result = lib.allocate(scores, sizes, 1e12)
  assert result.bits.pop('layer0/q') == 3
  assert set(result.bits.values()) == {16}


def test_exact_minimum_budget_is_feasible():
  scores, sizes = _network(layers=2)
  smallest = sum(s[1] for s in sizes.values())
  assert set(lib.allocate(scores, sizes, smallest).bits.values()) == {1}


def test_both_budgets_bind():
  scores = {n: {b: 1.0 / b for b in (1, 8)} for n in 'ab'}
  sizes = {'a': {1: 1, 8: 8}, 'b': {1: 1, 8: 4}}
  cycles = {'a': {1: 1, 8: 2}, 'b': {1: 1, 8: 9}}
  choose = lambda *budget: (
    lib.allocate(scores, sizes, lib.Budget(*budget), cycles).bits
  )
  assert choose(12, 11) == {'a': 8, 'b': 8}
  assert choose(9, None) == {'a': 1, 'b': 8}
  assert choose(None, 9) == {'a': 8, 'b': 1}
  assert choose(8, 9) == {'a': 1, 'b': 1}


def test_pinned_and_forbidden_widths():
  scores = {'norm': {16: 0.0}, 'w': {1: np.inf, 2: 5.0, 4: 1.0}}
  sizes = {'norm': {16: 10}, 'w': {1: 1, 2: 2, 4: 4}}
  assert lib.allocate(scores, sizes, 13).bits == {'norm': 16, 'w': 2}
  with pytest.raises(ValueError, match='smallest possible total, 12'):
    lib.allocate(scores, sizes, 11)


def test_to_rules_names_each_tensor():
  params = {'params': {'a.b': np.ones((2, 2)), 'axb': np.ones((2, 2))}}
  specs = rules.resolve(lib.to_rules({'a.b': 3, 'axb': 16}), params)
  assert {n: spec.bits for n, spec in specs.items()} == {'a.b': 3}


def test_front_against_cycles():
  scores = {'a': {1: 1.0, 8: 0.0}}
  front = pareto.pareto_front(
    scores, {'a': {1: 1, 8: 8}}, {'a': {1: 5, 8: 3}}, against='cycles'
  )
  assert len(front) == 1 and front[0].bits == {'a': 8}
  assert front[-1] == front.within(3)
  with pytest.raises(ValueError, match='below the smallest'):
    front.within(2)
  with pytest.raises(IndexError):
    front[1]


def test_front_refuses_to_explode():
  rng = np.random.default_rng(0)
  scores = {
    f't{i}': {b: rng.lognormal() * 4.0**-b for b in lib.BITS} for i in range(12)
  }
  sizes = {
    n: {b: b * rng.integers(10**6, 10**7) for b in lib.BITS} for n in scores
  }
  with pytest.raises(ValueError, match='max_points=50'):
    pareto.pareto_front(scores, sizes, max_points=50)


@pytest.mark.parametrize(
  'scores, sizes, budget, message',
  [
    ({}, {}, 1, 'scores is empty'),
    ({'a': {1: 0.0}}, {'b': {1: 1}}, 1, 'different tensors'),
    ({'a': {}}, {'a': {}}, 1, 'no widths'),
    ({'a': {9: 0.0}}, {'a': {9: 1}}, 1, 'width of 9 bits'),
    ({'a': {8: 0.0}}, {'a': {4: 1}}, 1, "sizes of 'a' lacks 8 bits"),
    ({'a': {8: np.nan}}, {'a': {8: 1}}, 1, "score of 'a' at 8 bits is nan"),
    ({'a': {8: np.inf}}, {'a': {8: 1}}, 1, "every width of 'a'"),
    ({'a': {8: 0.0}}, {'a': {8: -1}}, 1, 'zero or more'),
    ({'a': {8: 0.0}}, {'a': {8: 9}}, 8, 'budget of 8 bytes is below'),
    ({'a': {8: 0.0}}, {'a': {8: 9}}, np.nan, 'is below'),
    ({'a': {8: 0.0}}, {'a': {8: 9}}, lib.Budget(), 'neither'),
    ({'a': {8: 0.0}}, {'a': {8: 9}}, lib.Budget(cycles=1), 'table `cycles`'),
  ],
)
def test_bad_input(scores, sizes, budget, message):
  with pytest.raises(ValueError, match=message):
    lib.allocate(scores, sizes, budget)
