"""Windows of text, training batches, perplexity."""

import math
import weakref

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from s8bqat_jax.data import text
from s8bqat_jax.data import text_windows as lib
from s8bqat_jax.speech import tokenizers


def _corpus(*lines):
  return text.TextCorpus(lines, 'test', 'test')


class TestBatches:
  def test_an_epoch_predicts_no_token_twice(self):
    ids = np.arange(1, 104, dtype=np.int32)
    batches = lib.TrainBatches(ids, batch_size=3, length=8, seed=5)
    assert batches.steps_per_epoch == 3  # 11 windows
    seen = np.concatenate([batches(step)[:, 1:].ravel() for step in range(3)])
    assert len(set(seen.tolist())) == len(seen) == 72
    for step in range(3):
      assert np.all(np.diff(batches(step)) == 1)
      assert batches(step).dtype == np.int32

  def test_a_pure_function_of_seed_and_step(self):
    ids = np.arange(200, dtype=np.int32)
    make = lambda seed: lib.TrainBatches(ids, 2, 8, seed)
    a, b = make(0), make(0)
    for step in (30, 0, 7):
      np.testing.assert_array_equal(a(step), b(step))
    assert not np.array_equal(a(0), make(1)(0))
    assert not np.array_equal(a(0), a(a.steps_per_epoch))

  def test_what_is_kept_is_its_own(self):
    batches = lib.TrainBatches(np.arange(200, dtype=np.int32), 2, 8)
    batches(0)
    kept = weakref.ref(batches)
    del batches
    assert kept() is None

  @pytest.mark.parametrize('batch_size, length', [(0, 8), (4, 0)])
  def test_sizes_of_nothing(self, batch_size, length):
    with pytest.raises(ValueError, match='expected at least 1'):
      lib.TrainBatches(np.zeros(99, np.int32), batch_size, length)

  def test_too_short(self):
    with pytest.raises(ValueError, match='at least 40 are needed'):
      lib.TrainBatches(np.zeros(39, np.int32), batch_size=4, length=8)
    lib.TrainBatches(np.zeros(40, np.int32), batch_size=4, length=8)(0)


@settings(max_examples=60)
@given(
  st.integers(0, 40), st.integers(1, 9), st.integers(0, 8), st.integers(1, 4)
)
def test_windows_predict_every_token_once_with_context(n, length, ctx, batch):
  ctx = min(ctx, length - 1)
  ids = np.arange(1, n + 1, dtype=np.int32)
  predicted = []
  for tokens, weights in lib.windows(ids, length, ctx, batch):
    assert tokens.shape == (batch, length + 1)
    for row, keep in zip(tokens, weights):
      for t in np.flatnonzero(keep):
        predicted.append(row[t + 1])
        # Position t sees t + 1 tokens, the one before the target last.
        assert t + 1 > min(ctx, row[t + 1] - 1) and row[t] == row[t + 1] - 1
  assert predicted == list(range(1, n + 1))


def test_score_of_a_unigram_model_is_its_entropy():
  tokenizer = text.word_vocabulary(_corpus('a a b'))
  stream = text.encode(tokenizer, _corpus('a a b', 'a'))
  counts = np.bincount(stream.ids_N, minlength=4)
  nll = -np.log(np.maximum(counts, 1e-9) / counts.sum())
  found, total = lib.score(
    lambda tokens: nll[tokens[:, 1:]], stream, length=3, context=1, batch_size=2
  )
  expected = -np.sum(counts * np.log(np.maximum(counts, 1) / counts.sum()))
  assert total == pytest.approx(expected)
  assert found == pytest.approx(math.exp(expected / 6))


def test_perplexity_does_not_depend_on_the_units():
  """A uniform model over characters, scored per word."""
  corpus = _corpus('ab ab')
  characters = tokenizers.CharTokenizer.from_texts(corpus.lines)
  stream = text.encode(characters, corpus)
  uniform = lambda tokens: np.full(tokens[:, 1:].shape, math.log(4))
  found, _ = lib.score(uniform, stream, length=4, context=2)
  # Six symbols (five characters, one end) of two bits, over three words.
  assert found == pytest.approx(2 ** (6 * 2 / 3))


def test_bad_scores():
  stream = text.encode(text.word_vocabulary(_corpus('a')), _corpus('a'))
  with pytest.raises(FloatingPointError, match='NaN'):
    lib.score(lambda tokens: tokens[:, 1:] * np.nan, stream)
  with pytest.raises(ValueError, match='no words'):
    lib.perplexity(1.0, 0)
  with pytest.raises(ValueError, match='context=4'):
    next(lib.windows(np.zeros(3), 4, 4, 1))
  assert lib.perplexity(1e9, 1) == math.inf
  assert math.isnan(lib.perplexity(math.nan, 1))
