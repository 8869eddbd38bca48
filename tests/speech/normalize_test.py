"""Normalization: corpus moments in one pass, and streams equal to files."""

import json

import numpy as np
import pytest

from s8bqat_jax.speech import normalize


def _batches():
  rng = np.random.default_rng(0)
  for lengths in [[5, 3], [9, 0], [0, 0], [1, 9]]:
    # A large mean, where sum-of-squares formulas cancel in float32.
    yield (1e4 + rng.normal(size=(2, 9, 4))).astype(np.float32), lengths


def test_moments_equal_those_of_all_frames_at_once():
  moments = normalize.zero_moments(4)
  frames = []
  for feats, lengths in _batches():
    moments = normalize.accumulate(moments, feats, np.array(lengths))
    frames += [row[:n] for row, n in zip(feats, lengths, strict=True)]
  frames = np.concatenate(frames).astype(np.float64)
  norm = normalize.global_norm(moments)
  assert moments.frames == len(frames) == 27
  np.testing.assert_allclose(norm.mean_F, frames.mean(0), rtol=1e-12)
  np.testing.assert_allclose(norm.deviation_F, frames.std(0), rtol=1e-9)


def test_normalized_corpus_has_zero_mean_and_unit_variance():
  rng = np.random.default_rng(0)
  feats = rng.normal(size=(3, 50, 4)) * [1, 2, 3, 0] + [5, 0, -5, 7]
  moments = normalize.accumulate(
    normalize.zero_moments(4), feats, np.array([50, 50, 50])
  )
  out = np.asarray(normalize.global_norm(moments)(feats.astype(np.float32)))
  np.testing.assert_allclose(out.mean((0, 1)), 0, atol=1e-5)
  np.testing.assert_allclose(out.std((0, 1)), [1, 1, 1, 0], atol=1e-5)


def test_config_round_trip():
  norm = normalize.GlobalNorm(np.array([1 / 3, 2.0]), np.array([0.1, 3.0]))
  again = normalize.GlobalNorm.from_config(
    json.loads(json.dumps(norm.to_config()))
  )
  np.testing.assert_array_equal(norm.mean_F, again.mean_F)
  np.testing.assert_array_equal(norm.deviation_F, again.deviation_F)


def test_too_few_frames_is_an_error():
  with pytest.raises(ValueError, match='0 frames'):
    normalize.global_norm(normalize.zero_moments(2))


def test_running_mean_equals_its_definition():
  rng = np.random.default_rng(0)
  feats = rng.normal(size=(2, 7, 3)).astype(np.float32)
  prior = np.array([1.0, 2.0, 3.0])
  carry = normalize.initial_sum(prior, 2, frames=4)
  _, got = normalize.running_mean(carry, feats)
  for t in range(7):
    heard = np.concatenate(
      [np.broadcast_to(prior, [2, 4, 3]), feats[:, : t + 1]], axis=1
    )
    np.testing.assert_allclose(
      got[:, t], feats[:, t] - heard.mean(1), rtol=1e-5, atol=1e-6
    )


def test_running_mean_streams():
  rng = np.random.default_rng(0)
  feats = rng.normal(size=(2, 40, 3)).astype(np.float32) + 5
  _, whole = normalize.running_mean(
    normalize.initial_sum(np.zeros(3), 2), feats
  )
  carry, parts, start = normalize.initial_sum(np.zeros(3), 2), [], 0
  for size in [1, 1, 10, 0, 28]:
    carry, part = normalize.running_mean(carry, feats[:, start : start + size])
    parts.append(part)
    start += size
  np.testing.assert_allclose(np.concatenate(parts, 1), whole, atol=1e-5)
