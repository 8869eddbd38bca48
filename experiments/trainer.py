"""Trains a recognizer as a function of its config; see `experiments.train`."""

from __future__ import annotations

import functools
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np
from absl import logging

from experiments import fields, fitting, scoring
from experiments import recognizer as recognizer_lib
from s8bqat_jax import data, files, quantizers, training
from s8bqat_jax.models import rnnt
from s8bqat_jax.speech import features, normalize, tokenizers
from s8bqat_jax.training import mesh as mesh_lib
from s8bqat_jax.training import paths

# Of a working directory: what `config.pretrain` trains, and the utterances
# that training did without.
PRETRAIN = 'pretrain'
SKIPPED = 'skipped.json'
# And what it heard, {split: fingerprint}: other audio may come to be there.
CORPORA = 'corpora.json'


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
    corpus: training data, whose texts make the vocabulary; the statistics are
      those of at least `config.data.normalize_utterances` of its recordings,
      spread evenly.
  """
  tokenizer = make_tokenizer(config.tokenizer, corpus.texts_N)
  log_mel = fields.made('features', features.LogMel, config.features)
  if log_mel.sample_rate != corpus.sample_rate:
    raise ValueError(
      f'config.features.sample_rate is {log_mel.sample_rate}, but all audio is '
      f'read at {corpus.sample_rate}'
    )
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
    augment=recognizer_lib.make_augment(config.augment),
    ctc_weight=config.train.ctc_weight,
  )


def make_loader(
  config: ml_collections.ConfigDict,
  corpus: data.Corpus,
  recognizer: recognizer_lib.Recognizer,
) -> data.Loader:
  """Returns the training batches of a config.

  Where CTC helps, a transcript of more labels than its audio has encoder frames
  is left out; a transducer alone can learn it, if there is a frame at all.

  Args:
    config: whole.
    corpus: to train on.
    recognizer: whose labels and frames they are.
  """
  with_ctc = config.train.ctc_weight > 0
  return data.make_loader(
    corpus,
    recognizer.tokenizer,
    batch_size=config.data.batch_size,
    num_buckets=config.data.num_buckets,
    sort_within=config.data.sort_within,
    seed=config.seed,
    perturb=recognizer_lib.make_perturbation(config.perturb),
    samples_per_label=recognizer.samples_per_frame if with_ctc else 0,
    min_samples=recognizer.min_samples,
    process_index=jax.process_index(),
    process_count=jax.process_count(),
  )


def run(
  config: ml_collections.ConfigDict,
  workdir: os.PathLike | str,
  progress: bool | str = True,
  *,
  quantizer: quantizers.Quantizer | None = None,
  recognizer: recognizer_lib.Recognizer | None = None,
  params: Any = None,
  scored: bool = True,
) -> training.Outcome:
  """Trains, or goes on training, in `workdir`.

  Args:
    config: see configs/common.py for the fields.
    workdir: created if it is missing.
    progress: whether to show a progress bar; a text is its label.
    quantizer: the method; None trains in floating point. Development scores
      and the model file are those of what it encodes.
    recognizer: what to train; made from config and corpus if None.
    params: where training starts; if None those that `config.pretrain` trains
      in a folder of its own, or fresh ones.
    scored: whether development data is decoded and the best model written; if
      not, what counts is the state that training ends in.

  Returns:
    How training ended.

  Raises:
    ValueError: if `params` do not fit the config's model, among others.
  """
  fields.check_recognizer(config)
  mesh_lib.check_batch_size(config.data.batch_size, training.make_mesh())
  lead = jax.process_index() == 0
  corpus, dev = data.load(config.data.train), data.load(config.data.dev)
  if recognizer is None:
    recognizer = make_recognizer(config, corpus)
  # All that can be wrong is found before anything is written, and before the
  # stage that this one may wait for, which may take hours.
  loader = make_loader(config, corpus, recognizer)
  earlier = None
  if params is None and config.get('pretrain'):
    earlier = make_recognizer(
      config.pretrain, data.load(config.pretrain.data.train)
    )
    _check_follows(config, recognizer, earlier)
  if lead:
    fitting.claim(config, workdir)
    _claim_corpora(workdir, {'train': corpus, 'dev': dev})
  if earlier is not None:
    first = paths.local(workdir) / PRETRAIN
    named = isinstance(progress, str)
    outcome = run(
      config.pretrain,
      first,
      f'{progress}, pretraining' if named else progress,
      recognizer=earlier,
    )
    if outcome.reason == 'interrupted':
      return outcome
    _, params, _ = recognizer_lib.load(first / recognizer_lib.MODEL_FILE)
    if config.get('joint_from_ctc'):
      params = rnnt.from_ctc(params)
    params = _without_head(params, recognizer)
  skipped = pathlib.Path(workdir) / SKIPPED
  if skipped.exists():  # before this process took over
    loader.skipped.go_on(json.loads(skipped.read_text()))
  if lead:
    print(
      f'{corpus.durations_N.sum() / 3600:.2f} h in {len(corpus):,} utterances, '
      f'{loader.steps_per_epoch:,} steps an epoch'
    )
  best = None
  if scored:
    batch_size = config.data.batch_size
    best = fitting.Best(
      scoring.Scorer(recognizer, dev, batch_size=batch_size).rates,
      'wer',
      recognizer_lib.MODEL_FILE,
      about={'recognizer': recognizer.to_config(), 'dev_data': dev.spec},
      tokenizer=recognizer.tokenizer.to_config(),
    )
  try:
    return fitting.fit(
      config,
      workdir,
      recognizer,
      loader.batches,
      best=best,
      quantizer=quantizer,
      params=params,
      progress=progress,
    )
  finally:
    if lead and loader.skipped:
      logging.warning('%d utterances were skipped', len(loader.skipped))
      files.write_text(skipped, json.dumps(loader.skipped.reasons, indent=1))


def _claim_corpora(
  workdir: os.PathLike | str, corpora: Mapping[str, data.Corpus]
) -> None:
  """Stores what a run hears; other data in the same directory is an error."""
  path = pathlib.Path(workdir) / CORPORA
  stored = json.loads(path.read_text()) if path.exists() else {}
  for split, corpus in corpora.items():
    if stored.get(split, corpus.fingerprint) != corpus.fingerprint:
      raise ValueError(
        f'{workdir} holds a run on other data: what {corpus.spec} names has '
        'changed since. Choose another --workdir, or give the data back'
      )
  heard = {split: corpus.fingerprint for split, corpus in corpora.items()}
  files.write_text(path, json.dumps(heard, indent=1))


def steps_in_all(config: ml_collections.ConfigDict) -> int:
  """Returns the steps of a training, with those of `config.pretrain`."""
  first = config.get('pretrain')
  return config.train.steps + (steps_in_all(first) if first else 0)


def seconds_per_step(config: ml_collections.ConfigDict, steps: int = 12):
  """Times floating-point training steps of a config, compilation aside."""
  corpus = data.load(config.data.train)
  recognizer = make_recognizer(config, corpus)
  loader = make_loader(config, corpus, recognizer)
  return fitting.seconds_per_step(config, recognizer, loader.batches(0, steps))


def _without_head(params: Any, recognizer: recognizer_lib.Recognizer) -> Any:
  """Drops the CTC head where the recognizer has none."""
  if recognizer.model.ctc:
    return params
  return recognizer_lib.without_ctc_head(params)


def _check_follows(
  config: ml_collections.ConfigDict,
  recognizer: recognizer_lib.Recognizer,
  earlier: recognizer_lib.Recognizer,
) -> None:
  """Raises ValueError unless training can go on from `earlier`."""
  if config.get('joint_from_ctc') and not earlier.ctc_weight:
    raise ValueError(
      'config.joint_from_ctc: there is no CTC head to begin with, since '
      'config.pretrain.train.ctc_weight is 0'
    )
  if earlier.tokenizer != recognizer.tokenizer:
    labels, wanted = (x.tokenizer.to_config() for x in (earlier, recognizer))
    raise ValueError(
      'training cannot start from what config.pretrain trains, which has other '
      f'labels than this config: {labels}, expected {wanted}'
    )
  theirs, ours = (
    jax.eval_shape(r.init, jax.random.key(0)) for r in (earlier, recognizer)
  )
  try:
    fitting.check_fits(_without_head(theirs, recognizer), ours)
  except ValueError as e:
    raise ValueError(
      'config.pretrain trains another model than config.model (an override on '
      f'the command line reaches one of the two: give both): {e}'
    ) from e


def _statistics(
  log_mel: features.LogMel, corpus: data.Corpus, utterances: int
) -> normalize.GlobalNorm:
  """Mean and deviation over utterances spread evenly over the corpus."""
  moments = normalize.zero_moments(log_mel.num_mels)
  extract = jax.jit(functools.partial(features.log_mel, log_mel))
  bad = None
  for i in range(0, len(corpus), max(1, len(corpus) // utterances)):
    try:
      pcm_S = corpus.pcm(i)
    except data.BadUtteranceError as e:  # counted when training meets it
      bad = e
      continue
    # A few shapes only, so that few programs are compiled.
    padded = np.zeros((1, -(-len(pcm_S) // 32000) * 32000), np.int16)
    padded[0, : len(pcm_S)] = pcm_S
    feats, lengths = extract(padded, np.array([len(pcm_S)]))
    moments = normalize.accumulate(moments, feats, lengths)
  if bad is not None and not moments.frames:
    raise ValueError(
      f'{corpus.spec}: none of the utterances that the feature statistics are '
      f'made of is usable, the last: {bad}'
    ) from bad
  return normalize.global_norm(moments)
