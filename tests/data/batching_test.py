import itertools

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from s8bqat_jax.data import batching

RATE = 16_000

corpora = st.lists(
  st.tuples(st.floats(0.01, 20), st.integers(0, 60)), min_size=1, max_size=40
)


def _plan(corpus, batch_size=4, num_buckets=3, **options):
  durations_N = np.array([d for d, _ in corpus], np.float32)
  labels_N = np.array([n for _, n in corpus])
  stretch = options.get('stretch', 1.0)
  buckets = batching.make_buckets(
    durations_N,
    labels_N,
    batch_size=batch_size,
    num_buckets=num_buckets,
    stretch=stretch,
  )
  return batching.make_plan(durations_N, labels_N, buckets, **options)


@hypothesis.given(
  corpora, st.integers(1, 7), st.integers(1, 4), st.integers(0, 3)
)
def test_every_utterance_is_in_one_batch_that_holds_it(
  corpus, batch_size, num_buckets, epoch
):
  plan = _plan(corpus, batch_size, num_buckets, stretch=1.125)
  batches = plan.epoch(epoch)
  assert len(batches) == plan.steps_per_epoch
  assert len({b.bucket for b in batches}) <= num_buckets
  seen = []
  for batch in batches:
    assert batch.epoch == epoch
    assert batch.indices_B.shape == (batch_size,)
    for i in batch.indices_B[batch.indices_B >= 0]:
      duration, labels = corpus[i]
      assert duration * 1.125 * RATE <= batch.bucket.samples
      assert labels <= batch.bucket.labels
      seen.append(i)
  assert sorted(seen) == list(range(len(corpus)))


@hypothesis.given(corpora, st.integers(0, 5), st.integers(0, 30))
def test_resuming_anywhere_continues_the_same_sequence(corpus, seed, start):
  stop = start + 9
  whole = list(_plan(corpus, seed=seed).batches(0, stop))
  resumed = list(_plan(corpus, seed=seed).batches(start, stop))
  assert [b.step for b in resumed] == list(range(start, stop))
  for a, b in zip(whole[start:], resumed):
    assert a.epoch == b.epoch and a.bucket == b.bucket
    np.testing.assert_array_equal(a.indices_B, b.indices_B)


@hypothesis.given(corpora, st.sampled_from([1, 2, 3, 6]))
def test_processes_partition_each_batch(corpus, count):
  for batch in _plan(corpus, batch_size=6).epoch(0):
    parts = [batching.shard(batch, i, count) for i in range(count)]
    np.testing.assert_array_equal(np.concatenate(parts), batch.indices_B)


@hypothesis.given(corpora, st.integers(2, 5), st.integers(0, 3))
def test_sorting_keeps_every_utterance_and_its_neighborhood(
  corpus, together, epoch
):
  shuffled = _plan(corpus, batch_size=2)
  arranged = _plan(corpus, batch_size=2, sort_within=together)
  assert shuffled.steps_per_epoch == arranged.steps_per_epoch
  rng = np.random.default_rng([0, epoch])
  expected = []
  for k in range(len(shuffled.buckets)):
    members = np.flatnonzero(shuffled.bucket_N == k).astype(np.int32)
    rng.shuffle(members)
    for start in range(0, len(members), 2 * together):
      run = members[start : start + 2 * together].tolist()
      expected += sorted(run, key=lambda i: corpus[i][1])
  # Batches come in a drawn order, each of them as above.
  found = sorted(
    (b.bucket, [i for i in b.indices_B.tolist() if i >= 0])
    for b in arranged.epoch(epoch)
  )
  pairs = []
  for k, bucket in enumerate(shuffled.buckets):
    of = [i for i in expected if shuffled.bucket_N[i] == k]
    pairs += [(bucket, of[i : i + 2]) for i in range(0, len(of), 2)]
  assert found == sorted(pairs)


