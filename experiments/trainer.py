"""A training run as a function of its config; see `experiments.train`."""

from __future__ import annotations

import functools
import json
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from absl import flags, logging

from experiments import recognizer as recognizer_lib
from experiments import scoring
from s8bqat_jax import data, quantizers, training
from s8bqat_jax.artifacts import packed_file, qtensor
from s8bqat_jax.speech import features, normalize, tokenizers
from s8bqat_jax.training import mesh as mesh_lib


def make_tokenizer(name: str, texts: Sequence[str]) -> tokenizers.Tokenizer:
  """Returns the tokenizer that a config names, built from `texts`."""
  kind, _, size = name.partition(':')
  if kind == 'char' and not size:
    return tokenizers.CharTokenizer.from_texts(texts)
  if kind == 'word' and not size:
    return tokenizers.WordTokenizer.from_texts(texts)
  if kind == 'subword' and size.isdigit():
    return tokenizers.SubwordTokenizer.from_texts(texts, int(size))
  raise ValueError(
    f'config.tokenizer is {name!r}, expected char, word or subword:SIZE'
  )


def make_recognizer(
  config: ml_collections.ConfigDict, corpus: data.Corpus
) -> recognizer_lib.Recognizer:
  """Builds tokenizer and normalization from the training corpus.

  Args:
    config: the whole config.
    corpus: training data, whose texts make the vocabulary and whose first
      `config.data.normalize_utterances` recordings give the statistics.
  """
  tokenizer = make_tokenizer(config.tokenizer, corpus.texts_N)
  log_mel = features.LogMel(**config.features)
  model = recognizer_lib.make_model(
    config.model,
    vocab_size=tokenizer.vocab_size,
    ctc=config.train.ctc_weight > 0,
  )
  return recognizer_lib.Recognizer(
    model=model,
    log_mel=log_mel,
    normalization=_statistics(
      log_mel, corpus, config.data.normalize_utterances
    ),
    tokenizer=tokenizer,
    augment=data.SpecAugment(**config.augment) if config.augment else None,
    ctc_weight=config.train.ctc_weight,
  )


def make_optimizer(
  config: ml_collections.ConfigDict,
) -> tuple[optax.GradientTransformation, optax.Schedule]:
  """Returns AdamW without decay of vectors, and its schedule.

  Args:
    config: the `train` section.
  """
  schedule = optax.warmup_cosine_decay_schedule(
    init_value=0.0,
    peak_value=config.learning_rate,
    warmup_steps=min(config.warmup_steps, config.steps - 1),
    decay_steps=config.steps,
    end_value=config.learning_rate * config.final_rate,
  )
  tx = optax.adamw(
    schedule,
    b2=0.98,
    weight_decay=config.weight_decay,
    mask=lambda params: jax.tree.map(lambda x: x.ndim >= 2, params),
  )
  return tx, schedule


def make_step(
  config: ml_collections.ConfigDict,
  recognizer: recognizer_lib.Recognizer,
  quantizer: quantizers.Quantizer | None = None,
) -> quantizers.Step:
  """Returns the training step of a config.

  Args:
    config: the whole config.
    recognizer: whose loss it is.
    quantizer: the method; None trains in floating point. Its metrics appear
      as `quantizer/...` in the steps that close a logging period.
  """
  tx, schedule = make_optimizer(config.train)
  step = quantizers.make_step(
    quantizers.on_main(recognizer.loss),
    tx,
    quantizer,
    learning_rate=schedule,
    clip_norm=config.train.clip_norm,
    average_decay=config.train.average_decay,
  )
  if quantizer is None:
    return step

  def update(state, batch):
    state, values = step.update(state, batch)
    due = state.step % config.train.log_every == 0
    due |= state.step == config.train.steps
    found = lambda: quantizer.metrics(state.params, state.quantizer)
    # The loop takes means over what is finite.
    absent = lambda: jax.tree.map(
      lambda x: jnp.full(x.shape, jnp.nan, x.dtype), jax.eval_shape(found)
    )
    own = jax.lax.cond(due, found, absent)
    return state, values | {f'quantizer/{k}': v for k, v in own.items()}

  return quantizers.Step(step.init, update)


