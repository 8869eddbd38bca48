"""Choosing from a recognizer's N-best lists by language models."""

from __future__ import annotations

import functools
import os
import pathlib
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
from s8bqat_jax.data import text as text_lib
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
    dev: str,
    scored: str,
    folder: os.PathLike | str,
    *,
    text: text_lib.TextCorpus | None = None,
    words: int = 0,
    beam: int = 16,
    batch_size: int = 16,
  ):
    """Loads what there is; nothing is searched before it is asked for.

    Args:
      recognizer: its packed file.
      dev: spec of the data that weights are tuned on.
      scored: spec of the data that is scored.
      folder: where lists are kept.
      text: what n-grams count and a lexicon's words come from.
      words: if any, the search spells words alone, so many of the text's most
        frequent ones.
      beam: hypotheses of a list.
      batch_size: utterances searched at a time.

    Raises:
      ValueError: if there are to be words, and no text, or the recognizer
        does not spell.
    """
    self.folder, self.beam = pathlib.Path(folder), beam
    self.hash = results.file_hash(pathlib.Path(recognizer))
    self._model, params, _ = integer_recognizer.load(recognizer)
    if words and text is None:
      raise ValueError('a lexicon takes its words from a text: give both')
    if words:
      spells = nbest.check_spells(self._model.tokenizer, recognizer)
    self._search = nbest.Search(self._model, params, beam, batch_size)
    self.dev, self.scored = data.load(dev), data.load(scored)
    # What is tuned on or scored must be as new to it as to the others.
    of_text = text.lines if text is not None else ()
    self.lines = nbest.unheard(of_text, self.dev, self.scored)
    self._weights: dict[str, float] = {}
    self._automaton = None
    if words:
      self._weights, self._automaton = nbest.lexicon(
        (), self.lines, words, spells
      )

  @functools.cached_property
  def searched(self) -> tuple[nbest.NBests, nbest.NBests]:
    """The lists of development data and of what is scored, as they are found.

    Raises:
      stage_cache.Busy: if another process is at it.
    """
    return self._found(self.dev), self._found(self.scored)

  @functools.cached_property
  def lists(self) -> tuple[nbest.NBests, nbest.NBests]:
    """The same by the recognizer's scores, without a lexicon's weights."""
    dev, scored = self.searched
    return (
      nbest.unweighted(dev, self._weights),
      nbest.unweighted(scored, self._weights),
    )

  def about(self, corpus: data.Corpus) -> dict[str, Any]:
    """Returns all that the lists of a corpus depend on."""
    about = {
      'recognizer': self.hash,
      'data': corpus_lib.cache_key(corpus),
      'beam': self.beam,
    }
    if self._weights:
      weights = sorted(self._weights.items())
      about['lexicon'] = corpus_lib.fingerprint(weights)
    return about

  def _found(self, corpus: data.Corpus) -> nbest.NBests:
    about = self.about(corpus)
    folder = self.folder / f'nbest-{results.config_hash(about)}'

    def work(folder):
      lists = self._search(corpus, self._automaton)
      nbest.write_lists(folder / _LISTS, lists)
      return {'data': corpus.spec}

    stage_cache.cached(folder, about, work)
    return nbest.read_lists(folder / _LISTS)

  @functools.cached_property
  def texts(self) -> list[str]:
    """All that a language model will be asked about."""
    heard = {c.text for lists in self.lists for n in lists for c in n}
    return sorted(heard | {*self.dev.texts_N})

  def counted(self, order: int) -> mixture.Known:
    """Returns an n-gram of the text, without what is scored or tuned on."""
    model = ngram.NGram(self.lines, order)
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
    """What the search would say."""
    return scoring.of_texts(self.scored, nbest.choose(self.searched[1]))

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
