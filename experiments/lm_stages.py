"""The stages of the language model experiment, each done once.

float model -> training under a method -> packed file -> perplexity of the file.
A stage lives in a folder named by the hash of all that its outcome depends on,
the training text itself among it; a rerun goes on where the last one stopped.
"""

from __future__ import annotations

import functools
import itertools
import json
import pathlib
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np

from experiments import fields, fitting, language_model, methods, results
from experiments.stage_cache import RESULT, Interrupted, cached
from s8bqat_jax import quantizers, sensitivity
from s8bqat_jax.artifacts import packed_file, qtensor
from s8bqat_jax.data import text as text_lib
from s8bqat_jax.data import text_windows
from s8bqat_jax.quantizers import rules as rule_lib
from s8bqat_jax.quantizers import tree as trees
from s8bqat_jax.speech import tokenizers

SHIPPED = 'shipped.safetensors'
LINE_NATS = 'line_nats.npy'
Bits = Mapping[str, int]
Work = Callable[[pathlib.Path], dict[str, Any]]
_FLOAT = 32  # bits
# What of a config changes no weight: how texts are scored and what is logged.
# The training text counts by its fingerprint, wherever it is.
_SCORING = ('dev', 'eval', 'score_length', 'score_context')
_NO_WEIGHT = (
  'data.train',
  *(f'data.{name}' for name in _SCORING),
  'train.log_every',
  'train.save_every',
)


def make_tokenizer(
  name: str, corpus: text_lib.TextCorpus
) -> tokenizers.Tokenizer:
  """Returns the vocabulary that a config names.

  Raises:
    ValueError: if it is none of word, word:SIZE, subword:SIZE.
  """
  kind, _, size = name.partition(':')
  if kind == 'word' and (not size or size.isdigit()):
    return text_lib.word_vocabulary(corpus, int(size) if size else None)
  if kind == 'subword' and size.isdigit():
    return text_lib.subword_vocabulary(corpus, int(size))
  raise ValueError(
    f'config.vocabulary is {name!r}, expected word, word:SIZE or subword:SIZE'
  )


class Corpora:
  """The texts of a config, in its tokens."""

  def __init__(self, config: ml_collections.ConfigDict):
    train, dev, held_out = (
      text_lib.load_text(config.data[name]) for name in ('train', 'dev', 'eval')
    )
    self.tokenizer = make_tokenizer(config.vocabulary, train)
    self.train = text_lib.encode(self.tokenizer, train)
    self.dev = text_lib.encode(self.tokenizer, dev)
    self.eval = text_lib.encode(self.tokenizer, held_out)
    self.train_text, self.eval_text = train, held_out
    self.fingerprints = {
      text.spec: text.fingerprint for text in (train, dev, held_out)
    }