def make_loader(
  config: ml_collections.ConfigDict,
  corpus: data.Corpus,
  recognizer: recognizer_lib.Recognizer,
) -> data.Loader:
  """Returns the training batches of a config."""
  return data.make_loader(
    corpus,
    recognizer.tokenizer,
    batch_size=config.data.batch_size,
    num_buckets=config.data.num_buckets,
    seed=config.seed,
    perturb=data.Perturbation(**config.perturb) if config.perturb else None,
    samples_per_label=recognizer.samples_per_frame,
    process_index=jax.process_index(),
    process_count=jax.process_count(),
  )


def set_up() -> None:
  """Prepares the process of an entry point.

  Keeps the libraries' progress notes out, unless --verbosity asks, and freed
  memory in.
  """
  training.reuse_host_memory()
  if not flags.FLAGS['verbosity'].present:
    logging.set_verbosity(logging.WARNING)


def keep_compiled(folder: os.PathLike | str) -> None:
  """Lets compiled programs outlive the process, in `folder`.

  Evaluating many models of one shape, or resuming, then compiles nothing.
  """
  jax.config.update('jax_compilation_cache_dir', str(folder))
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.5)


def shipped(state: quantizers.TrainState, quantizer=None) -> Any:
  """Returns what a file of this state holds: its average, encoded.

  Args:
    state: of a training with an average.
    quantizer: the method; None leaves the floats.
  """
  average = mesh_lib.local_copy(state.average)
  if quantizer is None:
    return average
  return jax.jit(quantizer.encode)(
    average, mesh_lib.local_copy(state.quantizer)
  )


def run(
  config: ml_collections.ConfigDict,
  workdir: os.PathLike | str,
  progress: bool = True,
  *,
  quantizer: quantizers.Quantizer | None = None,
  recognizer: recognizer_lib.Recognizer | None = None,
  params: Any = None,
) -> training.Outcome:
  """Trains, or goes on training, in `workdir`.

  Args:
    config: see configs/demo/digits.py for the fields.
    workdir: created if it is missing.
    progress: whether to show a progress bar.
    quantizer: the method; None trains in floating point. Development scores
      and the model file are those of what it encodes.
    recognizer: what to train; made from config and corpus if None.
    params: where training starts; fresh ones if None.

  Returns:
    How training ended.

  Raises:
    ValueError: if `params` do not fit the config's model, among others.
  """
  mesh = training.make_mesh()
  mesh_lib.check_batch_size(config.data.batch_size, mesh)
  corpus, dev = data.load(config.data.train), data.load(config.data.dev)
  if recognizer is None:
    recognizer = make_recognizer(config, corpus)
  loader = make_loader(config, corpus, recognizer)
  step = make_step(config, recognizer, quantizer)
  workdir = pathlib.Path(workdir)
  lead = jax.process_index() == 0
  if lead:
    workdir.mkdir(parents=True, exist_ok=True)
    _write_config(config, workdir)

  fresh = recognizer.init(jax.random.key(config.seed))
  if params is None:
    params = fresh
  _check_fits(params, fresh)
  count = sum(x.size for x in jax.tree.leaves(params))
  if lead:
    print(
      f'{count:,} parameters; {corpus.durations_N.sum() / 3600:.2f} h in '
      f'{len(corpus):,} utterances, {loader.steps_per_epoch:,} steps an epoch'
    )
  scorer = scoring.Scorer(recognizer, dev, batch_size=config.data.batch_size)
  model_path = workdir / recognizer_lib.MODEL_FILE
  best = _best_so_far(model_path)

  def evaluate(state):
    nonlocal best
    encoded = shipped(state, quantizer)
    scores = scorer.rates(qtensor.decode(encoded))
    if lead and scores['wer'] < best:
      best = scores['wer']
      packed_file.save(
        model_path,
        jax.device_get(encoded),
        config={
          'recognizer': recognizer.to_config(),
          'dev': {'spec': dev.spec, 'step': int(state.step), **scores},
        },
        tokenizer=recognizer.tokenizer.to_config(),
      )
    return scores

  def batches(start):
    for batch in loader.batches(start):
      yield training.shard_batch(batch, mesh)

  state = training.replicate(
    jax.jit(step.init, static_argnums=1)(params, config.seed), mesh
  )
  checkpoints = training.Checkpoints(workdir / 'checkpoints')
  try:
    return training.train(
      jax.jit(step.update, donate_argnums=0),
      state,
      batches,
      training.LoopConfig(
        steps=config.train.steps,
        log_every=config.train.log_every,
        eval_every=config.train.eval_every,
        save_every=config.train.save_every,
        patience=config.train.patience,
      ),
      checkpoints=checkpoints,
      metrics_dir=workdir,
      evaluate=evaluate,
      progress=progress,
    )
  finally:
    checkpoints.close()
    if lead and loader.skipped:
      logging.warning('%d utterances were skipped', len(loader.skipped))
      (workdir / 'skipped.json').write_text(
        json.dumps(loader.skipped.reasons, indent=1)
      )


