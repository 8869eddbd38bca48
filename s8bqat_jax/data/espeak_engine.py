"""eSpeak NG in the process, one reproducible utterance at a time.

eSpeak keeps state between calls in static variables (wave phase, filters, a
random generator): the same sentence sounds different after another one. Only
a library that has just been loaded is in a known state, so it is loaded anew
for every utterance (0.7 ms). Each engine loads a private copy of the file,
whose statics are its own: engines run side by side in threads.
"""

import _ctypes
import ctypes
import os
import pathlib
import shutil
import tempfile
import threading
import weakref

import numpy as np

RATE = 22_050

ACCENTS = (
  'en',
  'en-029',
  'en-gb-scotland',
  'en-gb-x-gbclan',
  'en-gb-x-gbcwmd',
  'en-gb-x-rp',
  'en-us',
  'en-us-nyc',
)

# These two draw from the C library's generator, which belongs to the whole
# process and cannot be put in a known state from here.
_IRREPRODUCIBLE = ('Reed', 'caleb')

_SYNCHRONOUS = 2
_UTF8 = 1
_PARAMETERS = {'rate': 1, 'pitch': 3, 'pitch_range': 4, 'word_gap': 7}

_Callback = ctypes.CFUNCTYPE(
  ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p
)


def _loader():
  try:
    import espeakng_loader
  except ImportError as e:
    raise ImportError(
      'espeak: data needs eSpeak NG, which the [demo] extra brings: '
      "pip install 's8bqat_jax[demo]' (or: pip install espeakng-loader)"
    ) from e
  return espeakng_loader


def variants() -> list[str]:
  """Returns the voice variants whose sound is reproducible, sorted."""
  folder = pathlib.Path(_loader().get_data_path()) / 'voices' / '!v'
  return sorted(
    f.name for f in folder.iterdir() if f.name not in _IRREPRODUCIBLE
  )


def version() -> str:
  """Returns the version of the library, part of a corpus's fingerprint."""
  library = ctypes.CDLL(_loader().get_library_path())
  library.espeak_Info.restype = ctypes.c_char_p
  return library.espeak_Info(None).decode().split()[0]


def _make_home(home: pathlib.Path) -> pathlib.Path:
  """A private copy of the library and a view of its data.

  Accents lie directly under `lang`, by the name they are asked for: otherwise
  eSpeak reads all its 240 voice files to find one, at every call.
  """
  data = pathlib.Path(_loader().get_data_path())
  view = home / 'espeak-ng-data'
  (view / 'lang').mkdir(parents=True)
  for entry in data.iterdir():
    if entry.name != 'lang':
      (view / entry.name).symlink_to(entry)
  for entry in (data / 'lang' / 'gmw').iterdir():
    if entry.name.lower() in ACCENTS:
      (view / 'lang' / entry.name.lower()).symlink_to(entry)
  source = pathlib.Path(_loader().get_library_path())
  return pathlib.Path(shutil.copy(source, home / source.name))


class Engine:
  """One private eSpeak; use from one thread at a time."""

  def __init__(self):
    home = tempfile.mkdtemp(prefix='s8bqat-espeak-')
    weakref.finalize(self, shutil.rmtree, home, ignore_errors=True)
    self._home = pathlib.Path(home)
    self._library = _make_home(self._home)
    self._lock = threading.Lock()
    self._check_unloading()

  def _check_unloading(self) -> None:
    """Raises where closing a library leaves it in memory (musl does)."""
    _ctypes.dlclose(ctypes.CDLL(str(self._library))._handle)
    try:
      ctypes.CDLL(str(self._library), mode=os.RTLD_NOLOAD | os.RTLD_NOW)
    except OSError:
      return
    raise RuntimeError(
      'this system does not unload libraries, so eSpeak NG cannot be brought '
      'into a known state: its speech would not be reproducible'
    )

  def synthesize(
    self,
    text: str,
    accent: str,
    variant: str,
    *,
    rate: int = 170,
    pitch: int = 50,
    pitch_range: int = 50,
    word_gap: int = 0,
  ) -> np.ndarray:
    """Says a text; the same arguments give the same samples, always.

    Args:
      text: What to say.
      accent: One of `ACCENTS`.
      variant: One of `variants()`.
      rate: Words per minute, 80 to 450.
      pitch: 0 to 100.
      pitch_range: 0 (monotone) to 100.
      word_gap: Pause between words, in units of 10 ms.

    Returns:
      int16 [S] at 22050 Hz.
    """
    pieces: list[bytes] = []

    @_Callback
    def collect(wave, count, unused_events):
      if wave and count > 0:
        pieces.append(ctypes.string_at(wave, 2 * count))
      return 0

    with self._lock:
      library = ctypes.CDLL(str(self._library))
      try:
        home = os.fsencode(self._home)
        if library.espeak_Initialize(_SYNCHRONOUS, 0, home, 0) != RATE:
          raise RuntimeError(f'eSpeak NG does not start with data in {home!r}')
        library.espeak_SetSynthCallback(collect)
        library.espeak_ng_SetRandSeed(ctypes.c_long(1))
        voice = f'{accent}+{variant}'
        if library.espeak_SetVoiceByName(voice.encode()):
          raise ValueError(f'eSpeak NG has no voice {voice!r}')
        values = (rate, pitch, pitch_range, word_gap)
        for code, value in zip(_PARAMETERS.values(), values):
          library.espeak_SetParameter(code, value, 0)
        line = text.encode() + b'\0'
        failed = library.espeak_Synth(
          line,
          ctypes.c_size_t(len(line)),
          ctypes.c_uint(0),
          0,
          ctypes.c_uint(0),
          ctypes.c_uint(_UTF8),
          None,
          None,
        )
        if failed:
          raise RuntimeError(f'eSpeak NG failed ({failed}) on {text!r}')
        library.espeak_Terminate()
      finally:
        _ctypes.dlclose(library._handle)
    return np.frombuffer(b''.join(pieces), np.int16)
