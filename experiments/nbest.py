"""N-best lists of a recognizer, and choosing from them."""

from __future__ import annotations

import collections
import itertools
import json
import math
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence

import jax
import numpy as np
from tqdm import tqdm

from experiments import recognizer as recognizer_lib
from experiments import scoring
from s8bqat_jax import data, files
from s8bqat_jax.speech import beam, ngram, tokenizers, wer

_WEIGHTS = (0.0, 0.1, 0.2, 0.3, 0.45, 0.6, 0.8, 1.0)
_BONUSES = (-3.0, -2.0, -1.0, 0.0, 0.5, 1.0, 1.5, 2.0, 3.0)
# Share of a word's unigram log-probability that a search by lexicon sees; the
# ordering of the N-best takes it out again.
_SEARCH_WEIGHT = 0.3
NBests = Sequence[Sequence[ngram.Candidate]]


class Search:
  """A compiled beam search of one recognizer."""

  def __init__(
    self, model: recognizer_lib.Recognizer, params, size: int, batch_size: int
  ):
    self._model, self._params = model, jax.device_put(params)
    self._size, self._batch_size = size, batch_size
    self._run = jax.jit(self._search)

  def _search(self, params, audio_BxS, lengths_B, automaton):
    enc, lengths = self._model.encode(params, audio_BxS, lengths_B)
    return beam.beam_search(
      self._model.transducer(params),
      enc,
      lengths,
      beam=self._size,
      automaton=automaton,
    )

  def __call__(
    self, corpus: data.Corpus, automaton: beam.Automaton | None = None
  ) -> list[list[ngram.Candidate]]:
    """Returns the N-best transcripts of every utterance."""
    loader = data.make_loader(
      corpus,
      scoring.NoLabels(),
      batch_size=self._batch_size,
      num_buckets=3,
      train=False,
    )
    found: list[list[ngram.Candidate]] = [[] for _ in range(len(corpus))]
    steps = loader.steps_per_epoch
    for batch in tqdm(loader.batches(0, steps), total=steps, unit='batch'):
      found_B = jax.device_get(
        self._run(
          self._params, batch['audio_BxS'], batch['audio_lengths_B'], automaton
        )
      )
      for row, index in enumerate(batch['indices_B'].tolist()):
        if index >= 0:
          found[index] = self._candidates(*(x[row] for x in found_B))
    return found

  def _candidates(self, labels_KxN, lengths_K, scores_K):
    decode = self._model.tokenizer.decode
    return [
      ngram.Candidate(decode(labels[:length].tolist()).strip(), float(score))
      for labels, length, score in zip(labels_KxN, lengths_K, scores_K)
      if math.isfinite(score)
    ]


def choose(
  nbests: NBests,
  language: ngram.LanguageModel | None = None,
  weight: float = 0.0,
  bonus: float = 0.0,
) -> list[str]:
  """Returns the best transcript of each list, '' of an empty one."""
  if language is not None:
    nbests = [
      ngram.rescore(n, language, weight=weight, word_bonus=bonus)
      for n in nbests
    ]
  return [n[0].text if n else '' for n in nbests]


def tune(
  nbests: NBests, language: ngram.LanguageModel, references: Sequence[str]
) -> tuple[float, float]:
  """Returns the weight and the bonus of the fewest word errors.

  Of pairs that make as many, the one that changes least.
  """

  def cost(pair: tuple[float, float]) -> tuple[int, float]:
    found = wer.count_errors(references, choose(nbests, language, *pair))
    return int(found.word_errors_N.sum()), sum(map(abs, pair))

  return min(itertools.product(_WEIGHTS, _BONUSES), key=cost)


def read_lists(path: pathlib.Path) -> list[list[ngram.Candidate]]:
  """Reads N-best lists, one JSON line an utterance."""
  lines = path.read_text().splitlines()
  return [[ngram.Candidate(*c) for c in json.loads(line)] for line in lines]


def write_lists(path: pathlib.Path, lists: NBests) -> None:
  """Writes N-best lists, whole or not at all."""
  path.parent.mkdir(parents=True, exist_ok=True)
  files.write_text(path, ''.join(json.dumps(n) + '\n' for n in lists))


