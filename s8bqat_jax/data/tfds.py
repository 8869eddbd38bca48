"""`tfds:NAME:SPLIT`: sets in the layout of TensorFlow Datasets.

TensorFlow is not needed to read a prepared set: records are read raw and
parsed with NumPy, because the Audio feature class would import it. Nor is it
needed to prepare one: `prepare` writes any corpus. Only preparing a set of the
TFDS catalog (`tfds:librispeech:train_clean100`) takes the [tfds] extra.
"""

import dataclasses
import io
import json
import pathlib
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import soundfile

from s8bqat_jax.data import audio, manifest, select, store
from s8bqat_jax.data import corpus as corpus_lib

OPTIONS = manifest.OPTIONS | {
  'dir': 'where prepared sets are (~/tensorflow_datasets)',
}

# What sets call the parts of an utterance; the first that is there counts.
_AUDIO = ('audio', 'speech')
_TEXT = ('text', 'transcript', 'sentence')
_SPEAKER = ('speaker', 'speaker_id', 'client_id')
_UTT_ID = ('utt_id', 'id', 'audio_id')


@dataclasses.dataclass(frozen=True)
class AudioField:
  """How a set stores audio."""

  name: str
  dtype: str
  encoding: str  # none, bytes or zlib
  rate: int
  is_file: bool  # the bytes of an audio file, decoded when read

  def decode(self, value: Any) -> tuple[np.ndarray, int]:
    """Returns samples [S] or [S, C], float32 in [-1, 1], and their rate."""
    if self.is_file:
      return soundfile.read(io.BytesIO(value), dtype='float32')
    if self.encoding != 'none':
      value = zlib.decompress(value) if self.encoding == 'zlib' else value
      value = np.frombuffer(value, self.dtype)
    samples = np.asarray(value)
    if np.issubdtype(samples.dtype, np.integer):
      samples = samples.astype(np.float32) / 32768
    return samples, self.rate


def _first(
  names: Sequence[str], features: Mapping[str, Any], what: str, source: object
) -> str:
  for name in names:
    if name in features:
      return name
  raise ValueError(
    f'{source}: no {what} feature ({" or ".join(names)}); there are '
    f'{", ".join(features)}'
  )


def _audio_field(features: Mapping[str, Any], source: object) -> AudioField:
  name = _first(_AUDIO, features, 'audio', source)
  content = features[name].get('audio') or features[name].get('tensor') or {}
  encoding = str(content.get('encoding') or 'none').lower()
  return AudioField(
    name,
    content.get('dtype', 'int64'),
    encoding,
    int(content.get('sampleRate') or corpus_lib.SAMPLE_RATE),
    bool(content.get('lazyDecode')),
  )


@dataclasses.dataclass(frozen=True)
class Prepared:
  """A split of a prepared set.

  Attributes:
    folder: Where its description lies.
    shards: Its array_record files, in order.
    features: Of features.json, name -> description.
  """

  folder: pathlib.Path
  shards: tuple[pathlib.Path, ...]
  features: Mapping[str, Any]


def find(directory: pathlib.Path, name: str) -> pathlib.Path | None:
  """Returns the folder of the newest prepared version of a set, if any.

  Args:
    directory: A TFDS data_dir.
    name: Of the set, with `/config` where it has one (`default` goes without).
  """

  def version(folder: pathlib.Path) -> tuple[int, ...]:
    return tuple(int(part) for part in folder.name.split('.'))

  for place in (directory / name, directory / name / 'default'):
    found = [
      f.parent
      for f in place.glob('*/features.json')
      if all(part.isdigit() for part in f.parent.name.split('.'))
    ]
    if found:
      return max(found, key=version)
  return None


