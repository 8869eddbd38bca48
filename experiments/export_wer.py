"""Recognizes with a packed recognizer's exported files: whose words are right?

  python -m experiments.export_wer --model=FILE --data=SPEC --utterances=100

The streaming step of our integer program, of its .tflite in LiteRT and of its
ONNX file in ONNX Runtime take the same features and decode greedily, each on
its own states. Writes experiments/results/export_wer.json: error rates as
rows; and as comparisons, of the first few utterances, how many codes of every
kind of operation are those that ours makes of the same operands, and the
largest difference in units of the last place. That part runs LiteRT without
delegates, whose inner values can't be seen. Needs the export extra.

Where LiteRT differs:
  q_dot int16  its rescaling rounds to a code 2^-s finer, then shifts by s, ties
               up: with the small s of 16-bit results every few codes round
               twice; an 8-bit result has a large s, and seldom does
  q_lut int16  its 16-bit sigmoid and tanh interpolate between the entries of a
               short table; so do 8-bit results, which are rescaled from it and
               mostly hide the difference
  q_add, q_mul likewise round twice, from scales kept in float32
"""

from __future__ import annotations

import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import app, flags

from experiments import exporting, results, usage
from experiments import recognizer as recognizer_lib
from s8bqat_jax import data
from s8bqat_jax.export import witness
from s8bqat_jax.speech import wer

_MODEL = flags.DEFINE_string(
  'model', None, 'A packed recognizer with 8-bit activations.', required=True
)
_DATA = flags.DEFINE_string('data', 'espeak:digits?split=eval', 'A data spec.')
_UTTERANCES = flags.DEFINE_integer('utterances', 100, 'The first so many.')
_WATCHED = flags.DEFINE_integer(
  'watched', 5, 'Of those, the first so many whose every operation is judged.'
)
_MAX_SYMBOLS = 4
_FORMATS = {'litert': 'tflite', 'onnxruntime': 'onnx'}

Runner = Callable[..., Any]


def runners(functions: Mapping[str, Any]) -> dict[str, dict[str, Runner]]:
  """Returns {runtime: {function: codes in, codes out}}."""
  made = {'ours': {k: fn.integers for k, fn in functions.items()}}
  for runtime, kind in _FORMATS.items():
    made[runtime] = {
      k: exporting.session(fn, kind) for k, fn in functions.items()
    }
  return made


def recognize(
  functions: Mapping[str, Any], run: Mapping[str, Runner], feats_KxF: Any
) -> list[int]:
  """Greedy labels of one utterance, one encoder frame at a time.

  Args:
    functions: the integer programs, for what codes stand for.
    run: what computes them.
    feats_KxF: features, K a multiple of an encoder frame's.
  """
  encoder, predictor = functions['encoder'], functions['predictor']
  state, pred_state = _zeros(encoder)[:-1], _zeros(predictor)[:-1]
  frames = encoder.jaxpr.in_avals[-1].shape[1]
  quantize = encoder.in_specs[-1].quantize_np

  def advance(label):
    *new, pred = run['predictor'](*pred_state, np.array([label], np.int32))
    return new, pred

  pred_state, pred = advance(0)
  labels: list[int] = []
  for t in range(0, len(feats_KxF) - frames + 1, frames):
    codes = quantize(feats_KxF[None, t : t + frames])
    *state, enc = run['encoder'](*state, codes)
    for _ in range(_MAX_SYMBOLS):
      (logits,) = run['joint'](np.asarray(enc)[:, 0], pred)
      label = int(np.argmax(logits))
      if not label:
        break
      labels.append(label)
      pred_state, pred = advance(label)
  return labels


def agreements(
  functions: Mapping[str, Any], features: Sequence[Any]
) -> list[dict[str, Any]]:
  """Judges the runtimes' operations on the codes that they really see.

  Args:
    functions: the integer programs.
    features: of the utterances to decode.

  Returns:
    One comparison per runtime, function and kind of operation.
  """
  found = []
  for runtime, kind in _FORMATS.items():
    run = {k: exporting.Watched(fn, kind) for k, fn in functions.items()}
    for feats in features:
      recognize(functions, run, feats)
    for name, watched in run.items():
      for op, agreement in witness.summary(watched.rows).items():
        what = {'metric': 'codes', 'function': name, 'operation': op}
        found.append({'a': runtime, 'b': 'ours', **what, **agreement._asdict()})
  return found


def _zeros(fn: Any) -> list[np.ndarray]:
  """The codes of zero for every input."""
  return [
    np.full(a.shape, 0 if s is None else s.zero, a.dtype)
    for a, s in zip(fn.jaxpr.in_avals, fn.in_specs)
  ]


def main(argv) -> None:
  usage.start(argv)
  path = pathlib.Path(_MODEL.value)
  recognizer, _, _ = recognizer_lib.load(path)
  functions = exporting.functions(path)
  corpus = data.load(_DATA.value)
  count = min(_UTTERANCES.value, len(corpus))
  texts, labels = list(corpus.texts_N[:count]), {}
  features = []
  extract = jax.jit(recognizer.features)
  for i in range(count):
    audio = np.asarray(corpus[i].audio_S)[None]
    feats, lengths = extract(audio, np.array([audio.shape[1]]))
    features.append(np.asarray(feats)[0, : int(lengths[0])])
  rows = []
  for name, run in runners(functions).items():
    recognize(functions, run, features[0])
    start = time.perf_counter()
    labels[name] = [recognize(functions, run, f) for f in features]
    seconds = time.perf_counter() - start
    said = [recognizer.tokenizer.decode(x) for x in labels[name]]
    errors = wer.count_errors(texts, said)
    same = np.mean([a == b for a, b in zip(labels[name], labels['ours'])])
    metrics = {
      'wer': 100 * float(errors.wer),
      'words': int(errors.words_N.sum()),
      'same_transcripts': float(same),
      'utterances': count,
    }
    rows.append({'system': path.name, 'method': name, 'metrics': metrics})
    print(
      f'{name:12} WER {100 * errors.wer:.2f}%, {100 * same:.1f}% of the '
      f'transcripts equal ours ({seconds:.1f} s)'
    )
  comparisons = agreements(functions, features[: _WATCHED.value])
  for c in comparisons:
    print(
      f'{c["a"]:12} {c["function"]:10} {c["operation"]:14} '
      f'{100 * c["identical"]:9.4f}% of {c["codes"]} codes identical, largest '
      f'difference {c["largest"]}'
    )
  corpus_info = {'spec': corpus.spec, 'fingerprint': corpus.fingerprint}
  results.write(
    'export_wer',
    rows,
    comparisons=comparisons,
    corpus=corpus_info,
    watched_utterances=min(_WATCHED.value, count),
  )


if __name__ == '__main__':
  app.run(main)
