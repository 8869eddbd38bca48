"""The recognizer, from config to packed file to text, on a tiny problem."""

import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
import soundfile

pytest.importorskip('espeakng_loader')

from experiments import fitting, scoring, streaming, trainer
from experiments import recognizer as recognizer_lib
from s8bqat_jax import data, quantizers, training
from s8bqat_jax.artifacts import packed_file
from s8bqat_jax.models import rnnt
from s8bqat_jax.quantizers import tree as trees
from s8bqat_jax.training import mesh as mesh_lib
from tests.experiments import tiny


@pytest.fixture(scope='module')
def config():
  return tiny.get_config()


@pytest.fixture(scope='module')
def trained(config, tmp_path_factory):
  workdir = tmp_path_factory.mktemp('run')
  outcome = trainer.run(config, workdir, progress=False)
  return workdir, outcome


def test_run_writes_what_it_says(trained, config):
  workdir, outcome = trained
  assert outcome.reason == 'finished' and int(outcome.state.step) == 6
  names = {p.name for p in workdir.iterdir()}
  assert {'config.json', 'model.safetensors', 'metrics.jsonl'} <= names
  stored = json.loads((workdir / 'config.json').read_text())
  assert stored == json.loads(config.to_json())


def test_the_file_scores_as_the_weights_in_training_did(trained, config):
  workdir, outcome = trained
  path = workdir / recognizer_lib.MODEL_FILE
  recognizer, params, stored = recognizer_lib.load(path)
  corpus = data.load(config.data.dev)
  rates = scoring.Scorer(recognizer, corpus).rates(params)
  assert rates['wer'] == stored['dev']['wer'] == outcome.best['score']


def test_the_file_holds_the_averages_of_the_best_step(config, tmp_path):
  last = config.copy_and_resolve_references()
  last.train.eval_every = 0  # so that the last step is the best one
  outcome = trainer.run(last, tmp_path / 'run', progress=False)
  path = tmp_path / 'run' / recognizer_lib.MODEL_FILE
  _, params, stored = recognizer_lib.load(path)
  assert stored['dev']['step'] == int(outcome.state.step) == 6
  jax.tree.map(np.testing.assert_array_equal, params, outcome.state.average)


def test_pretraining_is_a_training_of_its_own(trained, config, tmp_path):
  """What follows starts from its model file, as from one trained by hand."""
  both = config.copy_and_resolve_references()
  both.train.learning_rate = 1e-3
  by_hand = both.copy_and_resolve_references()
  trained_file = trained[0] / recognizer_lib.MODEL_FILE
  _, params, _ = recognizer_lib.load(trained_file)
  both.pretrain = config
  outcome = trainer.run(both, tmp_path / 'both', progress=False)
  first = tmp_path / 'both' / trainer.PRETRAIN / recognizer_lib.MODEL_FILE
  assert first.read_bytes() == trained_file.read_bytes()
  wanted = trainer.run(
    by_hand, tmp_path / 'by_hand', progress=False, params=params
  )
  for a, b in zip(
    jax.tree.leaves(outcome.state.params), jax.tree.leaves(wanted.state.params)
  ):
    np.testing.assert_array_equal(a, b)
  assert trainer.steps_in_all(both) == 2 * config.train.steps


def test_the_transducer_may_begin_as_the_ctc_model_it_was(
  trained, config, tmp_path, monkeypatch
):
  both = config.copy_and_resolve_references()
  both.pretrain = config.copy_and_resolve_references()
  both.joint_from_ctc = True
  workdir = tmp_path / 'both'
  shutil.copytree(trained[0], workdir / trainer.PRETRAIN)
  _, before, _ = recognizer_lib.load(trained[0] / recognizer_lib.MODEL_FILE)
  whole, starts = fitting.fit, {}

  def fit(config, workdir, *args, params, **kwargs):
    starts[pathlib.Path(workdir).name] = params
    return whole(config, workdir, *args, params=params, **kwargs)

  monkeypatch.setattr(fitting, 'fit', fit)
  trainer.run(both, workdir, progress=False)
  assert starts['pretrain'] is None
  began = rnnt.from_ctc(before)
  jax.tree.map(np.testing.assert_array_equal, starts['both'], began)


def test_a_run_on_data_that_changed_since(trained, config, tmp_path):
  workdir = tmp_path / 'run'
  shutil.copytree(trained[0], workdir)
  path = workdir / trainer.CORPORA
  stored = json.loads(path.read_text())
  path.write_text(json.dumps({**stored, 'train': 'f' * 16}))
  with pytest.raises(ValueError, match='run on other data: what espeak:digits'):
    trainer.run(config, workdir, progress=False)
  path.unlink()  # as earlier versions left it
  trainer.run(config, workdir, progress=False)
  assert json.loads(path.read_text()) == stored