def open_split(folder: pathlib.Path, split: str) -> Prepared:
  """Reads the description of a prepared set.

  Args:
    folder: With dataset_info.json and features.json.
    split: One of its splits.

  Returns:
    The split.
  """
  info = json.loads((folder / 'dataset_info.json').read_text('utf-8'))
  splits = {s['name']: s for s in info.get('splits', ())}
  if split not in splits:
    raise ValueError(
      f'{folder}: no split {split!r}; there are {", ".join(splits)}'
    )
  if info.get('fileFormat') != 'array_record':
    raise ValueError(
      f'{folder}: prepared as {info.get("fileFormat", "tfrecord")}, which has '
      "no random access; prepare it with file_format='array_record'"
    )
  shards = sorted(folder.glob(f'{info["name"]}-{split}.array_record-*-of-*'))
  promised = len(splits[split]['shardLengths'])
  if len(shards) != promised:
    raise ValueError(
      f'{folder}: {len(shards)} of the {promised} files of split {split!r} '
      'are there'
    )
  features = json.loads((folder / 'features.json').read_text('utf-8'))
  return Prepared(folder, tuple(shards), features['featuresDict']['features'])


class Records:
  """The utterances of a prepared split, parsed one at a time."""

  def __init__(self, prepared: Prepared, spec: str):
    """Opens the split.

    Args:
      prepared: From `open_split`.
      spec: What errors name.
    """
    from array_record.python import array_record_data_source
    from tensorflow_datasets.core import example_parser
    from tensorflow_datasets.core.features import feature

    features, source = prepared.features, prepared.folder
    self.audio = _audio_field(features, source)
    self.text = _first(_TEXT, features, 'text', source)
    self.optional = {
      'speaker': next((n for n in _SPEAKER if n in features), None),
      'utt_id': next((n for n in _UTT_ID if n in features), None),
    }
    packed = self.audio.is_file or self.audio.encoding != 'none'
    specs = {
      self.audio.name: feature.TensorInfo((), np.object_)
      if packed
      else feature.TensorInfo((None,), np.dtype(self.audio.dtype)),
      self.text: feature.TensorInfo((), np.object_),
    }
    for name in self.optional.values():
      if name is not None:
        content = features[name].get('tensor') or {}
        number = 'int' in content.get('dtype', '')
        specs[name] = feature.TensorInfo((), np.int64 if number else np.object_)
    self._source = array_record_data_source.ArrayRecordDataSource(
      [str(s) for s in prepared.shards]
    )
    self._parser = example_parser.ExampleParserNp(specs)
    self._folder, self._spec = prepared.folder, spec

  def __len__(self) -> int:
    return len(self._source)

  def parse(self, index: int) -> Mapping[str, Any]:
    """Returns the fields of record `index`, still encoded."""
    return self._parser.parse_example(self._source[index])

  def _decoded(self, index: int) -> tuple[Mapping[str, Any], np.ndarray, int]:
    """Returns record `index`, its samples and their rate."""
    try:
      record = self.parse(index)
      samples, rate = self.audio.decode(record[self.audio.name])
      if not np.isfinite(samples).all():
        raise ValueError('samples that are not finite')
      return record, samples, rate
    except (soundfile.LibsndfileError, zlib.error, ValueError) as e:
      raise corpus_lib.BadUtteranceError(
        f'{self._spec}: record {index} of {self._folder} is damaged ({e}); '
        'prepare the set again'
      ) from e

  def pcm(self, index: int) -> np.ndarray:
    """Returns the int16 [S] samples of record `index` at 16 kHz."""
    _, samples, rate = self._decoded(index)
    mono_S = samples.mean(axis=1) if samples.ndim == 2 else samples
    return audio.to_int16(audio.resample(mono_S, rate))

  def columns(self) -> dict[str, list[str]]:
    """Reads every record once: texts, speakers, names and durations."""

    def plain(value: Any) -> str:
      return value.decode() if isinstance(value, bytes) else str(value)

    out: dict[str, list[str]] = {'utt_id': [], 'text': [], 'duration_s': []}
    if self.optional['speaker'] is not None:
      out['speaker'] = []
    for i in range(len(self)):
      record, samples, rate = self._decoded(i)
      out['text'].append(plain(record[self.text]))
      for column, name in self.optional.items():
        if name is not None:
          out[column].append(plain(record[name]))
      if self.optional['utt_id'] is None:
        out['utt_id'].append(f'{i:08d}')
      out['duration_s'].append(str(len(samples) / rate))
    return out


