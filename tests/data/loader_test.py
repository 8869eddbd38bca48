import dataclasses
import threading
import time

import numpy as np
import pytest

from s8bqat_jax.data import corpus as corpus_lib
from s8bqat_jax.data import loader as loader_lib
from s8bqat_jax.data import perturb, speeds


class Letters:
  """a = 1, b = 2, ..."""

  def encode(self, text: str) -> list[int]:
    for c in text:
      if not 'a' <= c <= 'z':
        raise ValueError(f'unknown character {c!r}')
    return [ord(c) - 96 for c in text]


def _corpus(size=23, bad=(), texts=None) -> corpus_lib.Table:
  rng = np.random.default_rng(0)
  sizes = rng.integers(2000, 30_000, size)
  audio = [rng.integers(-9000, 9000, n).astype(np.int16) for n in sizes]

  def read(i):
    if i in bad:
      raise corpus_lib.BadUtteranceError(f'row {i} is broken')
    return audio[i]

  return corpus_lib.Table(
    spec='test',
    utt_ids_N=[f'u{i}' for i in range(size)],
    texts_N=texts or ['abc'[: 1 + i % 3] for i in range(size)],
    speakers_N=['s'] * size,
    durations_N=(sizes / 16_000).astype(np.float32),
    read=read,
    fingerprint='0' * 16,
  )


def _loader(corpus, **options):
  defaults = {'batch_size': 4, 'num_buckets': 2}
  return loader_lib.make_loader(corpus, Letters(), **defaults | options)


def _same(a, b):
  assert a.keys() == b.keys()
  for name in a:
    np.testing.assert_array_equal(a[name], b[name])


def test_batches_hold_audio_labels_and_weights():
  corpus = _corpus()
  loader = _loader(corpus)
  seen = []
  for batch in loader.batches(0, loader.steps_per_epoch):
    types = {name: array.dtype for name, array in batch.items()}
    assert types == {
      'audio_BxS': np.int16,
      'audio_lengths_B': np.int32,
      'labels_BxU': np.int32,
      'label_lengths_B': np.int32,
      'indices_B': np.int32,
      'weights_B': np.float32,
    }
    for row, i in enumerate(batch['indices_B']):
      length = batch['audio_lengths_B'][row]
      labels = batch['label_lengths_B'][row]
      assert batch['weights_B'][row] == (i >= 0)
      assert not batch['audio_BxS'][row, length:].any()
      assert not batch['labels_BxU'][row, labels:].any()
      if i < 0:
        assert length == labels == 0
        continue
      seen.append(i)
      np.testing.assert_array_equal(
        batch['audio_BxS'][row, :length], corpus.pcm(int(i))
      )
      text = ''.join(chr(96 + l) for l in batch['labels_BxU'][row, :labels])
      assert text == corpus.texts_N[i]
  assert sorted(seen) == list(range(len(corpus)))


@pytest.mark.parametrize('prefetch', [0, 1, 4])
def test_resume_gives_the_uninterrupted_batches(prefetch):
  mix = perturb.Perturbation(snr_db=(0, 20))
  corpus = _corpus()
  whole = list(_loader(corpus, perturb=mix, prefetch=0).batches(0, 14))
  again = _loader(corpus, perturb=mix, prefetch=prefetch).batches(9, 14)
  for a, b in zip(whole[9:], again, strict=True):
    _same(a, b)


def test_processes_read_their_rows_of_the_same_batches():
  corpus = _corpus()
  whole = list(_loader(corpus).batches(0, 5))
  halves = [
    list(_loader(corpus, process_index=i, process_count=2).batches(0, 5))
    for i in range(2)
  ]
  for batch, first, second in zip(whole, *halves):
    _same(batch, {n: np.concatenate([first[n], second[n]]) for n in first})


def test_training_skips_counts_and_reports_a_bad_utterance():
  corpus = _corpus(bad={3})
  loader = _loader(corpus)
  seen = []
  for batch in loader.batches(0, 2 * loader.steps_per_epoch):
    seen += batch['indices_B'][batch['weights_B'] > 0].tolist()
  assert sorted(set(seen)) == [i for i in range(len(corpus)) if i != 3]
  assert loader.skipped.reasons == {'u3': 'row 3 is broken'}


def test_evaluation_raises_on_a_bad_utterance():
  loader = _loader(_corpus(bad={3}), train=False)
  with pytest.raises(corpus_lib.BadUtteranceError, match='row 3 is broken'):
    list(loader.batches(0, loader.steps_per_epoch))


def test_too_many_bad_utterances_stop_training():
  loader = _loader(_corpus(bad=set(range(9))))
  with pytest.raises(ValueError, match='of 23 utterances are unusable'):
    list(loader.batches(0, 2 * loader.steps_per_epoch))


def test_crowded_transcripts_do_not_count_as_unreadable_audio():
  texts = ['z' * 500 if i < 8 else 'a' for i in range(23)]
  loader = _loader(_corpus(bad={10, 11}, texts=texts), samples_per_label=640)
  seen = []
  for batch in loader.batches(0, 2 * loader.steps_per_epoch):
    seen += batch['indices_B'][batch['weights_B'] > 0].tolist()
  assert sorted(set(seen)) == [8, 9, *range(12, 23)]
  assert len(loader.skipped) == 10
  loader = _loader(
    _corpus(bad={10, 11, 12}, texts=texts), samples_per_label=640
  )
  with pytest.raises(ValueError, match='3 of 23 utterances are unusable'):
    list(loader.batches(0, 2 * loader.steps_per_epoch))


