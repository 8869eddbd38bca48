"""Prints what is said in audio files.

  python -m experiments.transcribe \
    --model=experiments/models/digits_4bit.safetensors x.wav

--stream feeds the audio in pieces, as a microphone would, and shows the text
grow; the words are the same.
"""

from __future__ import annotations

import pathlib

import jax
import numpy as np
from absl import app, flags

from experiments import integer_recognizer, streaming, usage
from experiments import recognizer as recognizer_lib
from s8bqat_jax.data import audio

_WORKDIR = flags.DEFINE_string('workdir', None, 'Of experiments.train.')
_MODEL = flags.DEFINE_string('model', None, 'A packed file.')
_ARITHMETIC = usage.arithmetic_flag(integer_recognizer.ARITHMETICS)
_STREAM = flags.DEFINE_bool('stream', False, 'Feed the audio in pieces.')
_CHUNK_MS = flags.DEFINE_integer(
  'chunk_ms', 240, 'Length of a piece.', lower_bound=1
)
_SHAPES = (
  32000  # lengths in samples are padded to its multiples, to compile few
)


def main(argv):
  usage.start(argv, files=True)
  files = [pathlib.Path(name) for name in argv[1:]]
  if not files:
    raise app.UsageError('name at least one audio file')
  missing = [str(f) for f in files if not f.is_file()]
  if missing:
    raise app.UsageError(f'no such file: {", ".join(missing)}')
  recognizer, params, _ = integer_recognizer.load(
    recognizer_lib.find_model(_MODEL.value, _WORKDIR.value), _ARITHMETIC.value
  )
  greedy = jax.jit(recognizer.greedy)
  streamer = streaming.Streamer(recognizer, params) if _STREAM.value else None
  chunk = recognizer.log_mel.sample_rate * _CHUNK_MS.value // 1000
  for file in files:
    pcm_S = audio.read(file, str(file), audio.duration(file, str(file)))
    if streamer:
      streamer.reset()
      print(f'{file}: ', end='', flush=True)
      for start in range(0, len(pcm_S), chunk):
        text = streamer.feed(pcm_S[start : start + chunk])
        print(f'\r{file}: {text}', end='', flush=True)
      print()
    else:
      lengths = np.array([len(pcm_S)], np.int32)
      padded_S = np.pad(pcm_S, (0, -len(pcm_S) % _SHAPES))
      decoded = greedy(params, padded_S[None], lengths)
      labels = decoded.labels_BxN[0, : int(decoded.lengths_B[0])]
      text = recognizer.tokenizer.decode(np.asarray(labels).tolist())
      print(f'{file}: {text}')


if __name__ == '__main__':
  app.run(main)
