"""The stages of a job: float model, fine-tuning, evaluation, each done once."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import ml_collections

from experiments import (
  cells,
  costs,
  evaluations,
  fitting,
  integer_recognizer,
  keys,
  methods,
  results,
  scoring,
  trainer,
)
from experiments import recognizer as recognizer_lib
from experiments.stage_cache import RESULT, STAGE, Interrupted, cached
from s8bqat_jax import data, quantizers
from s8bqat_jax.artifacts import packed_file, qtensor

SHIPPED = 'shipped.safetensors'
HYPOTHESES = 'hypotheses.jsonl'
_CALIBRATION_BATCHES = 16


@dataclasses.dataclass(frozen=True)
class Stages:
  """Where the stages of an experiment are kept.

  Attributes:
    config: of configs/s8bqat.
    root: folder of the experiment's stages.
    float_runs: folders of other experiments' float models, to take those of
      the same config from.
    published: folder of evaluations that need no training any more.
    publishes: whether to add to them what is evaluated here.
    progress: whether to show progress bars.
  """

  config: ml_collections.ConfigDict
  root: pathlib.Path
  float_runs: tuple[pathlib.Path, ...] = ()
  published: pathlib.Path | None = None
  publishes: bool = False
  progress: bool = True

  def __post_init__(self):
    if self.publishes and self.published is None:
      raise ValueError('publishes needs `published`, the folder to write into')

  def folder(self, kind: str, name: str, about: Mapping[str, Any]):
    """Returns the folder of a stage that depends on `about`."""
    return self.root / kind / f'{_plain(name)}-{results.config_hash(about)}'

  def float_folder(self, job: cells.Job) -> pathlib.Path:
    """Returns where the float model of a job is, or will be."""
    config = cells.float_config(self.config, job)
    name = f'{job.cell.size}-{job.part}-{config.seed}'
    about = keys.about(config)
    own = self.folder('float', name, about)
    if (own / RESULT).exists():
      return own  # What else is here was made of it.
    return _same_stage(self.float_runs, about) or own

  def float_model(self, job: cells.Job) -> pathlib.Path:
    """Returns the file of the float model, trained if it is not there."""
    folder = self.float_folder(job)
    config = cells.float_config(self.config, job)

    def work(folder):
      label = self.progress and f'{job.cell.size}/float-{job.part}'
      outcome = trainer.run(config, folder, label)
      if outcome.reason == 'interrupted':
        raise Interrupted
      return {'steps': config.train.steps, 'best': outcome.best}

    cached(folder, keys.about(config), work)
    return folder / recognizer_lib.MODEL_FILE

  def ranges(self, job: cells.Job) -> dict[str, Any]:
    """Returns the ranges of the float model's activations, calibrated once."""
    config = cells.float_config(self.config, job)

    def work(folder):
      del folder
      recognizer, params, _ = recognizer_lib.load(self.float_model(job))
      return {'ranges': _calibrate(config, recognizer, params)}

    self.float_model(job)  # Its seconds are not this stage's.
    about = self._after_float(job, keys.about(config))
    name = f'{job.cell.size}-{job.part}-{config.seed}'
    folder = self.folder('ranges', name, about)
    return cached(folder, about, work)['ranges']

  def train_folder(self, job: cells.Job) -> pathlib.Path:
    """Returns where the fine-tuning of a job is, or will be."""
    return self.folder('train', _name(job), self._about_training(job))

  def train(self, job: cells.Job) -> dict[str, Any]:
    """Fine-tunes and encodes; the result says where the model file is.

    Methods without training are encoded at once.
    """

    def work(folder):
      recognizer, encoded, ranges = self._encoded(job, folder)
      config = cells.train_config(self.config, job)
      about = {'recognizer': recognizer.to_config()}
      if ranges is not None:
        about[integer_recognizer.CONFIG_KEY] = ranges
      packed_file.save(
        folder / SHIPPED,
        encoded,
        config={
          **about,
          'method': json.loads(config.method.to_json()),
          'corpus': config.data.train,
        },
        tokenizer=recognizer.tokenizer.to_config(),
      )
      # While the weights are in memory anyway.
      self._recognize(job, folder, recognizer, encoded, ranges)
      trains = methods.METHODS[job.cell.method].trains
      steps = config.train.steps if trains else 0
      return {'steps': steps, 'float_steps': config.float_steps}

    self.float_model(job)  # Its seconds are not this stage's.
    folder = self.train_folder(job)
    result = cached(folder, self._about_training(job), work)
    return {**result, 'file': str(folder / SHIPPED)}

  def in_training(self, job: cells.Job) -> pathlib.Path:
    """Returns what training code, without the file, recognizes of the split.

    A split that training did not end with is decoded with the weights of its
    last checkpoint.
    """
    self.train(job)
    folder = self.train_folder(job)
    config = cells.train_config(self.config, job)
    path = folder / trained_hypotheses(data.load(config.data[job.split]))
    if not path.exists():
      self._recognize(job, folder, *self._encoded(job, folder))
    return path

  def _encoded(self, job: cells.Job, folder: pathlib.Path):
    """Returns (recognizer, encoded weights, ranges or None), trained."""
    config = cells.train_config(self.config, job)
    method = methods.METHODS[job.cell.method]
    recognizer, params, _ = recognizer_lib.load(self.float_model(job))
    params = jax.device_put(params)
    recognizer = dataclasses.replace(
      recognizer,
      model=recognizer.model.clone(dropout=config.model.dropout),
      ctc_weight=config.train.ctc_weight,
    )
    rounds = eight_bit_activations(config)
    ranges = None
    quantizer = make_quantizer(config)
    if method.trains:
      trained = dataclasses.replace(
        recognizer, augment=recognizer_lib.make_augment(config.augment)
      )
      if rounds:
        ranges = self.ranges(job)
        trained = integer_recognizer.twin(trained, params, ranges)
      outcome = trainer.run(
        config,
        folder,
        self.progress and str(job),
        quantizer=quantizer,
        recognizer=trained,
        params=params,
        scored=False,
      )
      if outcome.reason == 'interrupted':
        raise Interrupted
      encoded = fitting.shipped(outcome.state, quantizer)
    elif quantizer is None:
      encoded = params
    else:
      encoded = quantizer.encode(params, quantizer.init(params))
    recognizer, encoded = recognizer_lib.shipped(recognizer, encoded)
    encoded = jax.device_get(encoded)
    if rounds and not method.trains:
      # Training would have moved the weights into the ranges of before.
      ranges = _calibrate(config, recognizer, encoded)
    return recognizer, encoded, ranges

  def _recognize(self, job, folder, recognizer, encoded, ranges) -> None:
    """Writes what the weights in memory recognize of the job's split."""
    if ranges is not None:
      recognizer = integer_recognizer.twin(recognizer, encoded, ranges)
    config = cells.train_config(self.config, job)
    corpus = data.load(config.data[job.split])
    scorer = scoring.Scorer(recognizer, corpus)
    scoring.write_hypotheses(
      folder / trained_hypotheses(corpus),
      list(scorer.hypotheses(qtensor.decode(encoded))),
    )

  def evaluate(self, job: cells.Job) -> dict[str, Any]:
    """Scores the packed file of a job, training it first if need be.

    What was trained elsewhere and is published is not trained again.

    Returns:
      The metrics of the part, with "folder" (of the hypotheses), "spec" and
      "fingerprint" of the data.

    Raises:
      RuntimeError: if the file is recognized otherwise than the weights in
        memory were when training ended.
    """
    if not self.trained(job) and (kept := self._published(job)):
      return self._read_published(kept)
    trained = self.train(job)
    path = pathlib.Path(trained['file'])
    config = cells.train_config(self.config, job)
    corpus = data.load(config.data[job.split])
    about = {
      'file': results.file_hash(path),
      'spec': corpus.spec,
      'fingerprint': corpus.fingerprint,
      'machines': costs.fingerprint(),
    }

    def work(folder):
      recognizer, params, about = integer_recognizer.load(path)
      scorer = scoring.Scorer(recognizer, corpus)
      hypotheses = sorted(scorer.hypotheses(jax.device_put(params)))
      scoring.write_hypotheses(folder / HYPOTHESES, hypotheses)
      in_training = scoring.read_hypotheses(self.in_training(job))
      different = [a.utt_id for a, b in zip(hypotheses, in_training) if a != b]
      if len(hypotheses) != len(in_training) or different:
        raise RuntimeError(
          f'{path}: {len(different)} of {len(hypotheses)} hypotheses differ '
          f'from those in training code, such as that of {different[:1]}'
        )
      scores = scoring.summarize(hypotheses)
      if self.progress:
        print(f'{job}: WER {scores["wer"]:.2f}%', flush=True)
      packed = packed_file.load(path)
      ranges = about.get(integer_recognizer.CONFIG_KEY)
      costs_per_second = {}
      if ranges is not None:
        recognizer = dataclasses.replace(recognizer, transformed=None)
        symbols = costs.symbols_per_second(recognizer, corpus)
        costs_per_second = costs.per_second(
          recognizer, packed.tree, ranges, symbols
        )
      return {
        **costs_per_second,
        **scores,
        'parameters': sum(x.size for x in jax.tree.leaves(params)),
        'equal_to_training': len(hypotheses),
        'spec': corpus.spec,
        'fingerprint': corpus.fingerprint,
      }

    folder = self.folder('eval', _name(job), about)
    result = cached(folder, about, work)
    metrics = {
      **result,
      **_sizes(path),
      'folder': str(folder),
      'steps': trained['steps'],
      'float_steps': trained['float_steps'],
      'wall_seconds': trained['seconds'] + result['seconds'],
      'config_hash': results.config_hash(config.to_dict()),
      'revision': trained['revision'],
      'float': results.file_hash(self.float_model(job))[:12],
    }
    if self.publishes and self.published is not None:
      self._publish(self.published, job, metrics)
    return metrics

  def _publish(
    self, root: pathlib.Path, job: cells.Job, metrics: Mapping[str, Any]
  ) -> None:
    """Keeps an evaluation for those who have not trained its model."""
    hypotheses = scoring.read_hypotheses(
      pathlib.Path(metrics['folder']) / HYPOTHESES
    )
    about = self._about_evaluation(job)
    evaluations.write(
      evaluations.path_of(root, _plain(_name(job)), about),
      about,
      metrics={k: v for k, v in metrics.items() if k != 'folder'},
      hypotheses=sorted(hypotheses),
    )

  def done(self, job: cells.Job) -> bool:
    """Whether no training is left; what is takes seconds."""
    return self.trained(job) or self._published(job) is not None

  def trained(self, job: cells.Job) -> bool:
    """Whether a job's training was done here."""
    return (self.train_folder(job) / RESULT).exists()

  def float_done(self, job: cells.Job) -> bool:
    """Whether the float model that a job starts from is there."""
    return (self.float_folder(job) / RESULT).exists()

  def _published(self, job: cells.Job) -> pathlib.Path | None:
    """Returns the published evaluation of a job, if there is one."""
    if self.published is None:
      return None
    about = self._about_evaluation(job)
    path = evaluations.path_of(self.published, _plain(_name(job)), about)
    return path if path.exists() else None

  def _read_published(self, path: pathlib.Path) -> dict[str, Any]:
    metrics, recognized = evaluations.read(path, 'metrics', 'hypotheses')
    hypotheses = [scoring.Hypothesis(*fields) for fields in recognized]
    folder = self.root / 'published' / path.name.removesuffix('.json.gz')
    scoring.write_hypotheses(folder / HYPOTHESES, hypotheses)
    return {**metrics, 'folder': str(folder)}

  def _about_evaluation(self, job: cells.Job) -> dict[str, Any]:
    """What figures depend on, wherever the data and the float model are."""
    config = cells.train_config(self.config, job)
    of_float = keys.anywhere(keys.about(cells.float_config(self.config, job)))
    # By its own config instead of by a hash of that with folders in it.
    tuned = {k: v for k, v in keys.about(config).items() if k != 'starts_from'}
    return {
      **keys.anywhere(tuned),
      'float': of_float,
      'calibration_batches': _CALIBRATION_BATCHES,
      'evaluated': keys.fingerprint(config.data[job.split]),
      'machines': costs.fingerprint(),
    }

  def _about_training(self, job: cells.Job) -> dict[str, Any]:
    """What a fine-tuning depends on."""
    config = cells.train_config(self.config, job)
    return self._after_float(job, keys.about(config))

  def _after_float(self, job: cells.Job, about: Mapping[str, Any]):
    """Adds what a float model that is there gives to the stages after it."""
    folder = self.float_folder(job)
    path = folder / recognizer_lib.MODEL_FILE
    return {
      **about,
      'float': results.file_hash(path) if (folder / RESULT).exists() else None,
      'calibration_batches': _CALIBRATION_BATCHES,
    }