def test_audio_longer_than_promised_is_a_bad_utterance():
  corpus = _corpus(size=4)
  corpus.durations_N[:] = 0.1
  loader = _loader(corpus, train=False)
  with pytest.raises(corpus_lib.BadUtteranceError, match='duration of 0.100 s'):
    list(loader.batches(0, 1))


def test_an_unknown_character_names_its_utterance_at_the_start():
  texts = ['abc'] * 22 + ['a?c']
  with pytest.raises(ValueError, match="test: u22: unknown character '\\?'"):
    _loader(_corpus(texts=texts))


def test_a_transcript_too_long_for_its_audio():
  texts = ['a'] * 22 + ['z' * 500]
  corpus = _corpus(texts=texts)
  loader = _loader(corpus, samples_per_label=640)
  assert list(loader.skipped.reasons) == ['u22']
  assert '500 labels do not fit' in loader.skipped.reasons['u22']
  batches = list(loader.batches(0, loader.steps_per_epoch))
  assert 22 not in np.concatenate([b['indices_B'] for b in batches])
  assert max(b['labels_BxU'].shape[1] for b in batches) < 500
  # Equal neighbors need a frame between them.
  frames = int(corpus.durations_N[22] * 16_000) // 640
  for text, fits in (('ab' * frames, True), ('a' * frames, False)):
    near = _corpus(texts=texts[:22] + [text[: frames - 2]])
    kept = not _loader(near, samples_per_label=640).skipped.reasons
    assert kept == fits
  # Evaluation leaves nobody out.
  scored = _loader(corpus, samples_per_label=640, train=False)
  assert not scored.skipped.reasons
  assert (scored.plan.bucket_N >= 0).all()
  with pytest.raises(
    ValueError,
    match='none of .* can be trained on, the first: .* labels do not fit',
  ):
    _loader(_corpus(texts=['z' * 500] * 23), samples_per_label=640)


def test_audio_too_short_for_a_frame_is_left_out_of_training():
  corpus = _corpus()
  corpus.durations_N[[3, 7]] = 0, 0.05
  loader = _loader(corpus, min_samples=1200)
  assert set(loader.skipped.reasons) == {'u3', 'u7'}
  assert 'hold no frame of the encoder' in loader.skipped.reasons['u7']
  seen = [b['indices_B'] for b in loader.batches(0, loader.steps_per_epoch)]
  assert not {3, 7} & set(np.concatenate(seen).tolist())
  # It has to be enough after it was read faster.
  corpus.durations_N[7] = 0.078
  fast = perturb.Perturbation(speeds=(1.0, 1.1))
  for options, short in (({}, {'u3'}), ({'perturb': fast}, {'u3', 'u7'})):
    kept = _loader(corpus, min_samples=1200, **options)
    assert set(kept.skipped.reasons) == short
  assert not _loader(corpus, min_samples=1200, train=False).skipped.reasons
  with pytest.raises(ValueError, match='the first: .* hold no frame'):
    _loader(corpus, min_samples=10**6)


def test_an_empty_transcript_is_a_row_without_labels():
  corpus = _corpus(size=2, texts=['', 'a'])
  (batch,) = _loader(corpus, num_buckets=1).batches(0, 1)
  lengths = dict(zip(batch['indices_B'], batch['label_lengths_B']))
  assert lengths[0] == 0 and lengths[1] == 1


def test_read_ahead_ends_its_thread_when_closed():
  made = []

  def items():
    for i in range(1000):
      made.append(i)
      yield {'i': np.array(i)}

  before = threading.active_count()
  ahead = loader_lib.read_ahead(items(), 2)
  assert next(ahead)['i'] == 0
  ahead.close()
  for _ in range(100):
    if threading.active_count() == before:
      break
    time.sleep(0.02)
  assert threading.active_count() == before
  assert len(made) <= 5


def test_read_ahead_passes_on_errors():
  def items():
    yield {'i': np.array(0)}
    raise KeyError('inside')

  ahead = loader_lib.read_ahead(items(), 2)
  next(ahead)
  with pytest.raises(KeyError, match='inside'):
    next(ahead)


def test_a_perturbed_batch_carries_speed_gain_and_noise():
  corpus = _corpus()
  mix = perturb.Perturbation(speeds=(0.9, 1.0), snr_db=(0, 20))
  loader = _loader(corpus, perturb=mix, seed=5)
  for planned in loader.plan.epoch(2):
    batch = loader.make(planned)
    for row, i in enumerate(batch['indices_B'].tolist()):
      if i < 0:
        assert batch['gains_B'][row] == 1 and np.isinf(batch['snr_db_B'][row])
        continue
      draw = mix.draw(5, 2, i)
      np.testing.assert_allclose(
        [batch[n][row] for n in ('gains_B', 'snr_db_B', 'noise_places_B')],
        [draw.gain, draw.snr_db, draw.noise_place],
        rtol=1e-6,
      )
      assert batch['noise_kinds_B'][row] == draw.noise_kind
      np.testing.assert_array_equal(
        batch['audio_BxS'][row, : batch['audio_lengths_B'][row]],
        speeds.change(corpus.pcm(i), draw.speed),
      )
  assert 'snr_db_B' not in next(
    _loader(corpus, perturb=perturb.Perturbation()).batches()
  )


@pytest.mark.parametrize('prefetch', [0, 2])
def test_a_reader_that_stops_is_not_the_end_of_the_data(prefetch):
  corpus = _corpus(8)
  read = corpus.read

  def stops(i):
    return next(iter(())) if i == 3 else read(i)

  loader = loader_lib.make_loader(
    dataclasses.replace(corpus, read=stops),
    Letters(),
    batch_size=2,
    train=False,
    prefetch=prefetch,
  )
  with pytest.raises(RuntimeError):
    list(loader.batches(0, loader.steps_per_epoch))
