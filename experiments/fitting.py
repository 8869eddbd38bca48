"""Training as every experiment does it: a model, a method, a folder.

What a recognizer and a language model have in common: `init`, `loss`, a config
and a tokenizer. The model file is that of the best development score, of what
the method encodes.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import pathlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

from s8bqat_jax import files, quantizers, training
from s8bqat_jax.artifacts import packed_file, qtensor
from s8bqat_jax.training import mesh as mesh_lib
from s8bqat_jax.training import paths

Params = Any
# Of a config: what a run may be resumed with another value of.
_FREE = ('train.steps', 'train.log_every', 'train.save_every')


class Model(Protocol):
  """What can be trained."""

  def init(self, key: jax.Array) -> Params:
    """Returns fresh params."""

  def loss(
    self, params: Params, batch: Any, key: jax.Array
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Returns the training loss and further metrics."""


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
  model: Model,
  quantizer: quantizers.Quantizer | None = None,
  learned_tx: optax.GradientTransformation | None = None,
) -> quantizers.Step:
  """Returns the training step of a config.

  Args:
    config: the whole config.
    model: whose loss it is.
    quantizer: the method; None trains in floating point. Its metrics appear
      as `quantizer/...` in the steps that close a logging period.
    learned_tx: optimizer of what the method learns beside the params.
  """
  tx, schedule = make_optimizer(config.train)
  step = quantizers.make_step(
    quantizers.on_main(model.loss),
    tx,
    quantizer,
    learning_rate=schedule,
    learned_tx=learned_tx,
    clip_norm=config.train.clip_norm,
    average_decay=config.train.average_decay,
  )
  if quantizer is None:
    return step

  def update(state, batch):
    state, values = step.update(state, batch)
    due = state.step == config.train.steps
    if config.train.log_every:
      due |= state.step % config.train.log_every == 0
    found = lambda: quantizer.metrics(state.params, state.quantizer)
    # The loop takes means over what is finite.
    absent = lambda: jax.tree.map(
      lambda x: jnp.full(x.shape, jnp.nan, x.dtype), jax.eval_shape(found)
    )
    own = jax.lax.cond(due, found, absent)
    return state, values | {f'quantizer/{k}': v for k, v in own.items()}

  return quantizers.Step(step.init, update)


def compiled_step(step: quantizers.Step) -> Any:
  """Returns the jitted update of a step, which takes its state's memory.

  On a CPU LLVM's dear passes are left out: steps are as quick without them,
  and compile in three quarters of the time, which a short training is much of.

  Args:
    step: from `make_step`.
  """
  options: dict[str, bool | int | str] = {}
  unoptimized = jax.config.read('jax_disable_most_optimizations')
  if jax.default_backend() == 'cpu' and not unoptimized:
    options['xla_backend_optimization_level'] = 1
    options['xla_llvm_disable_expensive_passes'] = True
  return jax.jit(step.update, donate_argnums=0, compiler_options=options)


def seconds_per_step(
  config: ml_collections.ConfigDict, model: Model, batches: Iterable[Any]
) -> float:
  """Returns the mean time of floating-point steps, compilation aside.

  Args:
    config: the whole config.
    model: whose steps they are.
    batches: the first of each shape is not counted.
  """
  step = make_step(config, model)
  update = compiled_step(step)
  params = jax.jit(model.init)(jax.random.key(0))
  state = jax.tree.map(jnp.copy, step.init(params))
  seen, seconds = set(), []
  for batch in batches:
    start = time.perf_counter()
    state, _ = jax.block_until_ready(update(state, batch))
    shapes = str(jax.tree.map(np.shape, batch))
    if shapes in seen:
      seconds.append(time.perf_counter() - start)
    seen.add(shapes)
  return float(np.mean(seconds))


def shipped(state: quantizers.TrainState, quantizer=None) -> Any:
  """Returns what a file of this state holds: its average, encoded.

  Args:
    state: of a training, with an average or without.
    quantizer: the method; None leaves the floats.
  """
  params, own = mesh_lib.local_copy(quantizers.averaged(state))
  return params if quantizer is None else jax.jit(quantizer.encode)(params, own)


@dataclasses.dataclass(frozen=True)
class Best:
  """The best model of a run by development data, kept as a packed file.

  Attributes:
    evaluate: (decoded params) -> scores on development data.
    score: which of them, lower being better, decides.
    file: name of the file.
    about: of the model, for the file's config.
    tokenizer: its config.
  """

  evaluate: Callable[[Params], Mapping[str, float]]
  score: str
  file: str
  about: Mapping[str, Any]
  tokenizer: Mapping[str, Any]

  def so_far(self, path: pathlib.Path) -> float:
    """Returns the score of the file that an earlier session left."""
    if not path.exists():
      return math.inf
    return packed_file.load(path).config['dev'][self.score]

  def save(
    self, path: pathlib.Path, encoded: Params, dev: Mapping[str, float]
  ) -> None:
    """Writes the file, with the scores that it is there for."""
    packed_file.save(
      path,
      jax.device_get(encoded),
      config={**self.about, 'dev': dev},
      tokenizer=self.tokenizer,
    )


class Watch(NamedTuple):
  """What is only looked at while training: it decides nothing.

  A checkpoint is saved at each look, as at each evaluation.

  Attributes:
    evaluate: (decoded params) -> scores on development data, for the metrics.
    score: one of them.
    every: steps; after the last one too. 0 for never.
  """

  evaluate: Callable[[Params], Mapping[str, float]]
  score: str
  every: int


