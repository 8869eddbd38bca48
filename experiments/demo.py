"""The demo: from nothing to a recognizer of voices it has never heard.

  make demo      (python -m experiments.demo)

Synthesizes digit strings, trains a small RNN transducer, evaluates it on
unseen voices and an unseen accent, and ends in a table and a picture. A demo
that was interrupted goes on where it stopped; --fresh starts again.
"""

from __future__ import annotations

import pathlib
import shutil
import time

import jax
import matplotlib
import numpy as np
from absl import app, flags

matplotlib.use('Agg')
import matplotlib.pyplot as plt  # noqa: E402

from experiments import recognizer as recognizer_lib  # noqa: E402
from experiments import results, scoring, streaming, trainer  # noqa: E402
from experiments.configs.demo import digits  # noqa: E402
from s8bqat_jax import data, training  # noqa: E402

_WORKDIR = flags.DEFINE_string('workdir', 'runs/demo', 'Where it all goes.')
_FRESH = flags.DEFINE_bool('fresh', False, 'Remove an earlier demo first.')
_STEPS = flags.DEFINE_integer('steps', None, 'Training steps; the config says.')
_PUBLISH = flags.DEFINE_bool(
  'publish', False, 'Also write experiments/results/demo.json and .png.'
)


def picture(path, recognizer, params, corpus, metrics):
  """Draws one unseen utterance with its words, and the training curve."""
  figure, (top, bottom) = plt.subplots(
    2, 1, figsize=(9, 6), height_ratios=(3, 2), layout='constrained'
  )
  index = int(np.argsort(np.abs(np.asarray(corpus.durations_N) - 3.0))[0])
  pcm_S = corpus.pcm(index)
  streamer = streaming.Streamer(recognizer, params)
  text = streamer.feed(pcm_S)
  feats, _ = jax.jit(recognizer.features)(pcm_S[None], np.array([len(pcm_S)]))
  seconds = len(pcm_S) / corpus.sample_rate
  top.imshow(
    np.asarray(feats)[0].T,
    origin='lower',
    aspect='auto',
    extent=(0, seconds, 0, feats.shape[-1]),
    cmap='magma',
  )
  for at, label in streamer.emitted:
    top.axvline(at, color='white', lw=0.6, alpha=0.6)
    top.text(
      at,
      feats.shape[-1] - 2,
      recognizer.tokenizer.decode([label]),
      color='white',
      rotation=90,
      va='top',
      ha='right',
    )
  top.set(
    title=f'said: {corpus.texts_N[index]}\nrecognized: {text}',
    xlabel='seconds',
    ylabel='mel band',
  )
  losses = [(r['step'], r['loss']) for r in metrics if 'loss' in r]
  rates = [(r['step'], r['dev/wer']) for r in metrics if 'dev/wer' in r]
  bottom.plot(*zip(*losses), color='tab:blue', label='training loss')
  bottom.set(xlabel='step', ylabel='training loss', yscale='log')
  right = bottom.twinx()
  right.plot(*zip(*rates), 'o-', color='tab:red', label='development WER')
  right.set(ylabel='WER, %', ylim=(0, None))
  figure.legend(
    *[
      sum(handles, [])
      for handles in zip(
        bottom.get_legend_handles_labels(), right.get_legend_handles_labels()
      )
    ],
    loc='lower right',
    bbox_to_anchor=(0.9, 0.25),
  )
  figure.savefig(path, dpi=110)
  plt.close(figure)


def main(argv):
  del argv
  trainer.quiet()
  start = time.perf_counter()
  workdir = pathlib.Path(_WORKDIR.value)
  if _FRESH.value:
    shutil.rmtree(workdir, ignore_errors=True)
  config = digits.get_config()
  if _STEPS.value:
    config.train.steps = _STEPS.value
    config.train.eval_every = 0
  print('1/3  speech: synthesizing digit strings with eSpeak NG')
  for spec in (config.data.train, config.data.dev, config.data.eval):
    data.load(spec)
  print('2/3  training an RNN transducer')
  outcome = trainer.run(config, workdir)
  if outcome.reason == 'interrupted':
    print('interrupted; run the same command again to resume')
    return
  print('3/3  recognizing voices never heard in training')
  path = workdir / recognizer_lib.MODEL_FILE
  recognizer, params, _ = recognizer_lib.load(path)
  params = jax.device_put(params)
  corpus = data.load(config.data.eval)
  scorer = scoring.Scorer(recognizer, corpus)
  hypotheses = list(scorer.hypotheses(params, progress=True))
  scoring.write_hypotheses(workdir / 'hypotheses.jsonl', hypotheses)
  row = {
    'system': 'RNN-T',
    'method': 'float',
    'bits': 32,
    'seed': config.seed,
    'split': 'eval',
    'metrics': {
      **scoring.summarize(hypotheses),
      'parameters': sum(x.size for x in jax.tree.leaves(params)),
      'bytes': path.stat().st_size,
      'steps': config.train.steps,
      'wall_seconds': time.perf_counter() - start,
    },
  }
  folders = [workdir] + ([results.FOLDER] if _PUBLISH.value else [])
  metrics = training.read_metrics(workdir / 'metrics.jsonl')
  for folder in folders:
    picture(folder / 'demo.png', recognizer, params, corpus, metrics)
    results.write(
      'demo',
      [row],
      corpus={'spec': corpus.spec, 'fingerprint': corpus.fingerprint},
      config_hash=results.config_hash(config.to_dict()),
      folder=folder,
    )
  print(
    results.table(
      [row],
      {
        'method': '',
        'bits': '',
        'parameters': ',',
        'bytes': ',',
        'words': ',',
        'wer': '.2f',
        'ci95': '.2f',
        'cer': '.2f',
        'wall_seconds': '.0f',
      },
    )
  )
  print(f'the picture: {workdir / "demo.png"}')
  print(f'try it: python -m experiments.transcribe --model={path} your.wav')


if __name__ == '__main__':
  app.run(main)
