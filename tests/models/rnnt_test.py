"""The transducer streams what it computes at once, and keeps causal order."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from s8bqat_jax.models import rnnt

B, T, F, U, V = 2, 24, 6, 5, 7


def _model(**kwargs):
  sizes = {
    'encoder_width': 8,
    'predictor_width': 8,
    'embed_width': 4,
    'joint_width': 10,
    'stack': 2,
    'reduce_after': (0,),
  }
  model = rnnt.RNNT(V, **{**sizes, **kwargs})
  feats = jax.random.normal(jax.random.key(0), (B, T, F))
  labels = jax.random.randint(jax.random.key(1), (B, U), 1, V)
  lengths = jnp.array([T, T - 5])
  params = model.init(jax.random.key(2), feats, lengths, labels)
  return model, params, feats, lengths, labels


def test_shapes_and_lengths():
  model, params, feats, lengths, labels = _model()
  enc, enc_lengths = model.apply(params, feats, lengths, method=model.encode)
  pred = model.apply(params, labels, method=model.predict)
  assert enc.shape == (B, T // 4, 10)
  assert enc_lengths.tolist() == [6, 4]
  assert pred.shape == (B, U + 1, 10)
  logits = model.apply(
    params, enc[:, :, None], pred[:, None], method=model.joint
  )
  assert logits.shape == (B, T // 4, U + 1, V)


def test_chunks_equal_batch():
  model, params, feats, lengths, _ = _model()
  whole, _ = model.apply(params, feats, lengths, method=model.encode)
  carry, parts = model.apply(params, B, method=model.initial_carry), []
  for start, stop in [(0, 4), (4, 16), (16, 24)]:
    carry, enc = model.apply(
      params, carry, feats[:, start:stop], method=model.encode_chunk
    )
    parts.append(enc)
  np.testing.assert_allclose(np.concatenate(parts, 1), whole, atol=1e-6)


def test_predict_steps_equal_predict():
  model, params, _, _, labels = _model(predictor_layers=2)
  whole = model.apply(params, labels, method=model.predict)
  carry = model.apply(params, B, method=model.initial_prediction)
  label = jnp.zeros(B, jnp.int32)
  for u in range(U + 1):
    carry, pred = model.apply(params, carry, label, method=model.predict_step)
    np.testing.assert_allclose(pred, whole[:, u], atol=1e-6)
    label = labels[:, min(u, U - 1)]


@pytest.mark.parametrize('frame', [0, 9, T - 1])
def test_no_frame_is_seen_before_its_group(frame):
  model, params, feats, lengths, _ = _model()
  enc, _ = model.apply(params, feats, lengths, method=model.encode)
  changed, _ = model.apply(
    params, feats.at[:, frame].add(1.0), lengths, method=model.encode
  )
  differs = np.any(np.asarray(enc != changed), axis=(0, 2))
  assert not differs[: frame // 4].any()
  assert differs[frame // 4]


def test_dropout_and_ctc_head():
  model, params, feats, lengths, _ = _model(dropout=0.5, ctc=True)
  apply = lambda key: model.apply(
    params,
    feats,
    lengths,
    deterministic=False,
    method=model.encode,
    rngs={'dropout': key},
  )[0]
  assert bool(jnp.any(apply(jax.random.key(0)) != apply(jax.random.key(1))))
  enc, _ = model.apply(params, feats, lengths, method=model.encode)
  logits = model.apply(params, enc, method=model.ctc_logits)
  assert logits.shape == (B, T // 4, V)


def test_a_transducer_may_begin_as_a_ctc_model():
  model, params, feats, lengths, labels = _model(ctc=True)
  begun = rnnt.from_ctc(params['params'])
  enc, _ = model.apply(params, feats, lengths, method=model.encode)
  wanted = model.apply(params, enc, method=model.ctc_logits)
  for said in (labels, labels[:, ::-1]):  # whatever was said before
    pred = model.apply({'params': begun}, said, method=model.predict)
    got = model.apply(
      {'params': begun}, enc[:, :, None], pred[:, None], method=model.joint
    )
    np.testing.assert_array_equal(
      got, np.broadcast_to(wanted[:, :, None], got.shape)
    )
  kept = {'joint_out', 'predictor_out'}.symmetric_difference(begun)
  jax.tree.map(
    np.testing.assert_array_equal,
    {name: begun[name] for name in kept},
    {name: params['params'][name] for name in kept},
  )


@pytest.mark.parametrize('reduce_after', [(2,), (-1,), (0, 0)])
def test_frames_are_reduced_after_layers_that_exist_once_each(reduce_after):
  with pytest.raises(ValueError, match='reduce_after=.*0..1'):
    _model(encoder_layers=2, reduce_after=reduce_after)


def test_a_chunk_is_whole_encoder_frames_and_an_utterance_need_not_be():
  model, params, feats, lengths, _ = _model()
  encode = lambda x: model.apply(params, x, lengths, method=model.encode)[0]
  np.testing.assert_allclose(
    encode(feats[:, :23]), encode(feats[:, :20]), atol=1e-6
  )
  carry = model.apply(params, B, method=model.initial_carry)
  with pytest.raises(ValueError, match='chunk of 6 frames.*multiple of 4'):
    model.apply(params, carry, feats[:, :6], method=model.encode_chunk)
