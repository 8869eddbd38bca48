"""The recognizer's other arithmetics, on a tiny model with random weights."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import integer_recognizer, streaming
from s8bqat_jax import integer
from s8bqat_jax.artifacts import qtensor
from tests.experiments.conftest import B, S


@pytest.fixture(scope='module')
def shipped(recognizer, tree, ranges):
  return integer_recognizer.lower(recognizer, tree, ranges)


def test_ranges_are_for_json_and_meet_at_the_joint(ranges):
  assert json.loads(json.dumps(ranges)) == ranges
  assert set(ranges) == {'encode', 'predict', 'joint'}
  short = integer_recognizer._short
  enc = ranges['encode'][short('encoder_out/bias:add')]
  pred = ranges['predict'][short('predictor_out/bias:add')]
  assert ranges['joint'][short('in:0')] == enc
  assert ranges['joint'][short('in:1')] == pred
  assert len(json.dumps(ranges)) < 1500  # It ships with the weights.


def test_padding_widens_no_range(recognizer, params, batch, ranges):
  longer = dict(batch, audio_BxS=np.pad(batch['audio_BxS'], ((0, 0), (0, S))))
  longer['labels_BxU'] = np.pad(batch['labels_BxU'], ((0, 0), (0, 3)))
  feats, *_ = integer_recognizer._without_padding(recognizer, longer)
  low, high = ranges['encode'][integer_recognizer._short('in:0')]
  assert low - 1e-3 <= feats.min() and feats.max() <= high + 1e-3
  padded, _ = recognizer.features(longer['audio_BxS'], batch['audio_lengths_B'])
  assert padded.max() > high  # What a calibration on padding would have seen.


def test_twin_has_8_bit_activations_and_gradients(
  recognizer, params, batch, ranges
):
  twin = integer_recognizer.twin(recognizer, params, ranges)
  loss = lambda r: jax.jit(jax.value_and_grad(r.loss, has_aux=True))
  still = dataclasses.replace(
    recognizer, model=recognizer.model.clone(dropout=0.0)
  )
  key = jax.random.key(1)
  (value, aux), grads = loss(twin)(params, batch, key)
  (expected, _), float_grads = loss(still)(params, batch, key)
  assert float(value) == pytest.approx(float(expected), rel=0.05)
  assert set(aux) == {'rnnt', 'ctc'}
  for g, f in zip(jax.tree.leaves(grads), jax.tree.leaves(float_grads)):
    angle = jnp.vdot(g, f) / (jnp.linalg.norm(g) * jnp.linalg.norm(f))
    assert angle > 0.9
  enc, _ = jax.jit(twin.encode)(
    params, batch['audio_BxS'], batch['audio_lengths_B']
  )
  assert 20 < len(np.unique(enc)) <= 256


def test_twin_takes_weights_as_they_are_given(recognizer, params, ranges):
  """Its own parameters only lend their structure, an embedding's scale too."""
  twin = integer_recognizer.twin(recognizer, params, ranges)
  labels = np.array([[1, 2, 3]], np.int32)
  for factor in (0.013, 1.7):
    table = params['embed']['embedding'] * factor
    other = {**params, 'embed': {'embedding': table}}
    fresh = integer_recognizer.twin(recognizer, other, ranges)
    np.testing.assert_array_equal(
      twin.nets.predict(other, labels), fresh.nets.predict(other, labels)
    )


def test_integers_decode_as_the_twin(recognizer, tree, ranges, batch, shipped):
  twin = integer_recognizer.twin(recognizer, tree, ranges)
  inputs = batch['audio_BxS'], batch['audio_lengths_B']
  decoded = qtensor.decode(tree)
  real, _ = jax.jit(twin.encode)(decoded, *inputs)
  codes, _ = jax.jit(shipped.encode)({}, *inputs)
  assert codes.dtype == np.int8
  program = integer_recognizer.Programs(recognizer, tree, ranges).encode(B, 98)
  spec = program.out_specs[0]
  steps = np.abs(np.asarray(spec.dequantize(codes)) - real) / spec.scale
  # Both round alike; 16-bit tables and sums differ in their last place.
  assert np.mean(steps < 0.5) > 0.6 and steps.max() < 4
  a = jax.jit(twin.greedy)(decoded, *inputs)
  b = jax.jit(shipped.greedy)({}, *inputs)
  assert int(b.lengths_B.sum()) > 5
  assert abs(int(a.lengths_B.sum()) - int(b.lengths_B.sum())) <= 2
  beam = jax.jit(lambda *x: shipped.beam_search({}, *x, beam=2))(*inputs)
  assert beam.labels_BxN.shape[0] == B


def test_an_integer_stream_gives_the_integer_transcript(batch, shipped):
  pcm_S = batch['audio_BxS'][0]
  decoded = jax.jit(shipped.greedy)({}, pcm_S[None], np.array([S], np.int32))
  labels = np.asarray(decoded.labels_BxN[0, : int(decoded.lengths_B[0])])
  streamer = streaming.Streamer(shipped, {})
  for start in range(0, S, 3000):
    streamer.feed(pcm_S[start : start + 3000])
  assert [x for _, x in streamer.emitted] == labels.tolist()
  assert labels.size
  before = streamer.emitted
  streamer.reset()
  assert not streamer.emitted and not streamer.text
  streamer.feed(pcm_S)
  assert streamer.emitted == before


def test_every_program_is_integer(recognizer, tree, ranges):
  programs = integer_recognizer.Programs(recognizer, tree, ranges)
  for program in (
    programs.encode(2, 16),
    programs.encode_chunk(2),
    programs.predict_step(2),
    programs.joint((2, 8), (2, 8)),
  ):
    report = integer.audit(program)
    assert report.ok, str(report)


def test_an_integer_recognizer_does_not_train(shipped, batch):
  with pytest.raises(TypeError, match='train with `twin`'):
    shipped.nets.predict({}, batch['labels_BxU'], jax.random.key(0))


def test_files_say_which_arithmetic_they_are_for(
  recognizer, tree, ranges, batch, save
):
  plain, ranged = save('plain'), save('ranged', ranges)
  assert integer_recognizer.load(plain)[0].transformed is None
  with pytest.raises(ValueError, match='no ranges of 8-bit activations'):
    integer_recognizer.load(plain, 'integer')
  with pytest.raises(
    ValueError, match="is 'int8', expected one of float, twin, integer"
  ):
    integer_recognizer.load(ranged, 'int8')
  inputs = batch['audio_BxS'], batch['audio_lengths_B']
  twin, params, _ = integer_recognizer.load(ranged)
  expected = integer_recognizer.twin(recognizer, tree, ranges)
  np.testing.assert_array_equal(
    twin.encode(params, *inputs)[0], expected.encode(params, *inputs)[0]
  )
  shipped, params, _ = integer_recognizer.load(ranged, 'integer')
  assert params == {}
  assert shipped.encode(params, *inputs)[0].dtype == np.int8