def _statistics(
  log_mel: features.LogMel, corpus: data.Corpus, utterances: int
) -> normalize.GlobalNorm:
  """Mean and deviation over utterances spread evenly over the corpus."""
  moments = normalize.zero_moments(log_mel.num_mels)
  extract = jax.jit(functools.partial(features.log_mel, log_mel))
  for i in range(0, len(corpus), max(1, len(corpus) // utterances)):
    pcm_S = corpus.pcm(i)
    # A few shapes only, so that few programs are compiled.
    padded = np.zeros((1, -(-len(pcm_S) // 32000) * 32000), np.int16)
    padded[0, : len(pcm_S)] = pcm_S
    feats, lengths = extract(padded, np.array([len(pcm_S)]))
    moments = normalize.accumulate(moments, feats, lengths)
  return normalize.global_norm(moments)


def _check_fits(params: Any, fresh: Any) -> None:
  """Raises ValueError naming the tensors that a config does not expect."""
  found, wanted = (
    {
      jax.tree_util.keystr(path, simple=True, separator='/'): x.shape
      for path, x in jax.tree_util.tree_leaves_with_path(tree)
    }
    for tree in (params, fresh)
  )
  wrong = [k for k in {**wanted, **found} if found.get(k) != wanted.get(k)]
  if wrong:
    name = wrong[0]
    raise ValueError(
      f'{len(wrong)} tensors to start from do not fit the config: {name} has '
      f'shape {found.get(name, "(absent)")}, expected '
      f'{wanted.get(name, "(none)")}. Start from a model of this config.model'
    )


def _best_so_far(path: pathlib.Path) -> float:
  if not path.exists():
    return float('inf')
  return packed_file.load(path).config['dev']['wer']


def _write_config(config: ml_collections.ConfigDict, workdir: pathlib.Path):
  """Stores the config; another one in the same directory is an error."""
  path = workdir / 'config.json'
  text = config.to_json(indent=1, sort_keys=True)
  if path.exists() and path.read_text() != text:
    stored, wanted = json.loads(path.read_text()), json.loads(text)
    differing = sorted(_differences(stored, wanted))
    if set(differing) - {'train.steps'}:
      raise ValueError(
        f'{workdir} holds a run of another config (differs in '
        f'{", ".join(differing[:6])}): choose another --workdir, or the config '
        'in its config.json'
      )
  partial = path.with_suffix('.partial')
  partial.write_text(text)
  os.replace(partial, path)


def _differences(a: Any, b: Any, path: str = '') -> set[str]:
  if isinstance(a, dict) and isinstance(b, dict):
    found = set()
    for key in set(a) | set(b):
      name = f'{path}.{key}' if path else key
      found |= _differences(a.get(key), b.get(key), name)
    return found
  return set() if a == b else {path}
