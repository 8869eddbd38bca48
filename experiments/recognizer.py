"""A recognizer: model, front end and tokenizer wired into pure functions.

Everything an experiment does with a transducer goes through here: the training
loss, decoding and scoring. It holds no weights; those are always passed in, so
that a quantizer's views and a packed file's decoded weights take the same way.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from experiments import fields
from s8bqat_jax import data, losses
from s8bqat_jax.artifacts import packed_file, qtensor
from s8bqat_jax.models import rnnt
from s8bqat_jax.speech import beam as beam_lib
from s8bqat_jax.speech import decode, features, normalize, tokenizers

Params = Any
MODEL_FILE = 'model.safetensors'
_DTYPES = {'float32': jnp.float32, 'bfloat16': jnp.bfloat16}


class Nets(NamedTuple):
  """What is learned of a transducer, as pure functions of its params.

  A recognizer reaches its model through these alone, so that another
  arithmetic (integer_recognizer.py) is another Nets. What they hand from one
  to the other (enc, pred, carries) is theirs: it may be integers.

  Attributes:
    encode: (params, feats_BxTxF, lengths_B, key=None) -> (enc_BxSxD,
      lengths_B); a key draws dropout.
    encode_chunk: (params, carry, feats_BxKxF) -> (carry, enc_BxSxD).
    initial_carry: (params, batch) -> carry of `encode_chunk`.
    predict: (params, labels_BxU, key=None) -> pred_BxU1xE.
    predict_step: (params, carry, label_B) -> (carry, pred_BxE).
    initial_prediction: (params, batch) -> carry of `predict_step`.
    joint: (params, enc, pred) -> logits [..., V], real, broadcasting.
    ctc_logits: (params, enc_BxSxD) -> logits_BxSxV.
  """

  encode: Callable[..., tuple[Any, jax.Array]]
  encode_chunk: Callable[..., tuple[Any, Any]]
  initial_carry: Callable[[Params, int], Any]
  predict: Callable[..., Any]
  predict_step: Callable[..., tuple[Any, Any]]
  initial_prediction: Callable[[Params, int], Any]
  joint: Callable[..., jax.Array]
  ctc_logits: Callable[..., jax.Array]


def float_nets(model: rnnt.RNNT) -> Nets:
  """Returns the functions of a linen model as they are."""

  def call(method, params, *args, key=None, **options):
    return model.apply(
      {'params': params},
      *args,
      method=method,
      rngs=None if key is None else {'dropout': key},
      **options,
    )

  def encode(params, feats_BxTxF, lengths_B, key=None):
    fixed = {'deterministic': key is None}
    return call('encode', params, feats_BxTxF, lengths_B, key=key, **fixed)

  def predict(params, labels_BxU, key=None):
    fixed = {'deterministic': key is None}
    return call('predict', params, labels_BxU, key=key, **fixed)

  def named(method):
    return lambda params, *args: call(method, params, *args)

  return Nets(
    encode=encode,
    encode_chunk=named('encode_chunk'),
    initial_carry=named('initial_carry'),
    predict=predict,
    predict_step=named('predict_step'),
    initial_prediction=named('initial_prediction'),
    joint=named('joint'),
    ctc_logits=named('ctc_logits'),
  )


@dataclasses.dataclass(frozen=True)
class Recognizer:
  """Pure functions of one recognizer.

  Attributes:
    model: the transducer.
    log_mel: the front end.
    normalization: of its features.
    tokenizer: text to labels and back.
    augment: SpecAugment of the training features, or None.
    ctc_weight: share of the auxiliary CTC loss; 0 for none, and with 1 there is
      no other: the encoder alone is trained.
    transformed: the model's functions in another arithmetic; None for its own.
  """

  model: rnnt.RNNT
  log_mel: features.LogMel
  normalization: normalize.GlobalNorm
  tokenizer: tokenizers.Tokenizer
  augment: data.SpecAugment | None = None
  ctc_weight: float = 0.0
  transformed: Nets | None = None

  @property
  def nets(self) -> Nets:
    """The model's functions."""
    return self.transformed or float_nets(self.model)

  @property
  def encoder_only(self) -> bool:
    """Whether CTC alone was trained: there is no transducer to decode."""
    return self.ctc_weight == 1

  @property
  def samples_per_frame(self) -> int:
    """Audio samples that one encoder frame advances by."""
    return self.log_mel.hop * self.model.subsampling

  @property
  def min_samples(self) -> int:
    """Audio samples of which the encoder makes its first frame."""
    return self.log_mel.window + self.samples_per_frame - self.log_mel.hop

  def init(self, key: jax.Array) -> Params:
    """Returns fresh params."""
    feats = jnp.zeros((1, 2 * self.model.subsampling, self.log_mel.num_mels))
    length, labels = jnp.array([feats.shape[1]]), jnp.zeros((1, 1), jnp.int32)
    return self.model.init(key, feats, length, labels)['params']

  def features(
    self, audio_BxS: jax.Array, lengths_B: jax.Array
  ) -> tuple[jax.Array, jax.Array]:
    """Returns normalized feats_BxTxF and their lengths_B."""
    feats, lengths = features.log_mel(self.log_mel, audio_BxS, lengths_B)
    return self.normalization(feats), lengths

  def loss(
    self, params: Params, batch: Mapping[str, jax.Array], key: jax.Array
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The training loss: mean negative log-likelihood of the transcripts.

    Args:
      params: of the model.
      batch: as `data.loader` makes them.
      key: of SpecAugment and dropout.

    Returns:
      The loss, and its parts, of {"rnnt", "ctc"}, as metrics.
    """
    augment_key, encoder_key, predictor_key = jax.random.split(key, 3)
    audio = data.perturbed(batch)
    feats, lengths = self.features(audio, batch['audio_lengths_B'])
    if self.augment is not None:
      feats = data.spec_augment(augment_key, feats, lengths, self.augment)
    nets = self.nets
    enc, lengths = nets.encode(params, feats, lengths, encoder_key)
    labels, label_lengths = batch['labels_BxU'], batch['label_lengths_B']
    # A padding row has no frames and no labels: its loss is 0.
    lengths = jnp.where(batch['weights_B'] > 0, lengths, 0)
    aux = {}
    if not self.encoder_only:
      pred = nets.predict(params, labels, predictor_key)
      joint = functools.partial(nets.joint, params)
      aux['rnnt'] = losses.rnnt_loss(
        joint, enc, pred, labels, lengths, label_lengths
      )
    if self.ctc_weight:
      ctc_logits = nets.ctc_logits(params, enc)
      aux['ctc'] = losses.ctc_loss(ctc_logits, labels, lengths, label_lengths)
    total = jnp.maximum(batch['weights_B'].sum(), 1.0)
    aux = {name: nll_B.sum() / total for name, nll_B in aux.items()}
    if len(aux) == 1:
      return next(iter(aux.values())), aux
    share = self.ctc_weight
    return (1 - share) * aux['rnnt'] + share * aux['ctc'], aux

  def transducer(self, params: Params) -> decode.Transducer:
    """Returns what decoding needs, over `params`.

    Raises:
      ValueError: if CTC alone was trained.
    """
    if self.encoder_only:
      raise ValueError(
        'this recognizer was trained by CTC alone (config.train.ctc_weight=1), '
        'so that its transducer is untrained: decode greedily and not in a '
        'stream, or train on with a smaller weight'
      )
    nets = self.nets
    return decode.Transducer(
      functools.partial(nets.initial_prediction, params),
      functools.partial(nets.predict_step, params),
      functools.partial(nets.joint, params),
    )

  def encode(
    self, params: Params, audio_BxS: jax.Array, lengths_B: jax.Array
  ) -> tuple[jax.Array, jax.Array]:
    """Returns enc_BxSxD and its lengths_B, from samples."""
    feats, lengths = self.features(audio_BxS, lengths_B)
    return self.nets.encode(params, feats, lengths)

  def greedy(
    self, params: Params, audio_BxS: jax.Array, lengths_B: jax.Array
  ) -> decode.Decoded:
    """Returns the greedy transcripts of a batch of recordings."""
    enc, lengths = self.encode(params, audio_BxS, lengths_B)
    if self.encoder_only:
      return decode.ctc_greedy(self.nets.ctc_logits(params, enc), lengths)
    return decode.greedy(self.transducer(params), enc, lengths)

  def beam_search(
    self,
    params: Params,
    audio_BxS: jax.Array,
    lengths_B: jax.Array,
    *,
    beam: int,
  ) -> decode.Decoded:
    """Returns the best transcript of a beam search of each recording."""
    enc, lengths = self.encode(params, audio_BxS, lengths_B)
    transducer = self.transducer(params)
    return beam_lib.beam_search(transducer, enc, lengths, beam=beam).best()

  def to_config(self) -> dict[str, Any]:
    """Returns model and front end, JSON-able; the tokenizer has its own."""
    decoder = {'encoder_only': True} if self.encoder_only else {}
    return {
      **decoder,
      'model': {
        **fields.to_config(self.model),
        'reduce_after': list(self.model.reduce_after),
        'dtype': jnp.dtype(self.model.dtype).name,
      },
      'log_mel': dataclasses.asdict(self.log_mel),
      'normalization': self.normalization.to_config(),
    }


def from_config(
  config: Mapping[str, Any], tokenizer: Mapping[str, Any]
) -> Recognizer:
  """Returns the recognizer with this `to_config` and its tokenizer's."""
  return Recognizer(
    model=make_model(config['model']),
    log_mel=features.LogMel(**config['log_mel']),
    normalization=normalize.GlobalNorm.from_config(config['normalization']),
    tokenizer=tokenizers.tokenizer_from_config(dict(tokenizer)),
    ctc_weight=float(config.get('encoder_only', False)),
  )


def shipped(
  recognizer: Recognizer, tree: Mapping[str, Any]
) -> tuple[Recognizer, dict[str, Any]]:
  """Drops the CTC head, where only training needs it, from what ships."""
  if recognizer.encoder_only:
    return recognizer, dict(tree)
  model = recognizer.model.clone(ctc=False)
  recognizer = dataclasses.replace(recognizer, model=model, ctc_weight=0.0)
  return recognizer, without_ctc_head(tree)


def without_ctc_head(tree: Mapping[str, Any]) -> dict[str, Any]:
  """Returns weights, or their shapes, without those of the CTC head."""
  return {name: leaf for name, leaf in tree.items() if name != 'ctc_out'}


def make_augment(section: Mapping[str, Any]) -> data.SpecAugment | None:
  """Returns the masks of a config's `augment` section; empty, none."""
  if not section:
    return None
  return fields.made('augment', data.SpecAugment, section)


def make_perturbation(section: Mapping[str, Any]) -> data.Perturbation | None:
  """Returns what a config's `perturb` section does; empty, nothing."""
  if not section:
    return None
  return fields.made('perturb', data.Perturbation, section)


def make_model(config: Mapping[str, Any], **overrides: Any) -> rnnt.RNNT:
  """Returns the model of a config section.

  Args:
    config: fields of `rnnt.RNNT`; dtype by name.
    **overrides: fields that are not in the config.

  Raises:
    ValueError: naming a field that the model does not have.
  """
  made = fields.of_network(rnnt.RNNT, config)
  dtype = made.pop('dtype', 'float32')
  if dtype not in _DTYPES:
    raise ValueError(
      f'config.model.dtype is {dtype!r}, expected one of {list(_DTYPES)}'
    )
  made['reduce_after'] = tuple(made.get('reduce_after', ()))
  return rnnt.RNNT(**{**made, 'dtype': _DTYPES[dtype], **overrides})


def load(
  path: os.PathLike | str,
) -> tuple[Recognizer, Params, dict[str, Any]]:
  """Opens a packed recognizer.

  Args:
    path: of a file that `experiments.train` wrote.

  Returns:
    The recognizer, its decoded params, and the file's config.

  Raises:
    ValueError: if the file is not a packed recognizer.
  """
  packed = packed_file.load(path)
  if 'recognizer' not in packed.config or packed.tokenizer is None:
    raise ValueError(
      f'{path} holds weights but no recognizer: expected a file that '
      'experiments.train wrote'
    )
  recognizer = from_config(packed.config['recognizer'], packed.tokenizer)
  return recognizer, qtensor.decode(packed.tree), packed.config


def find_model(model: str | None, workdir: str | None) -> pathlib.Path:
  """Returns the packed file that --model or --workdir names.

  Raises:
    ValueError: unless exactly one of them is given.
    FileNotFoundError: saying when the file would come to be.
  """
  if bool(model) == bool(workdir):
    raise ValueError('give exactly one of --model=FILE and --workdir=DIR')
  path = (
    pathlib.Path(model) if model else pathlib.Path(workdir or '') / MODEL_FILE
  )
  if not path.exists():
    raise FileNotFoundError(
      f'{path} does not exist; experiments.train writes {MODEL_FILE} into its '
      '--workdir at the first evaluation on development data'
    )
  return path
