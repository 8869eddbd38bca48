"""Prints what is said in audio files.

  python -m experiments.transcribe --model=runs/digits/model.safetensors x.wav

--stream feeds the audio in pieces of --chunk_ms, as a microphone would, and
gives the same text.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from absl import flags

from experiments.recognizer import Recognizer
from s8bqat_jax.data import audio

_STREAM = flags.DEFINE_bool('stream', False, 'Feed the audio in pieces.')
_CHUNK = flags.DEFINE_integer('chunk_ms', 200, 'Length of a piece.')


def read(path: os.PathLike | str) -> np.ndarray:
  """Returns the int16 samples of a file, at 16 kHz."""
  return audio.read(path)


def batch(recognizer: Recognizer, params: Any, pcm_S: np.ndarray) -> str:
  """Transcribes a whole recording at once."""
  lengths = np.array([len(pcm_S)], np.int32)
  decoded = jax.jit(recognizer.greedy)(params, pcm_S[None], lengths)
  labels = decoded.labels_BxN[0, : int(decoded.lengths_B[0])]
  return recognizer.tokenizer.decode(np.asarray(labels).tolist())


def stream(
  recognizer: Recognizer,
  params: Any,
  pcm_S: np.ndarray,
  chunk: int,
) -> Iterator[str]:
  """Yields the transcript so far after every `chunk` samples."""
  streamer = recognizer.streamer(params)
  for start in range(0, len(pcm_S), chunk):
    streamer.feed(pcm_S[start : start + chunk])
    yield streamer.text
