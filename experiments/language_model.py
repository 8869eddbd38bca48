"""A language model: network and vocabulary wired into pure functions.

As a `Recognizer`, it holds no weights: they are always passed in, so that a
quantizer's views and a packed file's decoded weights take the same way.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import fields, results
from s8bqat_jax.artifacts import packed_file, qtensor
from s8bqat_jax.data import text as text_lib
from s8bqat_jax.data import text_windows
from s8bqat_jax.models import transformer_lm
from s8bqat_jax.speech import significance, tokenizers

Params = Any
CONFIG_KEY = 'language_model'


@dataclasses.dataclass(frozen=True)
class LanguageModel:
  """Pure functions of one language model.

  Attributes:
    model: the network.
    tokenizer: text to tokens, in words or sentencepiece units.
  """

  model: transformer_lm.TransformerLm
  tokenizer: tokenizers.Tokenizer

  def init(self, key: jax.Array) -> Params:
    """Returns fresh params."""
    return self.model.init(key, jnp.zeros((1, 2), jnp.int32))['params']

  def loss(
    self, params: Params, tokens_BxT1: jax.Array, key: jax.Array
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The training loss: mean negative log-likelihood of a token.

    Args:
      params: of the network.
      tokens_BxT1: as `data.text_windows.TrainBatches` makes them.
      key: of dropout.

    Returns:
      The loss in nats, and no further metrics.
    """
    logits = self.noisy_logits(params, tokens_BxT1[:, :-1], key)
    nll_BxT = transformer_lm.token_losses(logits, tokens_BxT1[:, 1:])
    return nll_BxT.mean(), {}

  def noisy_logits(
    self, params: Params, tokens_BxT: jax.Array, key: jax.Array
  ) -> jax.Array:
    """Returns logits_BxTxV of training: with dropout."""
    logits: Any = self.model.apply(
      {'params': params},
      tokens_BxT,
      deterministic=False,
      rngs={'dropout': key},
    )
    return logits

  def logits(self, params: Params, tokens_BxT: jax.Array) -> jax.Array:
    """Returns logits_BxTxV of the token after each."""
    logits: Any = self.model.apply({'params': params}, tokens_BxT)
    return logits

  def nll(self, params: Params, tokens_BxT1: jax.Array) -> jax.Array:
    """Returns nll_BxT of each next token, in nats."""
    logits = self.logits(params, tokens_BxT1[:, :-1])
    return transformer_lm.token_losses(logits, tokens_BxT1[:, 1:])

  def to_config(self) -> dict[str, Any]:
    """Returns the network's fields, JSON-able; the tokenizer has its own."""
    return fields.to_config(self.model)


def from_config(
  config: Mapping[str, Any], tokenizer: tokenizers.Tokenizer
) -> LanguageModel:
  """Returns the language model of a config section.

  Args:
    config: fields of `TransformerLm`, without the size of the vocabulary.
    tokenizer: which gives that.

  Raises:
    ValueError: naming a field that the network does not have.
  """
  network = transformer_lm.TransformerLm
  given = frozenset({'dtype', 'vocab_size'})
  made = fields.of_network(network, config, given)
  made['vocab_size'] = tokenizer.vocab_size
  return LanguageModel(network(**made), tokenizer)


def load(
  path: os.PathLike | str,
) -> tuple[LanguageModel, Params, dict[str, Any]]:
  """Opens a packed language model.

  Args:
    path: of a file that `experiments.mixed_precision_lm` wrote.

  Returns:
    The language model, its decoded params, and the file's config.

  Raises:
    ValueError: if the file is not a packed language model, or its vocabulary
      is not the network's.
  """
  packed = packed_file.load(path)
  if CONFIG_KEY not in packed.config or packed.tokenizer is None:
    raise ValueError(
      f'{path} holds no language model: expected a file that '
      'experiments.mixed_precision_lm wrote'
    )
  tokenizer = tokenizers.tokenizer_from_config(dict(packed.tokenizer))
  made = from_config(packed.config[CONFIG_KEY], tokenizer)
  params = qtensor.decode(packed.tree)
  transformer_lm.check_vocabulary(made.model, {'params': params})
  return made, params, packed.config