def _prepare_from_catalog(name: str, directory: pathlib.Path) -> None:
  """Downloads and prepares a catalog set, which takes TensorFlow."""
  try:
    import tensorflow  # noqa: F401
  except ImportError as e:
    raise ImportError(
      f'tfds:{name} is not prepared in {directory}, and preparing a set of the '
      "TFDS catalog takes TensorFlow: pip install 's8bqat_jax[tfds]' (and a "
      'network), or name the folder of a prepared set with dir='
    ) from e
  import tensorflow_datasets as tfds

  builder = tfds.builder(
    name, data_dir=str(directory), file_format='array_record'
  )
  builder.download_and_prepare()


def load(rest: str, options: Mapping[str, str], spec: str) -> corpus_lib.Corpus:
  """Opens `tfds:NAME:SPLIT`.

  Args:
    rest: `NAME:SPLIT`; NAME may be `set/config`.
    options: `dir`, and as for a manifest.
    spec: The spec asked for.

  Returns:
    The corpus. Its columns are read once, then cached.
  """
  name, colon, split = rest.partition(':')
  if not colon or not name or not split:
    raise ValueError(
      f'tfds:{rest}: expected tfds:NAME:SPLIT, e.g. tfds:librispeech:dev_clean'
    )
  directory = pathlib.Path(options.get('dir', '~/tensorflow_datasets'))
  directory = directory.expanduser()
  folder = find(directory, name)
  if folder is None:
    _prepare_from_catalog(name, directory)
    folder = find(directory, name)
    if folder is None:
      raise ValueError(f'tfds:{name}: prepared, but not found in {directory}')
  prepared = open_split(folder, split)
  records = Records(prepared, spec)
  content = [
    (folder / 'features.json').read_text('utf-8'),
    *((s.name, s.stat().st_size) for s in prepared.shards),
  ]
  # A set that is copied is the same; one that is prepared again may not be.
  edition = corpus_lib.fingerprint(
    s.stat().st_mtime_ns for s in prepared.shards
  )
  columns = store.cached_json(
    f'tfds-{corpus_lib.fingerprint([*content, edition])}',
    options.get('cache'),
    records.columns,
  )
  columns['record'] = [str(i) for i in range(len(records))]
  chosen = select.table(columns, options)
  numbers = [int(n) for n in chosen['record']]
  return manifest.make_table(
    chosen,
    [float(s) for s in chosen['duration_s']],
    lambda i: records.pcm(numbers[i]),
    options,
    spec,
    [*content, *numbers],
    edition,
  )


def prepare(
  corpora: Mapping[str, corpus_lib.Corpus],
  name: str,
  directory: pathlib.Path | str,
) -> pathlib.Path:
  """Writes corpora as the splits of a TFDS set, without TensorFlow.

  Args:
    corpora: Split name -> corpus.
    name: Of the set, in snake_case.
    directory: A TFDS data_dir.

  Returns:
    The folder of the set, which `tfds:NAME:SPLIT?dir=DIRECTORY` opens and
    `tfds.builder_from_directory` too.
  """
  import tensorflow_datasets as tfds
  from tensorflow_datasets.core import registered

  # Registered classes can't be defined twice, and this one is per call.
  with registered.skip_registration():

    class Builder(tfds.core.GeneratorBasedBuilder):
      """Audio as bytes of int16, which need no TensorFlow to decode."""

      VERSION = tfds.core.Version('1.0.0')

      def _info(self):
        samples = tfds.features.Tensor(
          shape=(None,), dtype=np.int16, encoding=tfds.features.Encoding.BYTES
        )
        return tfds.core.DatasetInfo(
          builder=self,
          features=tfds.features.FeaturesDict(
            {
              'audio': samples,
              'text': tfds.features.Text(),
              'speaker': tfds.features.Text(),
              'utt_id': tfds.features.Text(),
            }
          ),
        )

      def _split_generators(self, dl_manager):
        return {s: self._generate_examples(c) for s, c in corpora.items()}

      def _generate_examples(self, corpus):
        for i in range(len(corpus)):
          yield (
            i,
            {
              'audio': np.ascontiguousarray(corpus.pcm(i)),
              'text': corpus.texts_N[i],
              'speaker': corpus.speakers_N[i],
              'utt_id': corpus.utt_ids_N[i],
            },
          )

    named = type(name, (Builder,), {'name': name})
  builder = named(data_dir=str(directory), file_format='array_record')
  builder.download_and_prepare()
  return pathlib.Path(builder.data_dir)
