"""The recognizer with 8-bit activations, and the recognizer in integers.

  ranges = calibrate(recognizer, params, batches)
  trained = twin(recognizer, params, ranges)     loss and greedy, 8-bit
                                                 activations, differentiable
  shipped = lower(recognizer, qtensors, ranges)  what an accelerator computes

Both are Recognizers: training, scoring and streaming take them as they take
the float one. Neither knows the model: its functions are transformed
(s8bqat_jax/integer), whatever they compute. The front end stays float: the
features are the first thing that is quantized, and the joint's logits, 16 bits
wide, the last thing that is dequantized. Between encoder, prediction network
and joint there are 8-bit integers only. The CTC head only helps in training
and stays float.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from experiments import recognizer as recognizer_lib
from experiments.recognizer import Nets, Params, Recognizer
from s8bqat_jax import integer
from s8bqat_jax.artifacts import packed_file, qtensor

# {function: {short name of a value: [low, high]}}, fit for JSON: it ships in
# the packed file as config['activations'], hence the short names.
Ranges = Mapping[str, Mapping[str, Sequence[float]]]
ENCODE, PREDICT, JOINT = 'encode', 'predict', 'joint'
CONFIG_KEY = 'activations'
# In which a packed recognizer may compute: with activations in floating point,
# as it was fine-tuned, and as an accelerator does.
ARITHMETICS = 'float', 'twin', 'integer'

# Two labels' logits that differ by less than an 8-bit step would tie.
LOGIT_BITS = 16


def _short(name: str) -> str:
  return hashlib.sha1(name.encode()).hexdigest()[:6]


class _Named(Mapping):
  """The ranges of one function, by the values' full names."""

  def __init__(self, ranges: Mapping[str, Sequence[float]]):
    self._ranges = ranges
    self.read: set[str] = set()

  def __getitem__(self, name: str) -> Sequence[float]:
    found = self._ranges[_short(name)]
    self.read.add(_short(name))
    return found

  def __iter__(self) -> Iterator[str]:
    return iter(self._ranges)

  def __len__(self) -> int:
    return len(self._ranges)


def calibrate(
  recognizer: Recognizer,
  params: Params,
  batches: Iterable[Mapping[str, Any]],
  method: str = 'minmax',
) -> Ranges:
  """Measures the ranges of every activation.

  Args:
    recognizer: in float.
    params: its weights; QTensors are decoded.
    batches: as `data.make_loader` makes them, with labels; a few hundred
      utterances are enough. All are held in memory.
    method: as for `integer.calibrate`.

  Returns:
    What `twin` and `lower` take.
  """
  params, nets = qtensor.decode(params), recognizer.nets
  extract = jax.jit(lambda batch: _without_padding(recognizer, batch))
  inputs = [extract(_arrays(batch)) for batch in batches]
  encode, predict = jax.jit(nets.encode), jax.jit(nets.predict)

  def joint_everywhere(params, enc_BxSxD, pred_U1xBxE):
    """Every pair of a frame and a label state, one state at a time."""
    return jax.lax.map(
      lambda pred_BxE: nets.joint(params, enc_BxSxD, pred_BxE[:, None]),
      pred_U1xBxE,
    )

  speech = [(feats, lengths) for feats, lengths, _ in inputs]
  labels = [(labels_BxU,) for *_, labels_BxU in inputs]
  lattice = [
    (encode(params, *s)[0], predict(params, *u).swapaxes(0, 1))
    for s, u in zip(speech, labels)
  ]
  measured = {
    ENCODE: integer.calibrate(nets.encode, params, speech, method),
    PREDICT: integer.calibrate(nets.predict, params, labels, method),
    JOINT: integer.calibrate(joint_everywhere, params, lattice, method),
  }
  # What the joint reads is what the networks write, to the last bit.
  enc, *_ = integer.output_names(nets.encode, params, *speech[0])
  (pred,) = integer.output_names(nets.predict, params, *labels[0])
  measured[JOINT]['in:0'] = measured[ENCODE][enc]
  measured[JOINT]['in:1'] = measured[PREDICT][pred]
  ranges = {name: _shortened(found) for name, found in measured.items()}
  return _as_read(recognizer, params, ranges)


def _shortened(ranges: integer.Ranges) -> dict[str, list[float]]:
  """Short names and five digits: finer than any step of 8 bits."""
  short = {_short(name): ends for name, ends in ranges.items()}
  if len(short) < len(ranges):
    raise ValueError('two values have the same short name: lengthen `_short`')
  return {
    name: [float(f'{end:.5g}') for end in ends] for name, ends in short.items()
  }