@pytest.mark.parametrize(
  'field, value, message',
  [
    ('tokenizer', 'char', 'what config.pretrain trains, which has other lab'),
    ('model.encoder_width', 12, 'another model than config.model .*encoder_0'),
    ('pretrain.train.ctc_weight', 0.0, 'joint_from_ctc: there is no CTC head'),
  ],
)
def test_a_stage_that_cannot_follow_is_refused_before_the_first(
  config, tmp_path, monkeypatch, field, value, message
):
  monkeypatch.setattr(fitting, 'fit', lambda *args, **kwargs: 1 / 0)
  both = config.copy_and_resolve_references()
  both.pretrain = config.copy_and_resolve_references()
  both.joint_from_ctc = True
  both.update_from_flattened_dict({field: value})
  with pytest.raises(ValueError, match=message):
    trainer.run(both, tmp_path / 'run', progress=False)
  assert not (tmp_path / 'run').exists()  # so that it can be mended


def test_the_head_of_ctc_is_left_where_nothing_wants_it(trained, config):
  other = config.copy_and_resolve_references()
  other.train.ctc_weight = 0.0
  recognizer = trainer.make_recognizer(other, data.load(other.data.train))
  _, params, _ = recognizer_lib.load(trained[0] / recognizer_lib.MODEL_FILE)
  params = trainer._without_head(params, recognizer)
  fitting.check_fits(params, jax.eval_shape(recognizer.init, jax.random.key(0)))


def test_a_bad_recording_is_left_out_and_remembered(config, tmp_path):
  rng = np.random.default_rng(0)
  rows = ['path,text,speaker,duration_s']
  for k in range(20):
    seconds = 0.1 if k == 3 else 1.0  # truncated
    noise_S = rng.normal(size=round(16000 * seconds)) / 30
    soundfile.write(tmp_path / f'{k}.wav', noise_S, 16000)
    rows.append(f'{k}.wav,one two,s{k},1.0')
  (tmp_path / 'm.csv').write_text('\n'.join(rows))
  own = config.copy_and_resolve_references()
  own.data.train = own.data.dev = f'manifest:{tmp_path}/m.csv'
  own.data.batch_size = 8
  own.train.update(eval_every=0, save_every=1, steps=2)

  def run():
    trainer.run(own, tmp_path / 'run', progress=False, scored=False)
    return json.loads((tmp_path / 'run' / trainer.SKIPPED).read_text())

  first = run()
  assert list(first) == ['3'] and '3.wav holds 0.100 s' in first['3']
  # Of an earlier process, which may have met others.
  stored = {**first, '5': 'it hissed'}
  (tmp_path / 'run' / trainer.SKIPPED).write_text(json.dumps(stored))
  own.train.steps = 3
  assert run() == stored


def test_a_method_goes_on_after_an_interruption(trained, config, tmp_path):
  """From the same floats; what ships is the same, stopped or not."""
  other = config.copy_and_resolve_references()
  other.train.update(learning_rate=1e-3, eval_every=0, save_every=3)
  _, params, _ = recognizer_lib.load(trained[0] / recognizer_lib.MODEL_FILE)
  method = quantizers.with_final_phase(
    quantizers.uniform(3, refit_every=2), other.train.steps
  )

  def run():
    return trainer.run(other, tmp_path, False, quantizer=method, params=params)

  outcome = run()
  path = tmp_path / recognizer_lib.MODEL_FILE
  whole = path.read_bytes()
  encoded = trees.quantized(packed_file.load(path).tree)
  assert {q.bits for q in encoded.values()} == {3}
  logged = [
    r['quantizer/distance']
    for r in training.read_metrics(tmp_path)
    if 'quantizer/distance' in r
  ]
  assert len(logged) == 3 and logged[-1] < 1e-6 < logged[0]

  for name in ('checkpoints/latest/6', 'checkpoints/best'):
    shutil.rmtree(tmp_path / name)
  path.unlink()
  again = run()
  assert int(again.state.step) == 6
  for a, b in zip(jax.tree.leaves(outcome.state), jax.tree.leaves(again.state)):
    np.testing.assert_array_equal(a, b)
  assert path.read_bytes() == whole


def test_starting_from_another_model_is_an_error(config, tmp_path):
  params = {'encoder_0': {'kernel': np.zeros((3, 4), np.float32)}}
  with pytest.raises(ValueError, match=r'do not fit.*ctc_out/bias.*absent'):
    trainer.run(config, tmp_path / 'run', progress=False, params=params)


