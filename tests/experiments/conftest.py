"""A small recognizer with random weights, for tests of other arithmetics.

Experiments train on one device here, as on most machines: programs for all
eight take longer to compile, and that a mesh gives the same numbers is for
tests/training and tests/quantizers to show.
"""

import jax
import numpy as np
import pytest
import soundfile

from experiments import integer_recognizer, language_model
from experiments import recognizer as recognizer_lib
from s8bqat_jax import data, quantizers, training
from s8bqat_jax.artifacts import packed_file
from s8bqat_jax.models import rnnt
from s8bqat_jax.quantizers import admm_tables, lloyd_max, quantize_once
from s8bqat_jax.speech import features, normalize, tokenizers
from s8bqat_jax.training import mesh as mesh_lib
from tests.quantizers import quick

B, S, U = 3, 16000, 4


@pytest.fixture(autouse=True, scope='session')
def one_device():
  with pytest.MonkeyPatch.context() as patch:
    first = jax.devices()[:1]
    make = lambda devices=first: mesh_lib.make_mesh(devices)
    patch.setattr(training, 'make_mesh', make)
    yield


@pytest.fixture(scope='module')
def quick_fit():
  """Lloyd-Max from even centroids, where the fit is not what is tested."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(lloyd_max, 'fit', quick.even)
    patch.setattr(admm_tables, 'fit_lloyd_max', quick.even)
    yield


@pytest.fixture(scope='module')
def recognizer():
  tokenizer = tokenizers.CharTokenizer.from_texts(['abcdefg'])
  model = rnnt.RNNT(
    tokenizer.vocab_size, encoder_layers=1, encoder_width=12,
    predictor_width=10, joint_width=8, embed_width=6, reduce_after=(0,),
    ctc=True, dropout=0.5,
  )  # fmt: skip
  return recognizer_lib.Recognizer(
    model=model,
    log_mel=features.LogMel(num_mels=20),
    normalization=normalize.GlobalNorm(np.full(20, -4.0), np.full(20, 3.0)),
    tokenizer=tokenizer,
    augment=data.SpecAugment(freq_width=4, time_width=5),
    ctc_weight=0.3,
  )


@pytest.fixture(scope='module')
def params(recognizer):
  """Random weights, the matrices larger, so that labels are emitted."""
  params = jax.jit(recognizer.init)(jax.random.key(0))
  return jax.tree.map(lambda x: 2 * x if x.ndim > 1 else x, params)


@pytest.fixture(scope='module')
def tree(params):
  return jax.device_get(quantize_once(quantizers.uniform(8), params))


@pytest.fixture(scope='module')
def batch():
  r = np.random.default_rng(0)
  envelope = np.abs(np.sin(np.arange(S) / 900)) * 60
  audio = (r.normal(size=(B, S)) * envelope).astype(np.int16)
  lengths = np.array([S, 12000, 9000], np.int32)
  audio[np.arange(S) >= lengths[:, None]] = 0
  return {
    'audio_BxS': audio,
    'audio_lengths_B': lengths,
    'labels_BxU': r.integers(1, 8, (B, U)).astype(np.int32),
    'label_lengths_B': np.array([4, 2, 1], np.int32),
    'weights_B': np.ones(B, np.float32),
  }


@pytest.fixture(scope='module')
def ranges(recognizer, params, batch):
  return integer_recognizer.calibrate(recognizer, params, [batch])


@pytest.fixture
def save(recognizer, tree, tmp_path):
  """Writes the recognizer into a packed file, ranges beside it or not."""

  def save(name, ranges=None):
    config = {'recognizer': recognizer.to_config()}
    if ranges is not None:
      config[integer_recognizer.CONFIG_KEY] = ranges
    tokenizer = recognizer.tokenizer.to_config()
    packed_file.save(tmp_path / name, tree, config=config, tokenizer=tokenizer)
    return tmp_path / name

  return save


@pytest.fixture
def spoken(recognizer, params, tmp_path):
  """(packed recognizer, data spec, sentences): it hears nothing in noise."""
  rng = np.random.default_rng(0)
  rows = ['path,speaker,text']
  for i, text in enumerate(['ab c', 'b', 'c ab a', 'a b']):
    pcm = (2000 * rng.normal(size=9000)).astype(np.int16)
    soundfile.write(tmp_path / f'{i}.wav', pcm, 16000)
    rows.append(f'{i}.wav,{"xy"[i % 2]},{text}')
  (tmp_path / 'all.csv').write_text('\n'.join(rows) + '\n')
  own, tree = recognizer_lib.shipped(recognizer, params)
  letters = tokenizers.CharTokenizer.from_texts(['abc efg'])  # with a space
  packed_file.save(
    tmp_path / 'asr.safetensors',
    jax.device_get(tree),
    config={'recognizer': own.to_config()},
    tokenizer=letters.to_config(),
  )
  (tmp_path / 'sentences.txt').write_text('a b\nb c\nab\n')
  return (
    tmp_path / 'asr.safetensors',
    f'manifest:{tmp_path}/all.csv',
    tmp_path / 'sentences.txt',
  )


@pytest.fixture(scope='module')
def lms(tmp_path_factory):
  """{name: file}: of random weights, and of zeros, which know nothing."""
  folder = tmp_path_factory.mktemp('models')
  tokenizer = tokenizers.WordTokenizer.from_texts(['a b c <unk>'])
  about = {'width': 8, 'layers': 1, 'heads': 2, 'ffn_width': 16, 'tied': True}
  made = language_model.from_config(about, tokenizer)
  fresh = made.init(jax.random.key(0))
  zeros = jax.tree.map(np.zeros_like, fresh)
  for name, tree in (('fresh', fresh), ('zeros', zeros)):
    packed_file.save(
      folder / f'{name}.safetensors',
      jax.device_get(tree),
      config={language_model.CONFIG_KEY: made.to_config()},
      tokenizer=tokenizer.to_config(),
    )
  return {n: str(folder / f'{n}.safetensors') for n in ('fresh', 'zeros')}