class Stages:
  """Where the stages of one config under one seed are kept, and what runs."""

  def __init__(
    self,
    config: ml_collections.ConfigDict,
    corpora: Corpora,
    root: pathlib.Path,
    seed: int = 0,
    progress: bool = True,
    float_runs: Sequence[pathlib.Path] = (),
  ):
    """Plans; nothing runs before it is asked for.

    Args:
      config: of configs/lm.
      corpora: its texts.
      root: folder of the stages.
      seed: of initialization, order and noise.
      progress: whether to show progress bars.
      float_runs: folders in which a float model of this config may be found,
        somewhere below, in a folder of its stage's name.
    """
    fields.check_train(config.train)
    if config.data.score_length > config.data.length:
      raise ValueError(
        f'config.data.score_length is {config.data.score_length}, longer than '
        f'the windows of training (config.data.length={config.data.length}): '
        'positions beyond them were never trained'
      )
    if config.train.patience or config.train.eval_every:
      # Then the development text decides when training stops, which the
      # folders of stages do not know of.
      raise ValueError(
        'config.train has eval_every or patience, expected 0: language models '
        'train for all of config.train.steps'
      )
    self.config = config.copy_and_resolve_references()
    self.config.seed = seed
    self.corpora, self.root, self.progress = corpora, root, progress
    self.float_runs = float_runs
    self.model = language_model.from_config(config.model, corpora.tokenizer)
    self.scorer = language_model.Scorer(self.model, config.data.score_length)
    self.float_config = self._section(
      'vocabulary', 'data', 'model', 'train', 'seed'
    )
    self.float_config.corpus = corpora.train_text.fingerprint
    self._check_row_scales()

  def _check_row_scales(self) -> None:
    """Raises ValueError unless they are scales of rows of embeddings."""
    pattern = self.config.row_scales
    shapes = jax.eval_shape(self.model.init, jax.random.key(0))
    names = [n for n in trees.named(shapes) if has_row_scales(pattern, n)]
    tables = [n for n in names if n.endswith('embedding')]
    if pattern and (not tables or names != tables):
      raise ValueError(
        f'config.row_scales is {pattern!r}, which matches {names[:3]}: '
        'expected tables of embeddings alone, such as embed/embedding; the '
        'rows of a kernel are what a product sums over, and no scale of a term '
        'can leave a sum'
      )

  def float_model(self) -> pathlib.Path:
    """Returns the file of the float model, trained if it is not there."""
    folder = self.float_folder()
    if not (folder / RESULT).exists():
      config = self.float_config
      work = lambda folder: self._train_into(folder, config, None, None)
      self.stage('float', 'float', config, work)
    return folder / SHIPPED

  def float_folder(self) -> pathlib.Path:
    """Returns where the float model is, or will be."""
    folder = self.folder('float', 'float', self.float_config)
    if (folder / RESULT).exists():
      return folder  # What else is here was made of it.
    for root in self.float_runs:
      for found in sorted(root.glob(f'**/{folder.name}/{RESULT}')):
        return found.parent
    return folder

  def float_params(self) -> Any:
    """Returns the float model's weights.

    Raises:
      ValueError: if their vocabulary is not that of the texts.
    """
    packed = packed_file.load(self.float_model())
    stored = tokenizers.tokenizer_from_config(packed.tokenizer or {})
    if stored != self.corpora.tokenizer:
      raise ValueError(
        f'{self.float_model()} has another vocabulary than the texts of this '
        'config: remove its folder, or give back the texts that it was made of'
      )
    return jax.device_put(packed.tree)

  def float_done(self) -> bool:
    """Whether the float model is there."""
    return (self.float_folder() / RESULT).exists()

  @functools.cache  # noqa: B019
  def float_hash(self) -> str:
    """Returns the hash of the float model, trained if it is not there."""
    return results.file_hash(self.float_model())

  def train_folder(self, method: str, bits: int | Bits) -> pathlib.Path:
    """Returns where a fine-tuning is, or will be."""
    return self.folder('train', method, self._with_method(method, bits))

  def about(self, method: str, bits: int | Bits) -> dict[str, Any]:
    """Returns what figures of a fine-tuning depend on, wherever its texts are.

    Its float model counts by config.

    Args:
      method: in `methods.METHODS`.
      bits: of every tensor, or of each; 32 for floats.
    """
    tuned = _content(self._with_method(method, bits))
    del tuned['starts_from']
    scoring = ('score_length', 'score_context')
    return {
      'float': _content(self.float_config),
      'tuned': tuned,
      'scored': {name: self.config.data[name] for name in scoring},
      'fingerprints': list(self.corpora.fingerprints.values()),
    }

  def done(self, method: str, bits: int | Bits) -> bool:
    """Whether a fine-tuning is done."""
    return (self.train_folder(method, bits) / RESULT).exists()

  def seconds_per_step(self, steps: int = 5) -> float:
    """Returns the time of a training step, without its compilation."""
    batches = map(self._batches(self.config), range(steps + 1))
    return fitting.seconds_per_step(self.config, self.model, batches)

  def train(self, method: str, bits: int | Bits) -> pathlib.Path:
    """Fine-tunes the float model under a method; returns the packed file.

    Args:
      method: in `methods.METHODS`.
      bits: of every tensor, or of each; 32 for floats.
    """
    self.float_model()  # Its seconds are not this stage's.
    config = self._with_method(method, bits)
    quantizer = make_quantizer(config, method, bits)

    def work(folder):
      params = self.float_params()
      if methods.METHODS[method].trains:
        return self._train_into(folder, config, quantizer, params)
      if quantizer is not None:
        params = quantizer.encode(params, quantizer.init(params))
      self._save(folder / SHIPPED, params)
      return {'steps': 0}

    self.stage('train', method, config, work)
    return self.folder('train', method, config) / SHIPPED

  def evaluate(self, path: pathlib.Path) -> dict[str, Any]:
    """Returns perplexities and sizes of a packed file."""

    packed, size = packed_file.load(path), path.stat().st_size

    def work(folder):
      params = jax.device_put(qtensor.decode(packed.tree))
      nats_N = self._nats(params, self.corpora.eval)
      lines_L = language_model.line_nats(self.corpora.eval, nats_N)
      np.save(folder / LINE_NATS, lines_L)
      ppl = text_windows.perplexity(nats_N.sum(), self.corpora.eval.words)
      if not np.isfinite(ppl):
        raise FloatingPointError(f'{path}: its perplexity is {ppl}')
      count = sum(x.size for x in jax.tree.leaves(params))
      floats = sum(
        np.asarray(x).nbytes
        for x in jax.tree.leaves(packed.tree, is_leaf=qtensor.is_qtensor)
        if not qtensor.is_qtensor(x)
      )
      return {
        'perplexity': ppl,
        'dev_perplexity': self._perplexity(params),
        'words': self.corpora.eval.words,
        'unknown_words': self.corpora.eval.unknown,
        'parameters': count,
        'float_bytes': floats,
      }

    trained = json.loads((path.parent / RESULT).read_text())
    about = {
      'file': str(path.name),
      'data': {k: self.config.data[k] for k in _SCORING},
      'fingerprints': self.corpora.fingerprints,
    }
    folder = path.parent / f'eval-{results.config_hash(about)}'
    found = cached(folder, about, work)
    # Sizes take no time, so that they are always those of today's format.
    return {
      **found,
      'bytes': size,
      'encoded_bytes': packed_file.encoded_bytes(
        packed.tree, config=packed.config, tokenizer=packed.tokenizer
      ),
      **results.ratios(found['parameters'], size),
      'revision': trained['revision'],
      'steps': trained['steps'],
      'wall_seconds': trained['seconds'] + found['seconds'],
      'line_nats': str(folder / LINE_NATS),
    }

  def _section(self, *names: str) -> ml_collections.ConfigDict:
    whole = self.config.to_dict()
    return ml_collections.ConfigDict({name: whole[name] for name in names})

  def finetuning(self) -> ml_collections.ConfigDict:
    """The config of training from the float model, without a method."""
    config = self.float_config.copy_and_resolve_references()
    # One config, trained on two machines, need not be the same model.
    config.starts_from = self.float_hash() if self.float_done() else None
    steps = config.train.steps
    config.train.update(self.config.finetune.train)
    config.train.steps = round(self.config.finetune.share * steps)
    config.train.eval_every = 0
    return config

  def _with_method(self, method: str, bits: int | Bits):
    config = self.finetuning()
    config.train.learning_rate = self.config.finetune.rates.get(
      method, config.train.learning_rate
    )
    named = bits if isinstance(bits, int) else dict(bits)
    config.method = ml_collections.ConfigDict(
      {
        'name': method,
        'bits': named,
        'options': methods.resolved(method, bits, {}),
        'final_phase': methods.final_phase(method, self.config.finetune.freeze),
      }
    )
    # Without rows of their own, and in floats, a folder is the one it was.
    if self.config.row_scales and named != _FLOAT:
      config.method.row_scales = self.config.row_scales
    return config

  def folder(self, kind: str, name: str, config) -> pathlib.Path:
    plain = name.replace(' ', '_')
    key = results.config_hash(_content(config))
    return self.root / kind / f'{plain}-{key}'

  def stage(
    self, kind: str, name: str, config: ml_collections.ConfigDict, work: Work
  ) -> dict[str, Any]:
    """Returns the result of a stage, working for it if it is not there.

    Args:
      kind: of the stage.
      name: for readers.
      config: what it depends on.
      work: as for `stage_cache.cached`.
    """
    folder = self.folder(kind, name, config)
    found = cached(folder, json.loads(config.to_json()), work)
    # A matrix of them fills a disk, and what they were for is written.
    shutil.rmtree(folder / 'checkpoints', ignore_errors=True)
    return found

  def _train_into(self, folder, config, quantizer, params) -> dict[str, Any]:
    """Trains a model and writes its file; returns the stage's result."""
    watch = None
    if params is not None:  # not for the float model, which nothing follows
      scores = lambda params: {'perplexity': self._perplexity(params)}
      every = self.config.finetune.watch_every
      watch = fitting.Watch(scores, 'perplexity', every)
    outcome = self.fit(folder, config, quantizer, params, watch=watch)
    self._save(folder / SHIPPED, fitting.shipped(outcome.state, quantizer))
    return {'steps': config.train.steps}

  def fit(self, folder, config, quantizer, params, **options):
    outcome = fitting.fit(
      config,
      folder,
      self.model,
      lambda start: map(self._batches(config), itertools.count(start)),
      quantizer=quantizer,
      params=params,
      progress=self.progress and folder.name,
      free=_NO_WEIGHT,
      **options,
    )
    if outcome.reason == 'interrupted':
      raise Interrupted
    return outcome

  def _batches(self, config) -> text_windows.TrainBatches:
    return text_windows.TrainBatches(
      self.corpora.train.ids_N,
      config.data.batch_size,
      config.data.length,
      seed=config.seed,
    )

  def _nats(self, params: Any, stream: text_lib.TokenStream) -> np.ndarray:
    context = self.config.data.score_context
    return self.scorer.token_nats(params, stream, context)

  def _perplexity(self, params: Any) -> float:
    dev = self.corpora.dev
    return text_windows.perplexity(self._nats(params, dev).sum(), dev.words)

  def file_bytes(self, tree: Any) -> int:
    """Returns the size of the file of these weights, everything counted."""
    return len(packed_file.serialize(jax.device_get(tree), **self._about()))

  def _save(self, path: pathlib.Path, tree: Any) -> None:
    packed_file.save(path, jax.device_get(tree), **self._about())

  def _about(self) -> dict[str, Any]:
    return {
      'config': {language_model.CONFIG_KEY: self.model.to_config()},
      'tokenizer': self.corpora.tokenizer.to_config(),
    }


