"""`espeak:KIND`: speech synthesized with eSpeak NG, the embedded default.

KIND says what is read: `digits` (3-7 digits), `commands` (1-4 command words),
`grammar` (sentences of a closed grammar of 313 words) or `text` (the sentences
of a file). Voices of dev and eval (variants, and one accent) appear nowhere
else, nor do their texts, but for those of `commands`. Utterance i is a function
of the options and i alone; the first load synthesizes the corpus into a cache.
"""

import dataclasses
import functools
import hashlib
import pathlib
import threading
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import tqdm

from s8bqat_jax import files
from s8bqat_jax.data import (
  audio,
  espeak_engine,
  espeak_texts,
  noise,
  select,
  store,
)
from s8bqat_jax.data import corpus as corpus_lib
from s8bqat_jax.data import options as options_lib

OPTIONS = {
  'split': 'train, dev or eval (train)',
  'hours': 'synthesize until there are so many hours (0.5)',
  'utterances': 'or so many utterances',
  'snr': 'noise in dB, LO-HI, or clean (clean)',
  'seed': 'another seed, other utterances (0)',
  'file': 'text: the file whose sentences are read',
  'texts': 'text: splits whose sentences are read in turn, instead of drawn',
  'cache': 'folder for the samples, or none to keep them in memory',
}

HELD_OUT_ACCENT = 'en-gb-x-gbcwmd'
_DEV_VARIANTS, _EVAL_VARIANTS = 6, 14

# Raise when the same options must give other samples: caches are then remade.
_VERSION = 1


@dataclasses.dataclass(frozen=True)
class Recipe:
  """Everything that is drawn for one utterance."""

  text: str
  accent: str
  variant: str
  rate: int
  pitch: int
  pitch_range: int
  word_gap: int
  lead_s: float
  trail_s: float
  level_db: float
  snr_db: float | None

  @property
  def speaker(self) -> str:
    return f'{self.accent}+{self.variant}'


@functools.cache
def variants_of(split: str) -> tuple[str, ...]:
  """Returns the voice variants of a split, disjoint between splits.

  Args:
    split: train, dev or eval.
  """
  order = sorted(
    espeak_engine.variants(),
    key=lambda v: hashlib.sha256(v.encode()).hexdigest(),
  )
  ends = {
    'dev': (0, _DEV_VARIANTS),
    'eval': (_DEV_VARIANTS, _DEV_VARIANTS + _EVAL_VARIANTS),
    'train': (_DEV_VARIANTS + _EVAL_VARIANTS, None),
  }
  return tuple(order[slice(*ends[split])])


def accents_of(split: str) -> tuple[str, ...]:
  """Returns the accents of a split: dev and eval have one of their own.

  Args:
    split: train, dev or eval.
  """
  if split != 'train':
    return (HELD_OUT_ACCENT,)
  return tuple(a for a in espeak_engine.ACCENTS if a != HELD_OUT_ACCENT)


def draw_recipe(
  rng: np.random.Generator,
  split: str,
  make_text: Callable[[np.random.Generator], str],
  snr: tuple[float, float] | None,
) -> Recipe:
  """Draws one utterance.

  Args:
    rng: The utterance's own generator.
    split: Whose voices speak.
    make_text: Draws the text.
    snr: Range of noise in dB, None for clean speech.

  Returns:
    What `render` needs.
  """
  accents, variants = accents_of(split), variants_of(split)
  return Recipe(
    text=make_text(rng),
    accent=accents[int(rng.integers(len(accents)))],
    variant=variants[int(rng.integers(len(variants)))],
    rate=int(rng.integers(130, 221)),
    pitch=int(rng.integers(25, 76)),
    pitch_range=int(rng.integers(30, 81)),
    word_gap=int(rng.integers(0, 8)),
    lead_s=float(rng.uniform(0.05, 0.4)),
    trail_s=float(rng.uniform(0.05, 0.4)),
    level_db=float(rng.uniform(-32, -18)),
    snr_db=None if snr is None else float(rng.uniform(*snr)),
  )


def render(
  engine: espeak_engine.Engine,
  recipe: Recipe,
  rng: np.random.Generator,
  side: int,
) -> np.ndarray:
  """Returns the int16 [S] samples of a recipe at 16 kHz.

  Args:
    engine: Says the text.
    recipe: What to say, and how.
    rng: Draws the noise.
    side: Which bank of noise.
  """
  spoken_S = engine.synthesize(
    recipe.text,
    recipe.accent,
    recipe.variant,
    rate=recipe.rate,
    pitch=recipe.pitch,
    pitch_range=recipe.pitch_range,
    word_gap=recipe.word_gap,
  )
  speech_S = audio.resample(spoken_S / np.float32(32768), espeak_engine.RATE)
  power = noise.speech_power(speech_S)
  if power < 1e-8:
    raise RuntimeError(f'eSpeak NG returned silence for {recipe}')
  speech_S *= np.float32(10 ** (recipe.level_db / 20) / power**0.5)
  pauses = (recipe.lead_s, recipe.trail_s)
  pads = [int(s * corpus_lib.SAMPLE_RATE) for s in pauses]
  padded_S = np.pad(speech_S, pads)
  if recipe.snr_db is not None:
    noise_S = noise.draw(rng, len(padded_S), side)
    padded_S = noise.mix(padded_S, noise_S, recipe.snr_db)
  return audio.to_int16(padded_S)


