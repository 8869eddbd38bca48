"""A word n-gram and a lexicon: what a small recognizer borrows from text.

Use: search with `lexicon(...)` so that only known words come out, then order
the N-best by `rescore`, which adds the n-gram's log-probability.
"""

from __future__ import annotations

import collections
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, Protocol

import jax.numpy as jnp
import numpy as np

from s8bqat_jax.speech import beam, tokenizers

_START, _END = '<s>', '</s>'


class LanguageModel(Protocol):
  """What rescoring asks of a language model."""

  def log_prob(self, text: str) -> float:
    """Natural log-probability of a sentence, its end included."""


class NGram:
  """Interpolated Kneser-Ney with one discount.

  A word that was never seen has the probability that discounting leaves to
  it, spread evenly over the vocabulary and one unknown word.

  References:
    R. Kneser, H. Ney, Improved Backing-off for M-gram Language Modeling, 1995.
    S. Chen, J. Goodman, An Empirical Study of Smoothing Techniques for
    Language Modeling, 1999 (the interpolated form).
  """

  def __init__(
    self, texts: Iterable[str], order: int = 3, discount: float = 0.75
  ):
    """Counts.

    Args:
      texts: one sentence each.
      order: words in the longest n-gram.
      discount: subtracted from every count, between 0 and 1.
    """
    if order < 1 or not 0 < discount < 1:
      raise ValueError(
        f'expected order >= 1 and 0 < discount < 1, got order={order}, '
        f'discount={discount}'
      )
    self.order, self._discount = order, discount
    sentences = [text.split() for text in texts]
    self.words = frozenset(word for s in sentences for word in s)
    if not self.words:
      raise ValueError('no words to count: all texts are empty')
    # Shared by all words, the end of a sentence and the unknown word.
    self._unseen = 1.0 / (len(self.words | {_END}) + 1)
    # {context: {word: count}}. Below the highest order a count is that of
    # distinct words to the left, which is what backing off asks about.
    self._counts: dict[tuple[str, ...], collections.Counter[str]] = (
      collections.defaultdict(collections.Counter)
    )
    for sentence in sentences:
      padded = [_START] * (order - 1) + sentence + [_END]
      for i in range(order - 1, len(padded)):
        context = tuple(padded[i - order + 1 : i])
        self._counts[context][padded[i]] += 1
    for length in range(order - 1, 0, -1):
      longer = [c for c in self._counts if len(c) == length]
      for context in longer:
        for word in self._counts[context]:
          self._counts[context[1:]][word] += 1
    self._totals = {c: sum(n.values()) for c, n in self._counts.items()}

  def prob(self, word: str, context: Sequence[str]) -> float:
    """Probability of a word (or '</s>') after the words before it."""
    padded = [_START] * (self.order - 1) + list(context)
    used = padded[len(padded) - self.order + 1 :]
    probability = self._unseen
    for start in range(len(used), -1, -1):
      counts = self._counts.get(tuple(used[start:]))
      if counts is None:
        break
      total = self._totals[tuple(used[start:])]
      kept = max(counts.get(word, 0) - self._discount, 0.0)
      spared = self._discount * len(counts)
      probability = (kept + spared * probability) / total
    return probability

  def word_log_probs(self, text: str) -> np.ndarray:
    """Natural log-probabilities of a sentence's words, and of its end."""
    words = [*text.split(), _END]
    return np.log([self.prob(word, words[:i]) for i, word in enumerate(words)])

  def log_prob(self, text: str) -> float:
    """Natural log-probability of a sentence, its end included."""
    return float(self.word_log_probs(text).sum())


def lexicon(
  log_probs: Mapping[str, float], tokenizer: tokenizers.CharTokenizer
) -> beam.Automaton:
  """Accepts sequences of known words, spelled in characters.

  The words form a tree of labels, and each arc carries what it adds to the
  best weight still possible, so that a beam sees early which words are rare.

  Args:
    log_probs: weight of each word, at most 0: such as its unigram
      log-probability times a factor, or 0 for a plain word list.
    tokenizer: whose characters include the space.

  Returns:
    An automaton for `beam.beam_search`.

  Raises:
    ValueError: without words, or naming one that cannot be in a lexicon.
  """
  if not log_probs or ' ' not in tokenizer.characters:
    raise ValueError(
      'a lexicon needs at least one word, and a tokenizer with a space; got '
      f'{len(log_probs)} words and characters {tokenizer.characters!r}'
    )
  space = tokenizer.characters.index(' ') + 1
  children: list[dict[int, int]] = [{}]
  best, ends = [0.0], {}
  for word, weight in log_probs.items():
    if word.split() != [word]:
      raise ValueError(f'{word!r} is no word: expected letters and no space')
    if not weight <= 0:
      raise ValueError(f'word {word!r} has weight {weight}: expected 0 or less')
    node = 0
    for label in tokenizer.encode(word):
      if label not in children[node]:
        children[node][label] = len(children)
        children.append({})
        best.append(-math.inf)
      node = children[node][label]
      best[node] = max(best[node], weight)
    ends[node] = weight
  shape = len(children), tokenizer.vocab_size
  next_SxV = np.full(shape, -1, np.int32)
  weight_SxV = np.zeros(shape, np.float32)
  final_S = np.full(len(children), -math.inf, np.float32)
  final_S[0] = 0.0
  for node, arcs in enumerate(children):
    for label, child in arcs.items():
      next_SxV[node, label] = child
      weight_SxV[node, label] = best[child] - best[node]
  for node, weight in ends.items():
    next_SxV[node, space] = 0
    weight_SxV[node, space] = final_S[node] = weight - best[node]
  return beam.Automaton(*map(jnp.asarray, (next_SxV, weight_SxV, final_S)))


class Candidate(NamedTuple):
  """A transcript of an N-best list and its score."""

  text: str
  score: float


def rescore(
  candidates: Sequence[Candidate],
  language: LanguageModel,
  *,
  weight: float,
  word_bonus: float = 0.0,
) -> list[Candidate]:
  """Orders an N-best list by recognizer and n-gram together.

  Args:
    candidates: with the recognizer's log-probabilities.
    language: an n-gram, for instance.
    weight: of its log-probability; tune it on a development set.
    word_bonus: per word, against the n-gram's liking of short transcripts.

  Returns:
    The candidates with their new scores, best first.
  """
  scored = []
  for text, score in candidates:
    score += word_bonus * len(text.split())
    if weight:  # Zero times -inf would be NaN.
      score += weight * language.log_prob(text)
    scored.append(Candidate(text, score))
  return sorted(scored, key=lambda c: -c.score)
