"""The picture of one experiment: from its training to what it recognizes."""

from __future__ import annotations

import pathlib
from typing import Any

import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from experiments import (
  cells,
  integer_recognizer,
  plots,
  streaming,
)
from experiments.stages import Stages
from s8bqat_jax import data, training


def write(
  stages: Stages, rows: plots.Rows, found: plots.Found, path: pathlib.Path
) -> None:
  """Draws training, error against bytes, weights, and words in the audio.

  Weights and words are those of S8BQAT's fewest bits.

  Args:
    stages: where files and metrics are.
    rows: of `matrix.rows`.
    found: metrics by job.
    path: of the picture.
  """
  figure, ((a, b), (c, d), (e, f)) = plt.subplots(
    3, 2, figsize=(12, 11.5), height_ratios=(3, 2, 3), layout='constrained'
  )
  ours = [job for job in found if job.cell.method == 's8bqat']
  shown = min(ours, key=lambda job: job.cell.bits)
  plots.error_against_bytes(rows, a)
  plots.distances(stages, found, b)
  plots.histograms(stages, shown, c, d)
  training_curves(stages, found, e)
  recognized(stages, shown, f)
  plots.save(figure, path)


def training_curves(stages: Stages, found: plots.Found, axes: Any) -> None:
  """Draws the loss of the float model, and of each method from there on.

  Args:
    stages: where the metrics of training are.
    found: the jobs to show; all begin with the float model of the first.
    axes: to draw on.
  """
  first, *_ = found
  logged = training.read_metrics(stages.float_folder(first))
  curve = [(r['step'], r['loss']) for r in logged if 'loss' in r]
  axes.plot(*zip(*curve), color='black', lw=1, label='float')
  scored = [(r['step'], r['dev/wer']) for r in logged if 'dev/wer' in r]
  start = curve[-1][0]
  for i, job in enumerate(found):
    logged = training.read_metrics(stages.train_folder(job))
    curve = [(start + r['step'], r['loss']) for r in logged if 'loss' in r]
    if curve:
      color = plots.look(job.cell.label, i)['color']
      line = plots.LINES.get(job.cell.bits, ':')
      label = f'{job.cell.label}, {job.cell.bits}'
      axes.plot(*zip(*curve), color=color, ls=line, lw=1, label=label)
  plots.log_scale(axes, 'y')
  axes.set(xlabel='step', ylabel='loss', title='training')
  axes.legend(fontsize=8, loc='upper right')
  for step, wer in scored:
    axes.annotate(
      f'{wer:.1f}%',
      (step, 0),
      (0, 4),
      xycoords=axes.get_xaxis_transform(),
      textcoords='offset points',
      ha='center',
      fontsize=8,
    )
  if scored:
    axes.set(title='training (below: WER of the float model, development data)')


def recognized(stages: Stages, job: cells.Job, axes: Any) -> None:
  """Draws the log-mel features of an utterance, and words as they come out.

  It is the evaluation utterance of median length, fed as a microphone would to
  what ships.

  Args:
    stages: where the model files are.
    job: whose file recognizes.
    axes: to draw on.
  """
  path = stages.train(job)['file']
  recognizer, params, _ = integer_recognizer.load(path)
  config = cells.train_config(stages.config, job)
  corpus = data.load(config.data[job.split])
  index = int(np.argsort(corpus.durations_N, kind='stable')[len(corpus) // 2])
  pcm_S = corpus.pcm(index)
  streamer = streaming.Streamer(recognizer, params)
  streamer.feed(pcm_S)

  lengths = jnp.array([len(pcm_S)])
  feats_1xTxF, _ = recognizer.features(jnp.asarray(pcm_S)[None], lengths)
  seconds = len(pcm_S) / recognizer.log_mel.sample_rate
  mels = feats_1xTxF.shape[2]
  axes.imshow(
    np.asarray(feats_1xTxF)[0].T,
    origin='lower',
    aspect='auto',
    extent=(0, seconds, 0, mels),
    cmap='magma',
  )
  for time, label in streamer.emitted:
    axes.axvline(time, color='white', lw=0.8, ls=':')
    axes.annotate(
      recognizer.tokenizer.decode([label]),
      (time, mels),
      (-2, -4),
      textcoords='offset points',
      ha='right',
      va='top',
      color='white',
      fontsize=9,
    )
  axes.set(xlabel='seconds', ylabel='mel bands')
  axes.set(
    title=f'said: {corpus.texts_N[index]}\n'
    f'{job.cell.label}, {job.cell.bits} bits, hears: {streamer.text}'
  )