@dataclasses.dataclass(frozen=True)
class Synthesis:
  """A corpus to be synthesized; utterance i depends on these and i alone."""

  kind: str
  split: str
  seed: int
  snr: tuple[float, float] | None
  file: str | None = None
  # What was made before there was a choice keeps its name.
  texts: tuple[str, ...] = dataclasses.field(default=(), repr=False)

  def utterances(self, start: int, count: int) -> Iterator[store.Entry]:
    """Synthesizes `count` utterances from `start` on, in threads, in order.

    Args:
      start: First index.
      count: How many.

    Returns:
      Samples, text and speaker of each.
    """
    make_text = self.texts_by_turn()
    side = select.SPLITS.index(self.split)
    engines = threading.local()

    def make(index: int) -> store.Entry:
      if not hasattr(engines, 'own'):
        engines.own = espeak_engine.Engine()
      rng = np.random.default_rng([_VERSION, self.seed, side, index])
      text = functools.partial(make_text, index)
      recipe = draw_recipe(rng, self.split, text, self.snr)
      pcm_S = render(engines.own, recipe, rng, side)
      return store.Entry(pcm_S, recipe.text, recipe.speaker)

    if self.snr is not None:
      for kind in noise.KINDS:  # threads would each make the bank
        noise.bank(kind, side)
    return store.in_threads(make, count, start)

  def texts_by_turn(self) -> Callable[[int, np.random.Generator], str]:
    """Returns what says the text of utterance i; a bad file is an error."""
    if self.texts:
      in_turn = espeak_texts.owned(
        self.file, self.texts, espeak_texts.whole_sentences
      )
      return lambda index, rng: in_turn[index % len(in_turn)]
    draw = espeak_texts.text_maker(self.kind, self.split, self.file)
    return lambda index, rng: draw(rng)

  def until(self, seconds: float) -> Iterator[store.Entry]:
    """Synthesizes the first utterances that last `seconds` together.

    Args:
      seconds: When to stop; the utterance that passes it is the last.

    Yields:
      As `utterances`.
    """
    made = 0.0
    with self._bar(round(seconds), 's') as bar:
      for entry in self.utterances(0, 2**40):
        yield entry
        made += len(entry.pcm_S) / corpus_lib.SAMPLE_RATE
        bar.update(int(made) - bar.n)
        if made >= seconds:
          return

  def first(self, count: int) -> Iterator[store.Entry]:
    """Synthesizes the first `count` utterances.

    Args:
      count: How many.

    Yields:
      As `utterances`.
    """
    with self._bar(count, 'utt') as bar:
      for entry in self.utterances(0, count):
        yield entry
        bar.update()

  def _bar(self, total: int, unit: str) -> tqdm.tqdm:
    return tqdm.tqdm(
      total=total,
      unit=unit,
      desc=f'espeak:{self.kind} {self.split}',
      disable=None,  # no bar in a log file
    )


def load(rest: str, options: Mapping[str, str], spec: str) -> corpus_lib.Corpus:
  """Opens `espeak:rest`, synthesizing what no cache holds.

  Args:
    rest: One of `espeak_texts.KINDS`.
    options: See `OPTIONS`.
    spec: The spec asked for.

  Returns:
    The corpus; its samples are memory-mapped, or in memory with cache=none.
  """
  if rest not in espeak_texts.KINDS:
    raise ValueError(
      f'espeak:{rest}: expected one of {", ".join(espeak_texts.KINDS)}'
    )
  if 'hours' in options and 'utterances' in options:
    raise ValueError('give hours= or utterances=, not both')
  for name in ('file', 'texts'):
    if name in options and rest != 'text':
      raise ValueError(f'{name}= is for espeak:text')
  texts = options_lib.names(options, 'texts') or []
  if not set(texts) <= set(select.SPLITS):
    raise ValueError(
      f'texts={options["texts"]!r}: expected some of {", ".join(select.SPLITS)}'
    )
  task = Synthesis(
    kind=rest,
    split=options_lib.choice(options, 'split', select.SPLITS, 'train'),
    seed=options_lib.integer(options, 'seed', 0),
    snr=options_lib.interval(options, 'snr', None),
    file=options.get('file'),
    texts=tuple(texts),
  )
  count = options_lib.integer(options, 'utterances', 0, least=1)
  seconds = 3600 * options_lib.number(options, 'hours', 0.5)
  task.texts_by_turn()  # A bad file is found before anything is synthesized.
  content = [_VERSION, espeak_engine.version(), task, count or seconds]
  if task.file is not None:
    content.append(files.read_text(pathlib.Path(task.file).expanduser()))
    content[2] = dataclasses.replace(task, file=None)
  content += [task.texts] if texts else []
  name = corpus_lib.fingerprint(content)

  def entries() -> Iterator[store.Entry]:
    return task.first(count) if count else task.until(seconds)

  kept = store.cached(
    f'espeak-{rest}-{task.split}-{name}', options.get('cache'), entries
  )
  return corpus_lib.Table(
    spec=spec,
    utt_ids_N=[
      f'{rest}-{task.split}-{i:06d}' for i in range(len(kept.texts_N))
    ],
    texts_N=kept.texts_N,
    speakers_N=kept.speakers_N,
    durations_N=kept.durations_N,
    read=kept.pcm,
    fingerprint=name,
    cache=options.get('cache'),
  )
