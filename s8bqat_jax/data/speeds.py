"""A corpus at other speeds, made once instead of in every epoch.

Changing the speed of a batch takes several milliseconds of a core that the
training step wants; reading a copy takes a tenth of that.
"""

import functools
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from absl import logging

from s8bqat_jax.data import audio, perturb, store
from s8bqat_jax.data import corpus as corpus_lib

AtSpeed = Callable[[int, float], np.ndarray]

# Raise when the same corpus must give other samples.
_VERSION = 1
# Copies of larger corpora are not kept: recordings are changed as they are
# read. Machines that train on those have cores to spare.
_MOST_BYTES = 10 * 10**9


def change(pcm_S: np.ndarray, speed: float) -> np.ndarray:
  """`perturb.change_speed` of an int16 recording.

  Args:
    pcm_S: int16 samples.
    speed: As there.

  Returns:
    int16 samples.
  """
  if speed == 1:
    return pcm_S
  changed_S = perturb.change_speed(pcm_S / np.float32(32768), speed)
  return audio.to_int16(changed_S)


def _changed(corpus: corpus_lib.Corpus, speed: float) -> Iterator[store.Entry]:
  def make(index: int) -> store.Entry:
    try:
      pcm_S = corpus.pcm(index)
    except corpus_lib.BadUtteranceError:  # raised again when it is read
      pcm_S = np.zeros(0, np.int16)
    return store.Entry(change(pcm_S, speed), '', '')

  return store.make_all(make, len(corpus), f'speed {speed}')


def at_speeds(
  corpus: corpus_lib.Corpus, speeds: Sequence[float], cache: str | None = None
) -> AtSpeed:
  """Returns a function that reads recordings at given speeds.

  Args:
    corpus: Whose recordings.
    speeds: Those that will be asked for.
    cache: Folder of the copies, `none` for none, None for that of the corpus.

  Returns:
    `(index, speed) -> int16 [S]`; raises as `corpus.pcm` does.
  """
  cache = cache or corpus_lib.cache_of(corpus)
  others = [s for s in dict.fromkeys(speeds) if s != 1]
  seconds = sum(float(corpus.durations_N.sum()) / s for s in others)
  copies: dict[float, store.Store] = {}
  if cache != 'none' and 2 * corpus.sample_rate * seconds <= _MOST_BYTES:
    try:
      for speed in others:
        copies[speed] = store.cached(
          f'speed-{speed}-{_VERSION}-{corpus_lib.cache_key(corpus)}',
          cache,
          functools.partial(_changed, corpus, speed),
        )
    except OSError as e:
      logging.warning('no copies at other speeds, training is slower: %s', e)

  def read(index: int, speed: float) -> np.ndarray:
    if speed in copies:
      pcm_S = copies[speed].pcm(index)
      if len(pcm_S):
        return pcm_S
    return change(corpus.pcm(index), speed)

  return read