def test_a_stream_gives_the_batch_transcript(trained, config):
  recognizer, params, _ = recognizer_lib.load(
    trained[0] / recognizer_lib.MODEL_FILE
  )
  # Untrained weights emit whatever they like: a strict comparison.
  params = recognizer.init(jax.random.key(3))
  corpus = data.load(config.data.dev)
  pcm_S = corpus.pcm(0)
  decoded = jax.jit(recognizer.greedy)(
    params, pcm_S[None], np.array([len(pcm_S)], np.int32)
  )
  labels = np.asarray(decoded.labels_BxN[0, : int(decoded.lengths_B[0])])
  streamer = streaming.Streamer(recognizer, params)
  for start in range(0, len(pcm_S), 3000):
    text = streamer.feed(pcm_S[start : start + 3000])
  assert [x for _, x in streamer.emitted] == labels.tolist()
  assert text == recognizer.tokenizer.decode(labels.tolist())
  assert labels.size


def test_another_config_in_the_same_directory(trained, config):
  other = config.copy_and_resolve_references()
  other.train.learning_rate = 1.0
  with pytest.raises(
    ValueError, match='train.learning_rate.*another --workdir'
  ):
    trainer.run(other, trained[0], progress=False)


@pytest.mark.parametrize(
  'field, value, message',
  [
    ('tokenizer', 'chars', 'config.tokenizer is .chars., expected char, word'),
    ('model.dtype', 'float16', 'config.model.dtype is .float16.'),
    ('data.dev', 'espeek:digits', 'unknown scheme'),
    ('data.normalize_utterances', 0, 'utterances is 0, expected a whole num'),
    ('data.bacth_size', 8, "config.data has no field 'bacth_size'; fields: tr"),
    ('train.setps', 3, "config.train has no field 'setps'; fields: steps, le"),
    ('train.steps', 0, 'config.train.steps is 0, expected a whole number, 1'),
    ('train.learning_rate', -1.0, 'rate is -1.0, expected a number above 0'),
    ('train.warmup_steps', -3, 'expected a whole number, 0 or more'),
    ('train.average_decay', 1.5, 'decay is 1.5, expected a number from 0 to'),
    ('train.ctc_weight', 2.0, 'ctc_weight is 2.0, expected .* from 0 to 1'),
    ('agument.time_masks', 2, "config has no field 'agument'; fields: seed"),
    ('augment.tiem_masks', 2, "config.augment has no field 'tiem_masks'; fie"),
    ('augment.time_masks', -1, 'config.augment: .*time_masks'),
    ('perturb.speed', 2, "config.perturb has no field 'speed'; fields: "),
    ('features.mels', 2, "config.features has no field 'mels'; fields: "),
    (
      'features.sample_rate',
      32000,
      'sample_rate is 32000, but all audio is read',
    ),
  ],
)
def test_bad_configs(config, tmp_path, field, value, message):
  other = config.copy_and_resolve_references()
  other.unlock()
  section, _, name = field.rpartition('.')
  if section and section not in other:
    other[section] = {}
  (other[section] if section else other)[name] = value
  with pytest.raises(ValueError, match=message):
    trainer.run(other, tmp_path / 'run', progress=False)
  assert not (tmp_path / 'run').exists()


def test_a_batch_that_the_devices_cannot_share(config, tmp_path, monkeypatch):
  monkeypatch.setattr(training, 'make_mesh', mesh_lib.make_mesh)
  other = config.copy_and_resolve_references()
  other.data.batch_size = 12
  with pytest.raises(ValueError, match='size 12 does not divide over 8 dev'):
    trainer.run(other, tmp_path / 'run', progress=False)
  assert not (tmp_path / 'run').exists()


def test_a_misspelled_model_field(config, tmp_path):
  other = config.copy_and_resolve_references()
  other.unlock()
  other.model.encoder_with = 3
  with pytest.raises(ValueError, match="no field 'encoder_with'"):
    trainer.run(other, tmp_path / 'run', progress=False)


def test_only_ctc_leaves_crowded_transcripts_out(config):
  own = config.copy_and_resolve_references()
  own.tokenizer = 'char'  # more labels than frames, for some
  corpus = data.load(own.data.train)
  left_out = []
  for weight in (0.0, 0.4):
    own.train.ctc_weight = weight
    recognizer = trainer.make_recognizer(own, corpus)
    loader = trainer.make_loader(own, corpus, recognizer)
    left_out.append(len(loader.skipped))
  assert left_out[0] == 0 < left_out[1]
