"""One recognizer in three arithmetics: float, its 8-bit twin, integers.

  python -m experiments.integer_wer --model=FILE \
    --data='espeak:digits?split=eval&utterances=500&snr=15-35'

A file of float weights is quantized without training, uniformly to 8 bits and
to 32 Lloyd-Max centroids, and its ranges are measured on --calibration; a file
with codes and ranges is taken as it ships. The same utterances are recognized
in each arithmetic, every integer program is audited, and the encoder's
streaming step is held against the encoder of whole utterances, integer by
integer. Writes experiments/results/integer_wer.json.
"""

from __future__ import annotations

import pathlib
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import app, flags

from experiments import integer_recognizer, results, scoring, usage
from experiments import recognizer as recognizer_lib
from s8bqat_jax import data, integer, quantizers
from s8bqat_jax.artifacts import packed_file, qtensor
from s8bqat_jax.quantizers import quantize_once

_MODEL = flags.DEFINE_string('model', None, 'A packed file.', required=True)
_DATA = flags.DEFINE_string('data', None, 'A data spec.', required=True)
_CALIBRATION = flags.DEFINE_string(
  'calibration', None, "A data spec; the file's development data if unset."
)
_METHOD = flags.DEFINE_string('method', 'minmax', 'Of calibration.')
_UTTERANCES = flags.DEFINE_integer('utterances', 256, 'To calibrate on.')
_FOLDER = flags.DEFINE_string('out', str(results.FOLDER), 'For the result.')

_SHIPPED = 'as shipped'
_STREAMED = 16  # utterances
_AUDITED_FRAMES = 400  # of a whole utterance


class Weights(NamedTuple):
  """One set of weights: how it was made, its bits, the tree, its ranges."""

  method: str
  bits: int
  tree: Any
  ranges: integer_recognizer.Ranges


