"""One RNN-T training step against the same model in PyTorch, in one run.

Both sides train the same transducer (3 LSTM layers, prediction network,
joint) from the same weights on the same features, with gradient clipping and
AdamW, on the same cores. PyTorch runs `torch.nn.LSTM` and the transducer loss
on dense logits, as its maintained losses take them, with the anti-diagonal
recursion written in torch operations. A second pair of rows trains the
encoder alone with CTC, where PyTorch's loss is native code. The steps are
interleaved and medians reported; that the losses agree is checked first.
"""

from __future__ import annotations

import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from absl import app, flags

from experiments import fitting, results, usage
from s8bqat_jax import losses
from s8bqat_jax.models import rnnt
from s8bqat_jax.quantizers import step as quantizer_step

_ROUNDS = flags.DEFINE_integer('rounds', 12, 'Timed steps of each side.')
_WIDTH = flags.DEFINE_integer('width', 256, 'Hidden units of every layer.')

BATCH, FRAMES, MELS, LABELS, VOCAB = 16, 400, 40, 40, 32
STACK, LAYERS, EMBED = 4, 3, 64
RATE, CLIP = 1e-3, 5.0


def make_model(dtype):
  width = _WIDTH.value
  return rnnt.RNNT(
    VOCAB,
    encoder_width=width,
    encoder_layers=LAYERS,
    predictor_width=width,
    embed_width=EMBED,
    joint_width=width,
    stack=STACK,
    ctc=True,
    dtype=dtype,
  )