def trained_hypotheses(corpus: data.Corpus) -> str:
  """Returns the name of the file of what training code recognizes."""
  return f'in_training-{corpus.fingerprint}.jsonl'


def eight_bit_activations(config: ml_collections.ConfigDict) -> bool:
  """Whether a config's cell computes with 8-bit activations."""
  if config.activation_bits not in (8, 32):
    raise ValueError(
      f'config.activation_bits is {config.activation_bits}, expected 8 or 32'
    )
  return config.activation_bits == 8 and config.method.bits <= 8


def make_quantizer(
  config: ml_collections.ConfigDict,
) -> quantizers.Quantizer | None:
  """Returns the quantizer that a config's `method` section names."""
  run = methods.run_of(config)
  name, bits = config.method.name, config.method.bits
  ctc, parts = config.train.ctc_weight > 0, config.method.get('part_bits')
  rules = methods.rules_for(bits, ctc, parts) if bits <= 8 else ()
  return methods.make(name, bits, rules, run, config.method.options.to_dict())


def _same_stage(
  roots: Sequence[pathlib.Path], about: Mapping[str, Any]
) -> pathlib.Path | None:
  """Returns a finished training of this config on this data, if there is one.

  The data may have been elsewhere.

  Args:
    roots: folders of stages, or of folders of them; the first comes first.
    about: what `keys.about` says of the config.
  """
  wanted = json.loads(json.dumps(keys.anywhere(about), default=str))
  folders = '*', '*/*', '*/float/*'  # the last: of several experiments
  for root in roots:
    for path in sorted(p for f in folders for p in root.glob(f'{f}/{STAGE}')):
      stored = json.loads(path.read_text())
      if path.with_name(RESULT).exists() and 'data' in stored:
        if keys.anywhere(stored) == wanted:
          return path.parent
  return None


def _plain(name: str) -> str:
  """Returns a name that a file can have."""
  return re.sub(r'[^\w.=-]+', '_', name).strip('_')


def _name(job: cells.Job) -> str:
  """Names a job but for its options: those at their defaults change nothing."""
  return f'{job.cell._replace(options=())}-{job.part}-{job.seed}'


def _sizes(path: pathlib.Path) -> dict[str, int]:
  """The sizes of a packed file: as it is, entropy-coded, and of tensors alone.

  They take no time, so that they are always those of today's format.
  """
  packed = packed_file.load(path)
  return {
    'bytes': path.stat().st_size,
    'encoded_bytes': packed_file.encoded_bytes(
      packed.tree, config=packed.config, tokenizer=packed.tokenizer
    ),
    'packed_bytes': packed_file.packed_bytes(packed.tree),
  }


def _calibrate(config, recognizer, params) -> Any:
  """Ranges over the first training batches; never over evaluation data."""
  loader = trainer.make_loader(config, data.load(config.data.train), recognizer)
  batches = loader.batches(0, _CALIBRATION_BATCHES)
  return integer_recognizer.calibrate(recognizer, params, batches)
