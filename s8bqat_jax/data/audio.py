"""Audio files to int16 at 16 kHz."""

import functools
import math
import os
import pathlib

import numpy as np
import scipy.signal
import soundfile

from s8bqat_jax.data import corpus as corpus_lib

# The last: files without a header, which name no rate.
_UNREADABLE = (soundfile.LibsndfileError, OSError, TypeError)
_HEADER = 44  # bytes, which some writers count as data
_STREAMED = 0x7FFF_F000  # bytes; writers that can't know say so much or more
_PAGE = 65_307  # bytes, the longest of an Ogg stream
_LAST_PAGE = 4  # in a page's flags


def to_int16(audio_S: np.ndarray) -> np.ndarray:
  """Returns float samples in [-1, 1] as int16; louder ones are clipped."""
  scaled_S = audio_S * 32768
  np.rint(scaled_S, out=scaled_S)
  np.clip(scaled_S, -32768, 32767, out=scaled_S)
  return scaled_S.astype(np.int16)


@functools.cache
def _lowpass(up: int, down: int) -> np.ndarray:
  """The polyphase filter; scipy would design it again at every call."""
  widest = max(up, down)
  taps = scipy.signal.firwin(
    20 * widest + 1, 1 / widest, window=('kaiser', 5.0)
  )
  return taps.astype(np.float32)


def resample(audio_S: np.ndarray, rate: int) -> np.ndarray:
  """Returns float32 samples at 16 kHz (polyphase, no aliasing).

  Args:
    audio_S: [S] samples at `rate`.
    rate: Samples per second.

  Returns:
    [ceil(S * 16000 / rate)] float32.
  """
  audio_S = audio_S.astype(np.float32, copy=False)
  if rate == corpus_lib.SAMPLE_RATE or not audio_S.size:
    return audio_S
  divisor = math.gcd(rate, corpus_lib.SAMPLE_RATE)
  up, down = corpus_lib.SAMPLE_RATE // divisor, rate // divisor
  return scipy.signal.resample_poly(
    audio_S, up, down, window=_lowpass(up, down)
  )


def duration(path: pathlib.Path, where: str) -> float:
  """Returns the seconds that the header of an audio file promises.

  Args:
    path: The file.
    where: Row of the manifest, for the error.
  """
  try:
    info = soundfile.info(str(path))
  except _UNREADABLE as e:
    raise corpus_lib.BadUtteranceError(
      f'{where}: cannot read {path}: {e}'
    ) from e
  return info.frames / info.samplerate


def _cut_short(path: pathlib.Path) -> str | None:
  """Says what is missing of a file that decodes without a word about it."""
  with path.open('rb') as file:
    size = os.fstat(file.fileno()).st_size
    kind = file.read(12)
    if kind[:4] == b'RIFF' and kind[8:] == b'WAVE':
      while len(head := file.read(8)) == 8:
        length = int.from_bytes(head[4:], 'little')
        if head[:4] == b'data':
          there = size - file.tell()
          if there + _HEADER < length < _STREAMED:
            return f'its header promises {length} bytes, {there} are there'
          break
        file.seek(length + length % 2, os.SEEK_CUR)
    elif kind[:4] == b'OggS':
      file.seek(max(0, size - _PAGE))
      tail = file.read()
      page = tail[tail.rfind(b'OggS') :] if b'OggS' in tail else b''
      lengths = page[27 : 27 + page[26]] if len(page) > 26 else b''
      # Whole pages are followed by nothing or by what is no page of audio.
      whole = len(page) >= 27 and len(page) >= 27 + page[26] + sum(lengths)
      if page and not (whole and page[5] & _LAST_PAGE):
        return 'no page of it is marked as the last'
  return None


def read(path: pathlib.Path, where: str, seconds: float) -> np.ndarray:
  """Decodes a file that soundfile knows; several channels are averaged.

  Args:
    path: The file.
    where: Row of the manifest, for the error.
    seconds: How long it should be, within 20 ms; a longer file is cut.

  Returns:
    int16 [S] at 16 kHz.
  """
  try:
    audio_SxC, rate = soundfile.read(str(path), dtype='float32', always_2d=True)
    missing = _cut_short(path)
  except _UNREADABLE as e:
    raise corpus_lib.BadUtteranceError(
      f'{where}: cannot read {path}: {e}'
    ) from e
  if missing is not None:
    raise corpus_lib.BadUtteranceError(
      f'{where}: {path} is cut short: {missing}'
    )
  there = len(audio_SxC) / rate
  # Manifests round to milliseconds, some to hundredths.
  if abs(there - seconds) > 0.02:
    raise corpus_lib.BadUtteranceError(
      f'{where}: {path} holds {there:.3f} s of audio, {seconds:.3f} s were '
      f'promised: truncated, or a wrong duration_s'
    )
  if not np.isfinite(audio_SxC).all():
    raise corpus_lib.BadUtteranceError(
      f'{where}: {path} has samples that are not finite'
    )
  pcm_S = to_int16(resample(audio_SxC.mean(axis=1), rate))
  # Batches have room for what was promised, and a millisecond.
  return pcm_S[: round((seconds + 0.001) * corpus_lib.SAMPLE_RATE)]
