"""Choosing from a recognizer's N-best lists by language models."""

from __future__ import annotations

import functools
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax

from experiments import (
  integer_recognizer,
  language_model,
  nbest,
  results,
  scoring,
  stage_cache,
)
from s8bqat_jax import data
from s8bqat_jax.data import corpus as corpus_lib
from s8bqat_jax.speech import mixture, ngram

_LISTS = 'lists.jsonl'


class Chosen(NamedTuple):
  """What one language model takes from the lists.

  Attributes:
    hypotheses: of the data that is scored.
    about: `weight` and `word_bonus`, tuned on development data, and in a
      mixture the `share` of the language model.
  """

  hypotheses: list[scoring.Hypothesis]
  about: dict[str, float]


class Rescorer:
  """The N-best lists of one recognizer, each corpus a stage of its own."""

  def __init__(
    self,
    recognizer: os.PathLike | str,
    dev: data.Corpus,
    scored: data.Corpus,
    folder: os.PathLike | str,
    *,
    beam: int = 16,
    batch_size: int = 16,
    words: int = 0,
    sentences: Sequence[str] = (),
  ):
    """Searches nothing before it is asked for.

    Args:
      recognizer: its packed file.
      dev: data that weights are tuned on.
      scored: data that is scored.
      folder: where lists are kept.
      beam: hypotheses of a list.
      batch_size: utterances searched at a time.
      words: if any, the search spells words of a lexicon alone, of so many,
      sentences: which are the most frequent ones of these.
    """
    self.path, self.folder = pathlib.Path(recognizer), pathlib.Path(folder)
    self.dev, self.scored = dev, scored
    self.beam, self._batch_size = beam, batch_size
    self._words, self._sentences = words, sentences

  @functools.cached_property
  def lists(self) -> tuple[nbest.NBests, nbest.NBests]:
    """The lists of development data, and of what is scored."""
    loaded, params, _ = integer_recognizer.load(self.path)
    search = nbest.Search(loaded, params, self.beam, self._batch_size)
    if not self._words:
      return self._found(search, self.dev), self._found(search, self.scored)
    weights, automaton = nbest.lexicon(
      (), self._sentences, self._words, loaded.tokenizer
    )

    def spelled(corpus):
      return nbest.unweighted(search(corpus, automaton), weights)

    return self._found(spelled, self.dev), self._found(spelled, self.scored)

  def about(self, corpus: data.Corpus) -> dict[str, Any]:
    """Returns all that the lists of a corpus depend on."""
    about = {
      'recognizer': results.file_hash(self.path),
      'data': corpus_lib.cache_key(corpus),
      'beam': self.beam,
    }
    if self._words:
      about['lexicon'] = corpus_lib.fingerprint([self._words, *self._sentences])
    return about

  def _found(
    self, search: Callable[[data.Corpus], nbest.NBests], corpus: data.Corpus
  ) -> nbest.NBests:
    about = self.about(corpus)
    folder = self.folder / f'nbest-{results.config_hash(about)}'

    def work(folder):
      nbest.write_lists(folder / _LISTS, search(corpus))
      return {'data': corpus.spec}

    stage_cache.cached(folder, about, work)
    return nbest.read_lists(folder / _LISTS)

  @functools.cached_property
  def texts(self) -> list[str]:
    """All that a language model will be asked about."""
    heard = {c.text for lists in self.lists for n in lists for c in n}
    return sorted(heard | {*self.dev.texts_N})

  def counted(self, lines: Sequence[str], order: int) -> mixture.Known:
    """Returns an n-gram of lines; `nbest.unheard` takes out what is scored."""
    model = ngram.NGram(lines, order)
    return mixture.Known({t: model.word_log_probs(t) for t in self.texts})

  def known(
    self, made: language_model.LanguageModel, params: Any
  ) -> mixture.Known:
    """Returns what a Transformer says of all these texts."""
    scorer = language_model.Scorer(made)
    words = scorer.word_log_probs(jax.device_put(params), self.texts)
    return mixture.Known(dict(zip(self.texts, words)))

  def mixed(
    self, first: mixture.Known, second: mixture.Known
  ) -> mixture.Mixture:
    """Returns the two, averaged as fits the development transcripts best."""
    return mixture.fit(first, second, self.dev.texts_N)

  def first_of_lists(self) -> list[scoring.Hypothesis]:
    """What the recognizer alone would say."""
    return scoring.of_texts(self.scored, nbest.choose(self.lists[1]))

  def best_of_lists(self) -> list[scoring.Hypothesis]:
    """What no choice from the lists can be better than."""
    best = nbest.oracle(self.lists[1], self.scored.texts_N)
    return scoring.of_texts(self.scored, best)

  def chosen(self, language: ngram.LanguageModel) -> Chosen:
    """Returns the choice of a language model, tuned on development data."""
    dev, scored = self.lists
    weight, bonus = nbest.tune(dev, language, self.dev.texts_N)
    texts = nbest.choose(scored, language, weight, bonus)
    about = {'weight': weight, 'word_bonus': bonus}
    if isinstance(language, mixture.Mixture):
      about['share'] = language.share
    return Chosen(scoring.of_texts(self.scored, texts), about)