def test_sorting_shortens_what_batches_are_padded_to():
  rng = np.random.default_rng(0)
  corpus = [(1.0, int(n)) for n in rng.integers(1, 60, 400)]

  def padded(plan):
    longest = (max(corpus[i][1] for i in b.indices_B if i >= 0) for b in plan)
    return sum(longest)

  plain = _plan(corpus, batch_size=8, num_buckets=1)
  arranged = _plan(corpus, batch_size=8, num_buckets=1, sort_within=10)
  assert padded(arranged.epoch(0)) < 0.7 * padded(plain.epoch(0))
  order = lambda epoch: [b.indices_B.tolist() for b in arranged.epoch(epoch)]
  assert order(0) != order(1)


def test_epochs_and_seeds_differ_and_evaluation_does_not():
  corpus = [(1.0 + i / 10, i % 7) for i in range(50)]

  def order(plan, epoch):
    return [i for b in plan.epoch(epoch) for i in b.indices_B]

  plan = _plan(corpus)
  assert order(plan, 0) != order(plan, 1)
  assert order(plan, 0) != order(_plan(corpus, seed=1), 0)
  fixed = _plan(corpus, shuffle=False)
  assert order(fixed, 0) == order(fixed, 1)
  per_bucket = [i for i in order(fixed, 0) if i >= 0]
  assert per_bucket == sorted(per_bucket)  # durations ascend in this corpus


@hypothesis.given(
  st.lists(st.integers(1, 12), min_size=1, max_size=14), st.integers(1, 4)
)
def test_buckets_waste_the_least(tenths, num_buckets):
  durations_N = np.array(tenths) / 10 - 0.01
  buckets = batching.make_buckets(
    durations_N,
    np.zeros(len(tenths), int),
    batch_size=1,
    num_buckets=num_buckets,
  )
  ends = [b.samples for b in buckets]
  assert ends == sorted(set(ends)) and len(ends) <= num_buckets

  def held(ends):
    return sum(min(e for e in ends if e >= t * RATE // 10) for t in tenths)

  lengths = sorted({t * RATE // 10 for t in tenths})
  best = min(
    held([*inner, lengths[-1]])
    for k in range(min(num_buckets, len(lengths)))
    for inner in itertools.combinations(lengths[:-1], k)
  )
  assert held(ends) == best


def test_many_lengths_still_fit():
  durations_N = np.random.default_rng(0).uniform(0.5, 60, 3000)
  labels_N = np.full(3000, 5)
  buckets = batching.make_buckets(durations_N, labels_N, batch_size=8)
  plan = batching.make_plan(durations_N, labels_N, buckets)
  assert (plan.bucket_N >= 0).all()
  assert len(buckets) == 4


def test_left_out_utterances_are_in_no_epoch():
  corpus = [(1.0, 1)] * 5 + [(500.0, 900)]
  durations_N = np.array([d for d, _ in corpus])
  labels_N = np.array([n for _, n in corpus])
  buckets = batching.make_buckets(durations_N[:5], labels_N[:5], batch_size=2)
  plan = batching.make_plan(durations_N, labels_N, buckets, leave_out=[5])
  seen = [i for b in plan.epoch(0) for i in b.indices_B if i >= 0]
  assert sorted(seen) == [0, 1, 2, 3, 4]


def test_errors():
  with pytest.raises(ValueError, match='no utterance'):
    _plan([])
  with pytest.raises(ValueError, match='batch_size=0'):
    _plan([(1.0, 1)], batch_size=0)
  with pytest.raises(ValueError, match='sort_within=0'):
    _plan([(1.0, 1)], sort_within=0)
  with pytest.raises(ValueError, match='number 1 has 9.00 s and 2 labels'):
    batching.make_plan(
      np.array([1.0, 9.0]), np.array([1, 2]), [batching.Bucket(20_000, 4, 2)]
    )
  batch = _plan([(1.0, 1)] * 4).epoch(0)[0]
  with pytest.raises(ValueError, match='4 is not divisible by the 3'):
    batching.shard(batch, 0, 3)
  for index in (-1, 2):
    with pytest.raises(ValueError, match=f'process_index={index} of 2'):
      batching.shard(batch, index, 2)