def _as_read(recognizer: Recognizer, params: Params, ranges: Ranges) -> Ranges:
  """Only the ranges that some function of the twin reads."""
  named = {name: _Named(found) for name, found in ranges.items()}
  nets = _rounded(recognizer.nets, jax.device_get(params), named)
  frames, mels = recognizer.model.subsampling, recognizer.log_mel.num_mels

  def everything(params):
    feats, label = jnp.zeros((1, frames, mels)), jnp.zeros(1, jnp.int32)
    enc, _ = nets.encode(params, feats, jnp.array([frames]))
    nets.encode_chunk(params, nets.initial_carry(params, 1), feats)
    nets.predict(params, label[:, None])
    carry = nets.initial_prediction(params, 1)
    _, pred = nets.predict_step(params, carry, label)
    nets.joint(params, enc[:, 0], pred)

  jax.eval_shape(everything, params)
  return {
    name: {value: ranges[name][value] for value in sorted(named[name].read)}
    for name in ranges
  }


def _arrays(batch):
  names = 'audio_BxS', 'audio_lengths_B', 'labels_BxU', 'label_lengths_B'
  return {name: batch[name] for name in names}


def _without_padding(recognizer, batch):
  """Features and labels, repeated from the start where a row has ended.

  What padding makes of the network is no reason to widen a range.
  """
  feats, lengths = recognizer.features(
    batch['audio_BxS'], batch['audio_lengths_B']
  )
  return (
    _wrap(feats, lengths),
    lengths,
    _wrap(batch['labels_BxU'], batch['label_lengths_B']),
  )


def _wrap(x_BxTx, lengths_B):
  index_BxT = jnp.arange(x_BxTx.shape[1]) % jnp.maximum(lengths_B, 1)[:, None]
  index = index_BxT.reshape(*index_BxT.shape, *[1] * (x_BxTx.ndim - 2))
  return jnp.take_along_axis(x_BxTx, index, axis=1)


def twin(recognizer: Recognizer, params: Params, ranges: Ranges) -> Recognizer:
  """Returns the recognizer with 8-bit activations, in float, differentiable.

  Weights are used as they are given, so that a quantizer's views decide about
  them. Dropout is off.

  Args:
    recognizer: in float.
    params: weights of the structure that the result will be called with. A
      tree with QTensors makes the twin of what `lower` makes of that tree.
    ranges: from `calibrate`.

  Returns:
    A Recognizer whose `loss`, `greedy`, `beam_search` and streaming run with
    every activation rounded as `lower` rounds it.
  """
  named = {name: _Named(found) for name, found in ranges.items()}
  nets = _rounded(recognizer.nets, jax.device_get(params), named)
  return dataclasses.replace(recognizer, transformed=nets)


def _rounded(
  nets: Nets, params: Params, ranges: Mapping[str, integer.Ranges]
) -> Nets:
  of = functools.partial(integer.twin, params=params)
  encode = of(nets.encode, ranges=ranges[ENCODE])
  predict = of(nets.predict, ranges=ranges[PREDICT])
  return nets._replace(
    encode=lambda params, feats, lengths, key=None: encode(
      params, feats, lengths
    ),
    encode_chunk=of(nets.encode_chunk, ranges=ranges[ENCODE], carry=True),
    predict=lambda params, labels, key=None: predict(params, labels),
    predict_step=of(nets.predict_step, ranges=ranges[PREDICT], carry=True),
    joint=of(nets.joint, ranges=ranges[JOINT], output_bits=LOGIT_BITS),
  )


@dataclasses.dataclass(frozen=True)
class Programs:
  """The recognizer's functions as integer programs of fixed shapes.

  Attributes:
    recognizer: in float.
    params: its weights, QTensors among them.
    ranges: from `calibrate`.
  """

  recognizer: Recognizer
  params: Params
  ranges: Ranges

  def encode(self, batch: int, frames: int) -> integer.IntegerFunction:
    """(feats_BxTxF, lengths_B) -> (enc_BxSxD, lengths_B)."""
    feats = self._feats(batch, frames)
    lengths = jax.ShapeDtypeStruct((batch,), jnp.int32)
    return self._lower(ENCODE, self.recognizer.nets.encode, feats, lengths)

  def encode_chunk(
    self, batch: int, frames: int | None = None
  ) -> integer.IntegerFunction:
    """(carry, feats_BxKxF) -> (carry, enc_BxSxD); one encoder frame if None."""
    nets = self.recognizer.nets
    frames = frames or self.recognizer.model.subsampling
    carry = jax.eval_shape(lambda: nets.initial_carry(self.params, batch))
    feats = self._feats(batch, frames)
    return self._lower(ENCODE, nets.encode_chunk, carry, feats, carry=True)

  def predict_step(self, batch: int) -> integer.IntegerFunction:
    """(carry, label_B) -> (carry, pred_BxE)."""
    nets = self.recognizer.nets
    carry = jax.eval_shape(lambda: nets.initial_prediction(self.params, batch))
    label = jax.ShapeDtypeStruct((batch,), jnp.int32)
    return self._lower(PREDICT, nets.predict_step, carry, label, carry=True)

  def joint(
    self, enc_shape: tuple[int, ...], pred_shape: tuple[int, ...]
  ) -> integer.IntegerFunction:
    """(enc [..., D], pred [..., E]) -> logits [..., V]."""
    enc, pred = (
      jax.ShapeDtypeStruct(s, jnp.float32) for s in (enc_shape, pred_shape)
    )
    joint = self.recognizer.nets.joint
    return self._lower(JOINT, joint, enc, pred, output_bits=LOGIT_BITS)

  def _feats(self, batch, frames):
    mels = self.recognizer.log_mel.num_mels
    return jax.ShapeDtypeStruct((batch, frames, mels), jnp.float32)

  def _lower(self, name, fn, *inputs, **options):
    ranges = _Named(self.ranges[name])
    return integer.lower(fn, self.params, ranges, *inputs, **options)


