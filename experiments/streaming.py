"""Recognition as a microphone gives it: samples in, words out.

One encoder frame at a time: a jitted function of fixed shapes takes the
samples of `subsampling` feature frames and returns the labels they emit. What
it prints equals the batch transcript, frame by frame.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.recognizer import Recognizer
from s8bqat_jax.speech import decode


class _Carry(NamedTuple):
  encoder: Any
  decoder: decode.GreedyCarry


class Streamer:
  """A stream of one speaker.

  Attributes:
    emitted: (seconds from the start, label), in order.
  """

  def __init__(self, recognizer: Recognizer, params: Any):
    self._recognizer, self._params = recognizer, params
    log_mel, frames = recognizer.log_mel, recognizer.model.subsampling
    self._advance = frames * log_mel.hop
    self._needed = log_mel.window + (frames - 1) * log_mel.hop
    self._step = jax.jit(self._one_frame)
    self._first = jax.jit(self._start)(params)
    self.reset()

  def reset(self) -> None:
    """Begins another stream; nothing is compiled again."""
    self._buffer = np.zeros(0, np.int16)
    self._carry = self._first
    self._frame = 0
    self.emitted: list[tuple[float, int]] = []

  def _start(self, params):
    recognizer = self._recognizer
    return _Carry(
      recognizer.nets.initial_carry(params, 1),
      decode.initial_carry(recognizer.transducer(params), 1),
    )

  def _one_frame(self, params, carry, samples_1xS):
    recognizer = self._recognizer
    lengths = jnp.array([samples_1xS.shape[1]])
    feats, _ = recognizer.features(samples_1xS, lengths)
    encoder, enc = recognizer.nets.encode_chunk(params, carry.encoder, feats)
    decoder, decoded = decode.greedy_chunk(
      recognizer.transducer(params), carry.decoder, enc, jnp.array([1])
    )
    return _Carry(encoder, decoder), decoded

  def feed(self, pcm_S: np.ndarray) -> str:
    """Takes the next int16 samples, any number; returns the text so far."""
    self._buffer = np.concatenate([self._buffer, pcm_S])
    while len(self._buffer) >= self._needed:
      samples = self._buffer[None, : self._needed]
      self._carry, decoded = self._step(self._params, self._carry, samples)
      self._buffer = self._buffer[self._advance :]
      self._frame += 1
      seconds = (
        self._frame * self._advance / self._recognizer.log_mel.sample_rate
      )
      labels = np.asarray(decoded.labels_BxN)[0, : int(decoded.lengths_B[0])]
      self.emitted += [(seconds, label) for label in labels.tolist()]
    return self.text

  @property
  def text(self) -> str:
    """The transcript so far."""
    return self._recognizer.tokenizer.decode([x for _, x in self.emitted])