def fit(
  config: ml_collections.ConfigDict,
  workdir: os.PathLike | str,
  model: Model,
  batches: Callable[[int], Iterator[Any]],
  *,
  best: Best | None = None,
  watch: Watch | None = None,
  quantizer: quantizers.Quantizer | None = None,
  params: Params = None,
  learned_tx: optax.GradientTransformation | None = None,
  progress: bool | str = True,
  free: Sequence[str] = (),
) -> training.Outcome:
  """Trains, or goes on training, in `workdir`.

  Args:
    config: with `seed`, a `train` section, and all that the folder's runs must
      agree in.
    workdir: created if it is missing.
    model: what to train.
    batches: (step) -> iterator over the batches of that step and later ones.
    best: what is scored on development data and kept; None for nothing: what
      counts is the state that training ends in.
    watch: what is scored besides, where there is no `best`.
    quantizer: the method; None trains in floating point. Development scores
      and the model file are those of what it encodes.
    params: where training starts; fresh ones if None.
    learned_tx: optimizer of what the method learns beside the params.
    progress: whether to show a progress bar; a text is its label.
    free: as for `claim`.

  Returns:
    How training ended.

  Raises:
    ValueError: if `params` do not fit the model, or `workdir` holds a run of
      another config.
  """
  if watch is not None and (best is not None or config.train.patience):
    raise ValueError(
      'watch decides nothing: expected no `best` and no config.train.patience'
    )
  mesh = training.make_mesh()
  mesh_lib.check_batch_size(config.data.batch_size, mesh)
  step = make_step(config, model, quantizer, learned_tx)
  workdir = paths.local(workdir)
  lead = jax.process_index() == 0
  if lead:
    claim(config, workdir, free)
  key = jax.random.key(config.seed)
  if params is None:
    params = jax.jit(model.init)(key)
  else:
    check_fits(params, jax.eval_shape(model.init, key))
  if lead and progress:
    print(f'{sum(x.size for x in jax.tree.leaves(params)):,} parameters')

  def on_mesh(start):
    for batch in batches(start):
      yield training.shard_batch(batch, mesh)

  # Not under jit: a method's fits are programs of their own, each compiled
  # once. Copies, because a donated buffer must be nobody else's.
  state = jax.tree.map(jnp.copy, step.init(params, config.seed))
  state = training.replicate(state, mesh)
  checkpoints = training.Checkpoints(workdir / 'checkpoints')
  evaluate, score, every = None, '', config.train.eval_every
  if best is not None:
    evaluate = _scored_and_kept(best, workdir / best.file, quantizer, lead)
    score = best.score
  if watch is not None and watch.every:
    score, every = watch.score, watch.every

    def evaluate(state):
      return watch.evaluate(qtensor.decode(shipped(state, quantizer)))

  try:
    return training.train(
      compiled_step(step),
      state,
      on_mesh,
      training.LoopConfig(
        steps=config.train.steps,
        log_every=config.train.log_every,
        eval_every=every,
        save_every=config.train.save_every,
        patience=config.train.patience,
      ),
      checkpoints=checkpoints,
      metrics_dir=workdir,
      evaluate=evaluate,
      score=score,
      progress=progress,
    )
  finally:
    checkpoints.close()


def check_fits(params: Any, fresh: Any) -> None:
  """Raises ValueError naming the tensors that a config does not expect.

  Args:
    params: what training would start from; arrays or their shapes.
    fresh: what the config's model has.
  """
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


def _scored_and_kept(best: Best, path: pathlib.Path, quantizer, lead: bool):
  """Returns (state) -> scores, which keeps the best state's model."""
  lowest = best.so_far(path)

  def evaluate(state):
    nonlocal lowest
    encoded = shipped(state, quantizer)
    scores = best.evaluate(qtensor.decode(encoded))
    if lead and scores[best.score] < lowest:
      lowest = scores[best.score]
      best.save(path, encoded, {'step': int(state.step), **scores})
    return scores

  return evaluate


def claim(
  config: ml_collections.ConfigDict,
  workdir: os.PathLike | str,
  free: Sequence[str] = (),
) -> None:
  """Stores a run's config in its directory, which is made.

  Args:
    config: of the run; it may train for more or fewer steps than it did, and
      log and save at others.
    workdir: where the run goes.
    free: further fields that may differ, such as 'data.eval'.

  Raises:
    ValueError: if the directory holds a run of another config.
  """
  workdir = paths.local(workdir)
  workdir.mkdir(parents=True, exist_ok=True)
  path = workdir / 'config.json'
  text = config.to_json(indent=1, sort_keys=True)
  if path.exists() and path.read_text() != text:
    stored, wanted = json.loads(path.read_text()), json.loads(text)
    differing = sorted(_differences(stored, wanted))
    if set(differing) - {*_FREE, *free}:
      raise ValueError(
        f'{workdir} holds a run of another config (differs in '
        f'{", ".join(differing[:6])}): choose another --workdir, or the config '
        'in its config.json'
      )
  files.write_text(path, text)


def _differences(a: Any, b: Any, path: str = '') -> set[str]:
  if isinstance(a, dict) and isinstance(b, dict):
    found = set()
    for key in set(a) | set(b):
      name = f'{path}.{key}' if path else key
      found |= _differences(a.get(key), b.get(key), name)
    return found
  return set() if a == b else {path}