def lower(recognizer: Recognizer, params: Params, ranges: Ranges) -> Recognizer:
  """Returns the recognizer in integers.

  It decodes and streams; the `params` argument of its methods is not read
  (pass {}), because its weights are part of its programs. Enc, pred and all
  carries are integers. A program is made for each batch shape it meets.

  Args:
    recognizer: in float.
    params: its weights: QTensors, and floats, which are rounded to 8 bits
      where they enter a product.
    ranges: from `calibrate`.

  Returns:
    A Recognizer for `greedy`, `beam_search`, `scoring.Scorer` and
    `streaming.Streamer`.
  """
  programs = Programs(recognizer, jax.device_get(params), ranges)
  encode_program = functools.cache(programs.encode)
  chunk_program = functools.cache(programs.encode_chunk)
  step_program = functools.cache(programs.predict_step)
  joint_program = functools.cache(programs.joint)

  def encode(params, feats_BxTxF, lengths_B, key=None):
    del params, key
    program = encode_program(*feats_BxTxF.shape[:2])
    return tuple(program.integers(*program.quantize(feats_BxTxF, lengths_B)))

  def advance(program, carry, x):
    """One call of a function that carries integers."""
    leaves, tree = jax.tree.flatten(carry)
    (spec,) = program.in_specs[len(leaves) :]
    x = x if spec is None else spec.quantize(x)
    *leaves, out = program.integers(*leaves, x)
    return jax.tree.unflatten(tree, leaves), out

  def start(program, carry):
    leaves, tree = jax.tree.flatten(carry)
    codes = [s.quantize(x) for x, s in zip(leaves, program.in_specs)]
    return jax.tree.unflatten(tree, codes)

  def encode_chunk(params, carry, feats_BxKxF):
    del params
    return advance(chunk_program(*feats_BxKxF.shape[:2]), carry, feats_BxKxF)

  def predict_step(params, carry, label_B):
    del params
    return advance(step_program(label_B.shape[0]), carry, label_B)

  def joint(params, enc, pred):
    del params
    program = joint_program(enc.shape, pred.shape)
    return program.dequantize(program.integers(enc, pred))

  nets = recognizer.nets
  integers = Nets(
    encode=encode,
    encode_chunk=encode_chunk,
    initial_carry=lambda _, batch: start(
      chunk_program(batch), nets.initial_carry(programs.params, batch)
    ),
    predict=_untrainable,
    predict_step=predict_step,
    initial_prediction=lambda _, batch: start(
      step_program(batch), nets.initial_prediction(programs.params, batch)
    ),
    joint=joint,
    ctc_logits=_untrainable,
  )
  return dataclasses.replace(recognizer, transformed=integers)


def _untrainable(*args: Any) -> Any:
  del args
  raise TypeError(
    'an integer recognizer decodes only: train with `twin`, then lower again'
  )


def ranges_of(path: os.PathLike | str, config: Mapping[str, Any]) -> Ranges:
  """Returns the ranges of activations in a packed file's config.

  Args:
    path: of the file.
    config: of the file.

  Raises:
    ValueError: it has none.
  """
  if CONFIG_KEY not in config:
    raise ValueError(
      f'{path} has no ranges of 8-bit activations (its config has no '
      f'{CONFIG_KEY!r}), so that its integers are not defined: give a file '
      'that experiments.s8bqat shipped under config.activation_bits=8, such as '
      'those in experiments/models'
    )
  return config[CONFIG_KEY]


def load(
  path: os.PathLike | str, arithmetic: str | None = None
) -> tuple[Recognizer, Params, dict[str, Any]]:
  """Opens a packed recognizer in one of its arithmetics.

  Args:
    path: of a packed recognizer; activations are 8-bit if its config has
      'activations', the ranges.
    arithmetic: of ARITHMETICS; None is 'twin' where the file has ranges, else
      'float'.

  Returns:
    The recognizer, the params to call it with, and the file's config.

  Raises:
    ValueError: an unknown arithmetic, or a file without ranges.
  """
  recognizer, params, config = recognizer_lib.load(path)
  arithmetic = arithmetic or ('twin' if CONFIG_KEY in config else 'float')
  if arithmetic == 'float':
    return recognizer, params, config
  if arithmetic not in ARITHMETICS:
    raise ValueError(
      f'arithmetic is {arithmetic!r}, expected one of {", ".join(ARITHMETICS)}'
    )
  ranges = ranges_of(path, config)
  tree = packed_file.load(path).tree
  if arithmetic == 'twin':
    return twin(recognizer, tree, ranges), params, config
  return lower(recognizer, tree, ranges), {}, config