def oracle(lists: NBests, references: Sequence[str]) -> list[str]:
  """Returns the transcript of each list with the fewest errors."""
  flat = [(r, c.text) for n, r in zip(lists, references) for c in n]
  if not flat:
    return [''] * len(lists)
  errors = iter(wer.count_errors(*map(list, zip(*flat))).word_errors_N.tolist())
  counts = [[next(errors) for _ in n] for n in lists]
  return [n[int(np.argmin(c))].text if n else '' for n, c in zip(lists, counts)]


def unheard(lines: Iterable[str], *corpora: data.Corpus) -> list[str]:
  """Returns the lines that are no transcript of any of these corpora."""
  heard = {text for corpus in corpora for text in corpus.texts_N}
  return [line for line in lines if line not in heard]


def unigrams(
  texts: Sequence[str], sentences: Sequence[str], most: int, characters: str
) -> dict[str, float]:
  """Returns the lexicon's words and their log-probabilities.

  Args:
    texts: of the task.
    sentences: of anything.
    most: words taken from the sentences.
    characters: what a recognizer can spell; words with others are left out.
  """
  spelled = set(characters).issuperset
  own, other = (
    collections.Counter(w for t in lines for w in t.split() if spelled(w))
    for lines in (texts, sentences)
  )
  words = [*own, *(w for w, _ in other.most_common(most) if w not in own)]
  # Half of the probability is the task's own, half the text file's.
  sizes = max(1, own.total()), max(1, other.total())
  seen = 0.1 if own else 0.0
  prob = {
    w: 0.5 * (own[w] + seen) / sizes[0] + 0.5 * other[w] / sizes[1]
    for w in words
  }
  total = sum(prob.values())
  return {w: math.log(p / total) for w, p in prob.items()}


def lexicon(
  texts: Sequence[str],
  sentences: Sequence[str],
  most: int,
  tokenizer: tokenizers.CharTokenizer,
) -> tuple[dict[str, float], beam.Automaton]:
  """Returns words with what the search scores them by, and what spells them.

  Args:
    texts: of the task, see `unigrams`,
    sentences: and others.
    most: words taken from the sentences.
    tokenizer: of the recognizer, in whose characters words are spelled.

  Raises:
    ValueError: if there are none.
  """
  words = unigrams(texts, sentences, most, tokenizer.characters)
  weights = {w: _SEARCH_WEIGHT * p for w, p in words.items()}
  return weights, ngram.lexicon(weights, tokenizer)


def check_spells(
  tokenizer: tokenizers.Tokenizer, path: os.PathLike | str
) -> tokenizers.CharTokenizer:
  """Returns the tokenizer of a recognizer, if a lexicon can spell with it.

  Args:
    tokenizer: of the recognizer.
    path: its file, for the error.

  Raises:
    ValueError: if its labels are not characters, with a space among them.
  """
  if not isinstance(tokenizer, tokenizers.CharTokenizer):
    raise ValueError(
      f'{path}: a lexicon spells words in characters; this model was trained '
      "with another tokenizer than config.tokenizer='char'"
    )
  if ' ' not in tokenizer.characters:
    raise ValueError(
      f'{path}: a lexicon spells words with a space between them; this model '
      f'knows the characters {tokenizer.characters!r}'
    )
  return tokenizer


def unweighted(nbests: NBests, lexicon: Mapping[str, float]) -> NBests:
  """Takes the lexicon's weights out of the scores, and orders by what is left.

  Args:
    nbests: of words of the lexicon.
    lexicon: weights by word; without any the lists are as they were.
  """
  if not lexicon:
    return nbests
  return [
    sorted(
      (
        ngram.Candidate(text, score - sum(lexicon[w] for w in text.split()))
        for text, score in nbest
      ),
      key=lambda candidate: -candidate.score,
    )
    for nbest in nbests
  ]


def named_files(given: Sequence[str]) -> dict[str, str]:
  """Reads `NAME=FILE` or `FILE`, which goes by its folder and its name.

  Raises:
    ValueError: if two of them have one name.
  """
  files: dict[str, str] = {}
  for item in given:
    name, equals, file = item.partition('=')
    if not equals:
      path = pathlib.Path(item)
      name, file = f'{path.parent.name}/{path.stem}'.lstrip('/'), item
    if name in files:
      raise ValueError(
        f'--lm: {files[name]} and {file} go by one name, {name!r}; give them '
        'as NAME=FILE'
      )
    files[name] = file
  return files