def quantized_weights(
  path: pathlib.Path, calibration: str | None
) -> list[Weights]:
  """Returns what a file ships, or what comes of its float weights."""
  packed = packed_file.load(path)
  ranges = packed.config.get(integer_recognizer.CONFIG_KEY)
  leaves = jax.tree.leaves(packed.tree, is_leaf=qtensor.is_qtensor)
  bits = max((x.bits for x in leaves if qtensor.is_qtensor(x)), default=32)
  if ranges is not None:
    return [Weights(_SHIPPED, bits, packed.tree, ranges)]
  spec = calibration or packed.config.get('dev_data')
  if spec is None:
    raise ValueError(
      f'{path} has neither ranges nor development data: give --calibration'
    )
  recognizer, params, _ = recognizer_lib.load(path)
  corpus = data.load(spec)
  loader = data.make_loader(
    corpus, recognizer.tokenizer, batch_size=16, num_buckets=1, train=False
  )
  wanted = -(-min(_UTTERANCES.value, len(corpus)) // 16)
  batches = list(loader.batches(0, min(wanted, loader.steps_per_epoch)))
  if bits < 32:
    trees = [(_SHIPPED, bits, packed.tree)]
  else:
    once = {
      ('uniform, no training', 8): quantizers.uniform(8),
      ('Lloyd-Max, no training', 5): quantizers.centroids(5),
    }
    trees = [(*about, quantize_once(q, params)) for about, q in once.items()]
  return [
    Weights(
      method,
      bits,
      jax.device_get(tree),
      integer_recognizer.calibrate(recognizer, tree, batches, _METHOD.value),
    )
    for method, bits, tree in trees
  ]


def streaming_mismatches(
  recognizer: recognizer_lib.Recognizer, weights: Weights, corpus: data.Corpus
) -> dict[str, int]:
  """Compares the encoder's step with the encoder, on the same features.

  Returns:
    How many integers were compared and how many differ.
  """
  programs = integer_recognizer.Programs(recognizer, *weights[2:])
  step, chunk = programs.encode_chunk(1), recognizer.model.subsampling
  compared = different = 0
  for i in range(min(_STREAMED, len(corpus))):
    pcm_S = corpus.pcm(i)
    feats, lengths = jax.jit(recognizer.features)(
      pcm_S[None], np.array([len(pcm_S)], np.int32)
    )
    whole = programs.encode(1, feats.shape[1])
    codes, *rest = whole.quantize(feats, lengths)
    expected, _ = whole.integers(codes, *rest)
    carry = recognizer.nets.initial_carry(weights.tree, 1)
    state = step.quantize(carry, feats[:, :chunk])[:-1]
    for frame in range(expected.shape[1]):
      piece = codes[:, frame * chunk : (frame + 1) * chunk]
      *state, enc = step.integers(*state, piece)
      compared += enc.size
      different += int(np.sum(np.asarray(enc) != expected[:, [frame]]))
  return {'compared': compared, 'different': different}


def audits(
  recognizer: recognizer_lib.Recognizer, weights: Weights
) -> dict[str, Any]:
  """Audits and prints the programs of a stream and of a whole utterance."""
  programs = integer_recognizer.Programs(recognizer, *weights[2:])
  width = recognizer.model.joint_width
  found = {}
  for name, program in {
    'encode': programs.encode(1, _AUDITED_FRAMES),
    'encode_chunk': programs.encode_chunk(1),
    'predict_step': programs.predict_step(1),
    'joint': programs.joint((1, width), (1, width)),
  }.items():
    report = integer.audit(program)
    print(f'\n{weights.method}, {weights.bits} bits: {name}\n{report}')
    found[name] = {
      'ok': report.ok,
      'operations': len(report.rows),
      'equations': report.equations,
      'floats': list(report.floats),
      'overflows': len(report.overflows),
      'unproven': list(report.unproven),
      'assumptions': list(report.assumptions),
    }
  return found


def main(argv):
  usage.start(argv)
  path = pathlib.Path(_MODEL.value)
  recognizer, params, _ = recognizer_lib.load(path)
  corpus = data.load(_DATA.value)
  rows, comparisons, proofs = [], [], {}

  def score(arithmetic, method, bits, recognizer, params):
    scorer = scoring.Scorer(recognizer, corpus)
    hypotheses = sorted(scorer.hypotheses(params, progress=True))
    rows.append(
      {
        'system': 'RNN-T',
        'method': method,
        'bits': bits,
        'arithmetic': arithmetic,
        'seed': None,
        'split': 'eval',
        'metrics': scoring.summarize(hypotheses),
      }
    )
    return rows[-1]['metrics'], hypotheses

  quantized = quantized_weights(path, _CALIBRATION.value)
  # Of a quantized file these are its weights, between float activations.
  first = quantized[0]
  plain = ('float', 32) if first.method != _SHIPPED else first[:2]
  score('float', *plain, recognizer, params)
  for weights in quantized:
    decoded = qtensor.decode(weights.tree)
    about = weights.method, weights.bits
    twin = integer_recognizer.twin(recognizer, *weights[2:])
    shipped = integer_recognizer.lower(recognizer, *weights[2:])
    a, of_twin = score('8-bit twin', *about, twin, decoded)
    b, of_integers = score('integer', *about, shipped, {})
    same = sum(x == y for x, y in zip(of_twin, of_integers))
    comparisons.append(
      {
        'a': f'integer, {weights.method}',
        'b': f'8-bit twin, {weights.method}',
        'metric': 'wer',
        'absolute': b['wer'] - a['wer'],
        'utterances_alike': same,
        'utterances': len(of_twin),
      }
    )
    proofs[weights.method] = {
      'audit': audits(recognizer, weights),
      'streaming': streaming_mismatches(recognizer, weights, corpus),
    }
  results.write(
    'integer_wer',
    rows,
    comparisons=comparisons,
    corpus={'spec': corpus.spec, 'fingerprint': corpus.fingerprint},
    folder=_FOLDER.value,
    proofs=proofs,
  )
  print()
  columns = {'method': '', 'bits': '', 'arithmetic': ''}
  columns |= {'wer': '.2f', 'ci95': '.2f', 'words': ','}
  print(results.table(rows, columns))
  for c, proof in zip(comparisons, proofs.values()):
    streamed = proof['streaming']
    print(
      f'{c["a"]}: WER {c["absolute"]:+.2f} absolute against the twin, '
      f'{c["utterances_alike"]} of {c["utterances"]} utterances alike; '
      f'streaming: {streamed["different"]} of {streamed["compared"]} integers '
      'differ'
    )


if __name__ == '__main__':
  app.run(main)