def _content(config: ml_collections.ConfigDict) -> dict[str, Any]:
  """What of a stage's config changes weights."""
  content = json.loads(config.to_json())
  for name in _NO_WEIGHT:
    section, field = name.split('.')
    content[section].pop(field, None)
  return content


def make_quantizer(
  config: ml_collections.ConfigDict, method: str, bits: int | Bits
) -> quantizers.Quantizer | None:
  """Returns the Quantizer of a fine-tuning.

  Args:
    config: of the fine-tuning.
    method: in `methods.METHODS`.
    bits: of every tensor, or of each; 32 for floats.
  """
  run = methods.run_of(config)
  pattern = config.method.get('row_scales', '')
  if isinstance(bits, int):
    rules = rule_lib.as_rules(bits) if bits <= 8 else ()
    row_rules = (rule_lib.Rule(pattern, bits),) if pattern else ()
    return methods.make(method, bits, rules, run, row_rules=row_rules)
  of_rows = {n: b for n, b in bits.items() if has_row_scales(pattern, n)}
  if pattern and not of_rows:
    raise ValueError(
      f'config.row_scales is {pattern!r}, expected a pattern that matches one '
      f'of {", ".join(bits)}'
    )
  rest = {n: b for n, b in bits.items() if n not in of_rows}
  return methods.make(
    method,
    0,
    sensitivity.to_rules(rest),
    run,
    row_rules=sensitivity.to_rules(of_rows),
  )


def has_row_scales(pattern: str, name: str) -> bool:
  """Whether the rows of a weight have a scale each.

  Args:
    pattern: `config.row_scales`.
    name: of the weight.
  """
  return bool(pattern) and re.fullmatch(pattern, name) is not None
