"""`compose=LO-HI`: strings of isolated recordings of one speaker.

Every pass shuffles each speaker's recordings and cuts the row into strings, so
that in one pass every recording enters exactly one string. Evaluation makes
one pass: strings recomposed from the same recordings would add no evidence.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from s8bqat_jax.data import audio, noise, select, store
from s8bqat_jax.data import corpus as corpus_lib
from s8bqat_jax.data import options as options_lib

OPTIONS = {
  'compose': 'strings of LO-HI recordings of one speaker, silence trimmed',
  'passes': 'compose: how often each recording is used (train 10, else 1)',
  'snr': 'compose: noise in dB, LO-HI, or clean (clean); that of eval but for '
  'split=train and dev',
  'seed': 'compose: another seed, other strings (0)',
  'cache': 'folder for what took long to make, or none to keep it in memory',
}

# Raise when the same strings must give other samples.
_VERSION = 1
_PAUSE_S = (0.05, 0.35)  # between recordings, and before and after them
_FADE = corpus_lib.SAMPLE_RATE // 200
_FRAME = corpus_lib.SAMPLE_RATE // 100
_MARGIN = 5 * _FRAME
_THRESHOLD = 1e-3  # -30 dB below the loudest frame is silence


def trim(pcm_S: np.ndarray) -> np.ndarray:
  """Cuts the silence around a recording.

  Args:
    pcm_S: int16 samples.

  Returns:
    From 50 ms before the first loud frame of 10 ms to 50 ms after the last.
  """
  frames = len(pcm_S) // _FRAME
  if not frames:
    return pcm_S
  framed_NxS = pcm_S[: frames * _FRAME].reshape(frames, _FRAME).astype(float)
  power_N = np.square(framed_NxS - framed_NxS.mean()).mean(axis=1)
  loud_L = np.flatnonzero(power_N >= _THRESHOLD * power_N.max())
  first = max(0, loud_L[0] * _FRAME - _MARGIN)
  return pcm_S[first : (loud_L[-1] + 1) * _FRAME + _MARGIN]


def cut(
  rng: np.random.Generator, items: Sequence[int], low: int, high: int
) -> list[list[int]]:
  """Cuts a shuffled list into pieces of low .. high items, all of it.

  Args:
    rng: Draws the order and the lengths.
    items: What to cut.
    low: Shortest piece.
    high: Longest piece.

  Returns:
    The pieces. The last is shorter where what is left is too little for two
    and too much for one.
  """
  left = [items[i] for i in rng.permutation(len(items))]
  pieces = []
  while left:
    size = int(rng.integers(low, high + 1))
    rest = len(left) - size
    if 0 < rest < low:
      # Too short a remainder: leave a piece's worth of it, or nothing.
      size = len(left) if len(left) <= high else max(low, len(left) - low)
    pieces.append(left[:size])
    left = left[size:]
  return pieces


@dataclasses.dataclass(frozen=True)
class String:
  """Recordings, and the silence (samples) before each and after the last."""

  recordings: tuple[int, ...]
  pauses: tuple[int, ...]


def plan(
  speakers_N: Sequence[str],
  low: int,
  high: int,
  passes: int,
  seed: Sequence[int],
) -> list[String]:
  """Plans the strings; a pure function of its arguments.

  Args:
    speakers_N: Who speaks each recording.
    low: Fewest recordings in a string.
    high: Most.
    passes: How often each recording is used.
    seed: Of the draws, any whole numbers.

  Returns:
    Strings, each of one speaker.
  """
  own: dict[str, list[int]] = {}
  for i, speaker in enumerate(speakers_N):
    own.setdefault(speaker, []).append(i)
  rng = np.random.default_rng(seed)
  shortest, longest = (round(s * corpus_lib.SAMPLE_RATE) for s in _PAUSE_S)
  return [
    String(
      tuple(piece),
      tuple(rng.integers(shortest, longest, len(piece) + 1).tolist()),
    )
    for _ in range(passes)
    for speaker in sorted(own)
    for piece in cut(rng, own[speaker], low, high)
  ]


def _fade(pcm_S: np.ndarray) -> np.ndarray:
  """float32, the ends faded over 5 ms: a cut must not click."""
  audio_S = pcm_S.astype(np.float32) / 32768
  size = min(_FADE, len(audio_S) // 2)
  ramp_S = np.arange(1, size + 1, dtype=np.float32) / (size + 1)
  audio_S[:size] *= ramp_S
  audio_S[len(audio_S) - size :] *= ramp_S[::-1]
  return audio_S


def _trimmed(table: corpus_lib.Table) -> Iterator[store.Entry]:
  def make(index: int) -> store.Entry:
    pcm_S = trim(table.pcm(index))
    return store.Entry(pcm_S, table.texts_N[index], table.speakers_N[index])

  return store.make_all(make, len(table), 'trimming')


def _composed(
  kept: store.Store,
  strings: Sequence[String],
  snr: tuple[float, float] | None,
  seed: int,
  side: int,
) -> Iterator[store.Entry]:
  """Joins trimmed recordings to strings and adds the noise."""

  def make(index: int) -> store.Entry:
    string = strings[index]
    pieces = [np.zeros(string.pauses[0], np.float32)]
    for i, pause in zip(string.recordings, string.pauses[1:]):
      pieces.append(_fade(kept.pcm(i)))
      pieces.append(np.zeros(pause, np.float32))
    audio_S = np.concatenate(pieces)
    if snr is not None:
      rng = np.random.default_rng([seed, side, index])
      noise_S = noise.draw(rng, len(audio_S), side)
      audio_S = noise.mix(audio_S, noise_S, rng.uniform(*snr))
    texts = ' '.join(kept.texts_N[i] for i in string.recordings)
    speaker = kept.speakers_N[string.recordings[0]]
    return store.Entry(audio.to_int16(audio_S), texts, speaker)

  if snr is not None:
    for kind in noise.KINDS:  # threads would each make the bank
      noise.bank(kind, side)
  return store.make_all(make, len(strings), 'composing')


def apply(
  table: corpus_lib.Table, options: Mapping[str, str]
) -> corpus_lib.Table:
  """Composes strings when the options ask for it.

  Args:
    table: Isolated recordings.
    options: Of the spec.

  Returns:
    The strings; the table itself without `compose=`.
  """
  if 'compose' not in options:
    for name in sorted((set(OPTIONS) - {'cache'}) & set(options)):
      raise ValueError(f'{name}= needs compose=, e.g. compose=3-6')
    return table
  lengths = options_lib.interval(options, 'compose', None)
  if lengths is None or lengths[0] < 1 or any(n % 1 for n in lengths):
    raise ValueError(
      f'compose={options["compose"]!r}: expected LO-HI words, e.g. compose=3-6'
    )
  if not all(table.speakers_N):
    raise ValueError('compose= needs the speaker of every recording')
  split = options.get('split', '')
  passes = options_lib.integer(
    options, 'passes', 10 if split == 'train' else 1, least=1
  )
  if passes > 1 and split not in ('train', ''):
    raise ValueError(
      f'passes={passes}: a recording of split={split} enters one string only; '
      'more passes are for split=train'
    )
  snr = options_lib.interval(options, 'snr', None)
  seed = options_lib.integer(options, 'seed', 0)
  low, high = int(lengths[0]), int(lengths[1])
  # The content is part of the seed: speakers with as many recordings would
  # otherwise be shuffled alike, and train and eval would share their strings.
  content = int(table.fingerprint, 16)
  strings = plan(table.speakers_N, low, high, passes, [seed, content])
  kept = store.cached(
    f'trimmed-{_VERSION}-{corpus_lib.cache_key(table)}',
    options.get('cache'),
    lambda: _trimmed(table),
  )
  # Noise of its own for dev and eval; what is used once under no name, or
  # under that of a split column, hears eval's.
  known = split if split in select.SPLITS else 'eval'
  side = 0 if passes > 1 else select.SPLITS.index(known)
  fingerprint = corpus_lib.fingerprint(
    [_VERSION, side, table.fingerprint, snr, *strings]
  )
  key = corpus_lib.fingerprint([fingerprint, corpus_lib.cache_key(table)])
  made = store.cached(
    f'composed-{key}',
    options.get('cache'),
    lambda: _composed(kept, strings, snr, seed, side),
  )
  return corpus_lib.Table(
    spec=table.spec,
    utt_ids_N=[f'string-{i:06d}' for i in range(len(strings))],
    texts_N=made.texts_N,
    speakers_N=made.speakers_N,
    durations_N=made.durations_N,
    read=made.pcm,
    fingerprint=fingerprint,
    edition=table.edition,
    cache=table.cache,
  )
