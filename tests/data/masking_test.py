import jax
import jax.numpy as jnp
import numpy as np
import pytest

from s8bqat_jax.data import masking

_B, _T, _F = 6, 80, 24


@pytest.fixture(scope='module')
def masked():
  rng = np.random.default_rng(0)
  feats = rng.standard_normal((_B, _T, _F)).astype(np.float32)
  lengths = np.array([80, 80, 60, 20, 1, 0])
  config = masking.SpecAugment(
    freq_masks=2, freq_width=5, time_masks=2, time_width=9, time_share=0.2
  )
  augment = jax.jit(lambda k, x, n: masking.spec_augment(k, x, n, config))
  many = [
    np.asarray(augment(jax.random.key(s), feats, lengths)) for s in range(40)
  ]
  return feats, lengths, many, augment


def test_masks_are_bands_within_their_limits(masked):
  feats, lengths, many, _ = masked
  widest_time = widest_freq = 0
  for out in many:
    changed_BxTxF = out != feats
    for b, length in enumerate(lengths):
      assert not changed_BxTxF[b, length:].any()
      if length < 20:
        continue
      inside_TxF = changed_BxTxF[b, :length]
      time_T, freq_F = inside_TxF.all(1), inside_TxF.all(0)
      # Whole rows and columns, nothing else.
      np.testing.assert_array_equal(
        inside_TxF, time_T[:, None] | freq_F[None, :]
      )
      assert time_T.sum() <= 2 * min(9, int(0.2 * length))
      assert freq_F.sum() <= 2 * 5
      widest_time = max(widest_time, time_T.sum())
      widest_freq = max(widest_freq, freq_F.sum())
  assert widest_time > 9 and widest_freq > 5  # both masks are used


def test_the_fill_is_the_mean_of_the_utterance(masked):
  feats, lengths, many, _ = masked
  for b in range(4):
    mean = feats[b, : lengths[b]].mean()
    hidden = many[0][b][many[0][b] != feats[b]]
    np.testing.assert_allclose(hidden, mean, atol=1e-5)


def test_padding_does_not_matter_and_keys_do(masked):
  feats, lengths, many, augment = masked
  noisy = feats.copy()
  for b, length in enumerate(lengths):
    noisy[b, length:] = 1e6
  out = np.asarray(augment(jax.random.key(0), noisy, lengths))
  for b, length in enumerate(lengths):
    np.testing.assert_allclose(out[b, :length], many[0][b, :length], atol=1e-5)
  assert (many[0] != many[1]).any()
  assert np.isfinite(np.asarray(many)).all()


def test_positions_reach_both_ends(masked):
  feats, _, many, _ = masked
  hidden_T = np.mean([(m[0] != feats[0]).all(1) for m in many], axis=0)
  assert hidden_T[:10].any() and hidden_T[-10:].any()


def test_shape_and_dtype_are_kept():
  feats = jax.ShapeDtypeStruct((2, 8, 4), jnp.bfloat16)
  lengths = jax.ShapeDtypeStruct((2,), jnp.int32)
  key = jax.eval_shape(lambda: jax.random.key(0))
  out = jax.eval_shape(masking.spec_augment, key, feats, lengths)
  assert (out.shape, out.dtype) == (feats.shape, feats.dtype)


def test_warp_moves_a_peak_by_at_most_its_share():
  config = masking.SpecAugment(freq_masks=0, time_masks=0, freq_warp=0.1)
  feats = np.zeros((64, 3, 40), np.float32)
  feats[:, :, 20] = 1
  lengths = np.full(64, 3)
  out = masking.spec_augment(jax.random.key(0), feats, lengths, config)
  center_B = np.einsum('btf,f->b', out, np.arange(40)) / np.sum(out, (1, 2))
  assert 17.9 < center_B.min() < 18.8 and 21.2 < center_B.max() < 22.5
  flat = np.full((64, 3, 40), 0.5, np.float32)
  out = masking.spec_augment(jax.random.key(1), flat, lengths, config)
  np.testing.assert_allclose(out, 0.5, rtol=1e-5)


@pytest.mark.parametrize(
  'field, value',
  [
    ('freq_masks', -1),
    ('time_width', 2.5),
    ('freq_width', float('inf')),
    ('time_share', 1.5),
    ('freq_warp', -0.1),
    ('freq_warp', float('nan')),
  ],
)
def test_masks_that_cannot_be(field, value):
  with pytest.raises(ValueError, match=f'{field}=.*expected'):
    masking.SpecAugment(**{field: value})
