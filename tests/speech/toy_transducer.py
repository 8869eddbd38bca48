"""A transducer of three random tables, for decoding tests."""

import jax.numpy as jnp
import numpy as np

from s8bqat_jax.speech import decode


def make(V=3, D=4, E=5, seed=0, sharpness=2.0, blank_bias=0.0):
  """A prediction network that remembers the whole prefix, in a hash."""
  rng = np.random.default_rng(seed)
  table_ExE = jnp.asarray(rng.normal(size=(E, E)), jnp.float32)
  embed_VxE = jnp.asarray(rng.normal(size=(V, E)), jnp.float32)
  out_DxV = jnp.asarray(sharpness * rng.normal(size=(D, V)), jnp.float32)
  mix_ExD = jnp.asarray(rng.normal(size=(E, D)), jnp.float32)
  bias_V = jnp.zeros(V).at[0].set(blank_bias)

  def predict_step(state_BxE, label_B):
    state_BxE = jnp.tanh(1.5 * state_BxE @ table_ExE + embed_VxE[label_B])
    return state_BxE, state_BxE

  return decode.Transducer(
    initial_state=lambda batch_size: jnp.zeros([batch_size, E]),
    predict_step=predict_step,
    joint=lambda enc, pred: jnp.tanh(enc + pred @ mix_ExD) @ out_DxV + bias_V,
  )


def encode(B=3, T=6, D=4, seed=0):
  rng = np.random.default_rng(1000 + seed)
  return jnp.asarray(rng.normal(size=(B, T, D)), jnp.float32)


def make_bigram(V=4, seed=0):
  """A model as training leaves it: frames are logits, a bigram adds to them.

  Having emitted a label it prefers blank to the same label again.
  """
  rng = np.random.default_rng(seed)
  bias_VxV = rng.normal(size=(V, V))
  bias_VxV[np.arange(1, V), np.arange(1, V)] -= 8.0
  bias_VxV = jnp.asarray(bias_VxV, jnp.float32)
  return decode.Transducer(
    initial_state=lambda batch_size: jnp.zeros([batch_size, 0]),
    predict_step=lambda state, label_B: (state, bias_VxV[label_B]),
    joint=lambda enc, pred: enc + pred,
  )


def encode_bigram(B=1, T=6, V=4, seed=0):
  """Frames that are mostly blank and sometimes one label."""
  rng = np.random.default_rng(2000 + seed)
  logits = rng.normal(size=(B, T, V))
  spikes = rng.integers(1, V, size=(B, T)) * (rng.random((B, T)) < 0.4)
  logits += 6.0 * (np.arange(V) == spikes[..., None])
  logits[..., 0] += 3.0 * (spikes > 0)
  return jnp.asarray(logits, jnp.float32)