def make_batch():
  rng = np.random.default_rng(0)
  return {
    'feats': rng.normal(size=(BATCH, FRAMES, MELS)).astype(np.float32),
    'lengths': rng.integers(FRAMES // 2, FRAMES + 1, BATCH).astype(np.int32),
    'labels': rng.integers(1, VOCAB, (BATCH, LABELS)).astype(np.int32),
    'label_lengths': rng.integers(LABELS // 2, LABELS + 1, BATCH).astype(
      np.int32
    ),
  }


def jax_loss(model, kind):
  def loss(params, batch, key):
    del key
    bound = model.bind({'params': params})
    enc, lengths = bound.encode(batch['feats'], batch['lengths'])
    labels, label_lengths = batch['labels'], batch['label_lengths']
    if kind == 'ctc':
      nll = losses.ctc_loss(
        bound.ctc_logits(enc), labels, lengths, label_lengths
      )
    else:
      pred = bound.predict(labels)
      nll = losses.rnnt_loss(
        bound.joint, enc, pred, labels, lengths, label_lengths
      )
    return jnp.mean(nll), {}

  return loss


class JaxSide:
  """The step as `experiments.train` runs it."""

  def __init__(self, params, batch, kind, dtype):
    step = quantizer_step.make_step(
      quantizer_step.on_main(jax_loss(make_model(dtype), kind)),
      optax.adamw(RATE, weight_decay=1e-2),
      learning_rate=RATE,
      clip_norm=CLIP,
    )
    self.update = fitting.compiled_step(step)
    self.state = step.init(jax.tree.map(jnp.array, params))
    self.batch = jax.tree.map(jnp.asarray, batch)

  def __call__(self):
    self.state, metrics = self.update(self.state, self.batch)
    return float(metrics['loss'])


def torch_rnnt_loss(logits, labels, lengths, label_lengths):
  """The lattice recursion along anti-diagonals, vectorised over the batch."""
  batch, frames, rows, _ = logits.shape
  log_probs = logits.log_softmax(-1)
  blank = log_probs[..., 0]
  index = labels[:, None, :, None].expand(batch, frames, rows - 1, 1)
  label = log_probs[:, :, :-1].gather(-1, index)[..., 0]
  label = torch.nn.functional.pad(label, (0, 1), value=-1e30)
  # Cell (t, u) moves to row n = t + u, so that a diagonal is one row.
  steps = frames + rows - 1
  u = torch.arange(rows)
  t = torch.arange(steps)[:, None] - u
  valid = (t >= 0) & (t < frames)
  t = t.clamp(0, frames - 1)
  skew = lambda x: torch.where(valid, x[:, t, u], torch.tensor(-1e30))
  blank, label = skew(blank), skew(label)
  alpha = torch.full((batch, rows), -1e30)
  alpha[:, 0] = 0.0
  diagonals = [alpha]
  for n in range(1, steps):
    stay = alpha + blank[:, n - 1]
    move = torch.nn.functional.pad(
      (alpha + label[:, n - 1])[:, :-1], (1, 0), value=-1e30
    )
    alpha = torch.where(valid[n], torch.logaddexp(stay, move), -1e30)
    diagonals.append(alpha)
  alphas = torch.stack(diagonals, 1)
  b, end = torch.arange(batch), lengths - 1 + label_lengths
  return -(alphas[b, end, label_lengths] + blank[b, end, label_lengths])


class TorchModel(torch.nn.Module):
  """`rnnt.RNNT` of this benchmark, layer for layer."""

  def __init__(self, params, width):
    super().__init__()
    self.encoder = torch.nn.LSTM(
      STACK * MELS, width, num_layers=LAYERS, batch_first=True
    )
    self.embed = torch.nn.Embedding(VOCAB, EMBED)
    self.predictor = torch.nn.LSTM(EMBED, width, batch_first=True)
    names = ('encoder_out', 'predictor_out', 'joint_out', 'ctc_out')
    self.dense = torch.nn.ModuleDict(
      {n: torch.nn.Linear(*params[n]['kernel'].shape) for n in names}
    )
    self._load(params)

  def _load(self, params):
    tensor = lambda x: torch.tensor(np.asarray(x))
    with torch.no_grad():
      for i in range(LAYERS):
        self._load_lstm(self.encoder, i, params[f'encoder_{i}'], tensor)
      self._load_lstm(self.predictor, 0, params['predictor_0'], tensor)
      self.embed.weight.copy_(tensor(params['embed']['embedding']))
      for name, layer in self.dense.items():
        kernel, bias = (tensor(params[name][k]) for k in ('kernel', 'bias'))
        layer.get_parameter('weight').copy_(kernel.T)
        layer.get_parameter('bias').copy_(bias)

  @staticmethod
  def _load_lstm(layer, i, params, tensor):
    inputs = getattr(layer, f'weight_ih_l{i}').shape[1]
    kernel = tensor(params['kernel'])
    getattr(layer, f'weight_ih_l{i}').copy_(kernel[:inputs].T)
    getattr(layer, f'weight_hh_l{i}').copy_(kernel[inputs:].T)
    getattr(layer, f'bias_ih_l{i}').copy_(tensor(params['bias']))
    getattr(layer, f'bias_hh_l{i}').zero_()
    getattr(layer, f'bias_hh_l{i}').requires_grad_(False)

  def forward(self, batch, kind):
    feats = batch['feats'].reshape(BATCH, FRAMES // STACK, STACK * MELS)
    enc = self.dense['encoder_out'](self.encoder(feats)[0])
    lengths, label_lengths = batch['lengths'] // STACK, batch['label_lengths']
    if kind == 'ctc':
      logits = self.dense['ctc_out'](torch.tanh(enc))
      return torch.nn.functional.ctc_loss(
        logits.log_softmax(-1).transpose(0, 1),
        batch['labels'],
        lengths,
        label_lengths,
        reduction='none',
      ).mean()
    shifted = torch.nn.functional.pad(batch['labels'], (1, 0))
    pred = self.predictor(self.embed(shifted))[0]
    pred = self.dense['predictor_out'](pred)
    logits = self.dense['joint_out'](
      torch.tanh(enc[:, :, None] + pred[:, None])
    )
    return torch_rnnt_loss(
      logits, batch['labels'], lengths, label_lengths
    ).mean()


class TorchSide:
  """The same step in PyTorch; bfloat16 through autocast, as its users do."""

  def __init__(self, params, batch, kind, dtype):
    self.model = TorchModel(params, _WIDTH.value)
    self.kind, self.autocast = kind, dtype == jnp.bfloat16
    self.batch = {
      k: torch.tensor(v if v.dtype == np.float32 else v.astype(np.int64))
      for k, v in batch.items()
    }
    trained = [p for p in self.model.parameters() if p.requires_grad]
    self.trained = trained
    self.optimizer = torch.optim.AdamW(trained, RATE, weight_decay=1e-2)

  def __call__(self):
    self.optimizer.zero_grad()
    with torch.autocast('cpu', torch.bfloat16, enabled=self.autocast):
      loss = self.model(self.batch, self.kind)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(self.trained, CLIP)
    self.optimizer.step()
    return float(loss)


def seconds(side):
  start = time.perf_counter()
  side()
  return time.perf_counter() - start


def main(argv):
  usage.start(argv)  # Its memory settings help PyTorch beside it, too.
  batch = make_batch()
  model = make_model(jnp.float32)
  params = model.init(
    jax.random.key(0), batch['feats'], batch['lengths'], batch['labels']
  )['params']
  count = sum(x.size for x in jax.tree.leaves(params))
  print(
    f'{count:,} parameters, batch {BATCH} x {FRAMES} frames x {LABELS} labels, '
    f'{torch.get_num_threads()} torch threads'
  )
  rows, not_run = [], []
  for kind in ('rnnt', 'ctc'):
    for dtype in (jnp.float32, jnp.bfloat16):
      name = np.dtype(dtype).name
      ours = JaxSide(params, batch, kind, dtype)
      theirs = TorchSide(params, batch, kind, dtype)
      try:
        first = ours(), theirs()
      except RuntimeError as error:
        # oneDNN has no bfloat16 LSTM on processors without the instructions.
        not_run.append(f'{kind}, {name}: PyTorch says {error}')
        print('not run:', not_run[-1])
        continue
      tolerance = 1e-4 if dtype == jnp.float32 else 2e-2
      np.testing.assert_allclose(*first, rtol=tolerance)
      theirs()
      ours()
      pairs = [(seconds(ours), seconds(theirs)) for _ in range(_ROUNDS.value)]
      ratios = [b / a for a, b in pairs]
      ours_s, theirs_s = (statistics.median(x) for x in zip(*pairs))
      rows.append(
        {
          'loss': kind,
          'dtype': name,
          'ours_seconds': ours_s,
          'pytorch_seconds': theirs_s,
          'pytorch_over_ours': statistics.median(ratios),
          'lowest': min(ratios),
          'highest': max(ratios),
          'first_loss_ours': first[0],
          'first_loss_pytorch': first[1],
        }
      )
      print(results.table(rows[-1:]))
  results.write(
    'train_step',
    rows,
    not_run=not_run,
    parameters=count,
    peer=f'PyTorch {torch.__version__}',
    shape={'batch': BATCH, 'frames': FRAMES, 'labels': LABELS, 'vocab': VOCAB},
  )
  print(results.table(rows))


if __name__ == '__main__':
  app.run(main)