class Scorer:
  """Scores texts with one language model, under any weights."""

  def __init__(self, model: LanguageModel, length: int = 128):
    self.model, self._length = model, length
    self._nll = jax.jit(model.nll)
    self._spelled: dict[str, np.ndarray] = {}

  def token_nats(
    self, params: Params, stream: text_lib.TokenStream, context: int
  ) -> np.ndarray:
    """Returns the negative log-likelihood of every token of a stream."""
    return text_windows.token_nats(
      lambda tokens: self._nll(params, tokens),
      stream,
      length=self._length,
      context=context,
    )

  def word_log_probs(
    self, params: Params, sentences: Sequence[str], batch_size: int = 32
  ) -> list[np.ndarray]:
    """Log-probabilities of every word of sentences, and of their ends.

    Args:
      params: of the network.
      sentences: each is scored by itself, from the end of a sentence on.
      batch_size: sentences at a time.

    Returns:
      For each sentence an array [words + 1], in nats. Words that the
      vocabulary can't spell are scored as `<unk>`.
    """
    encoded = [self._encode(sentence) for sentence in sentences]
    order = np.argsort([len(ids) for ids, _ in encoded], kind='stable')
    found: list[np.ndarray] = [np.zeros(0)] * len(encoded)
    for first in range(0, len(order), batch_size):
      rows = order[first : first + batch_size]
      longest = max(len(encoded[i][0]) for i in rows)
      # Few shapes, so that few programs are compiled.
      width = -(-longest // 16) * 16 + 1
      tokens_BxT1 = np.full((batch_size, width), text_lib.END, np.int32)
      for row, i in enumerate(rows):
        ids = encoded[i][0]
        tokens_BxT1[row, 1 : len(ids) + 1] = ids
      nll_BxT = np.asarray(self._nll(params, tokens_BxT1), np.float64)
      for row, i in enumerate(rows):
        ids, word_of = encoded[i]
        found[i] = np.bincount(
          word_of, -nll_BxT[row, : len(ids)], minlength=word_of[-1] + 1
        )
    return found

  def _encode(self, sentence: str) -> tuple[np.ndarray, np.ndarray]:
    """Tokens with the end, and the number of the word that each is part of."""
    # Word by word: a sentencepiece unit never spans two of them.
    spelled = [self._spell(word) for word in sentence.split()]
    spelled.append(np.array([text_lib.END], np.int32))
    lengths = [len(ids) for ids in spelled]
    return np.concatenate(spelled), np.repeat(np.arange(len(spelled)), lengths)

  def _spell(self, word: str) -> np.ndarray:
    if word not in self._spelled:
      line = text_lib.TextCorpus((word,), '', '')
      stream = text_lib.encode(self.model.tokenizer, line)
      self._spelled[word] = stream.ids_N[:-1]
    return self._spelled[word]


def score(
  path: os.PathLike | str,
  corpus: text_lib.TextCorpus,
  length: int,
  context: int,
) -> tuple[dict[str, Any], np.ndarray]:
  """Returns metrics of a packed language model, and the nats of each line.

  Args:
    path: of the file.
    corpus: to score.
    length: tokens seen at once.
    context: how many of them only serve to predict the others.
  """
  made, params, _ = load(path)
  stream = text_lib.encode(made.tokenizer, corpus)
  nats_N = Scorer(made, length).token_nats(
    jax.device_put(params), stream, context
  )
  metrics = {
    'perplexity': text_windows.perplexity(nats_N.sum(), stream.words),
    'bytes': pathlib.Path(path).stat().st_size,
    'parameters': sum(x.size for x in jax.tree.leaves(params)),
    'words': stream.words,
    'unknown_words': stream.unknown,
  }
  return metrics, line_nats(stream, nats_N)


def articles(corpus: text_lib.TextCorpus) -> list[str]:
  """Returns what bootstraps resample: each line's article, or the line."""
  return [str(n) for n in corpus.articles or range(len(corpus.lines))]


def relative_perplexity(
  base_SxL: np.ndarray, other_SxL: np.ndarray, corpus: text_lib.TextCorpus
) -> dict[str, Any]:
  """Compares perplexities by their ratio.

  Args:
    base_SxL: nats of each line under each seed.
    other_SxL: those of what is compared.
    corpus: of the lines.

  Returns:
    `relative`, 10 for a perplexity that is 10% higher; its interval `ci95` and
    `p`, of no difference, by a bootstrap over seeds, articles and lines; and
    `relative_per_seed`.
  """
  words_L = [len(line.split()) + 1 for line in corpus.lines]
  rise_SxL = other_SxL - base_SxL
  found = significance.difference(
    base_SxL, other_SxL, words_L, articles(corpus)
  )
  percent = lambda nats: results.finite(100 * float(np.expm1(nats)))
  return {
    'relative': percent(found.value),
    'ci95': [percent(x) for x in found.interval],
    'p': found.p,
    'relative_per_seed': [percent(x) for x in rise_SxL.sum(1) / corpus.words],
  }


def line_nats(stream: text_lib.TokenStream, nats_N: np.ndarray) -> np.ndarray:
  """Sums the nats of tokens over the lines that they are in, ends included."""
  ends_N = stream.ids_N == text_lib.END
  return np.bincount(np.cumsum(ends_N) - ends_N, nats_N)
