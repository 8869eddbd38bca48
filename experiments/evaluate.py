"""Scores a trained recognizer on a corpus: one JSON line, and every hypothesis.

  python -m experiments.evaluate --workdir=runs/digits \
    --data='espeak:digits?split=eval&utterances=300'

--model=FILE scores a packed file instead of a working directory's. The weights
always come from the file, as decode(encode(...)) of what was trained;
--arithmetic=integer computes with them as an accelerator does, in integers.
"""

from __future__ import annotations

import json
import pathlib

import jax
from absl import app, flags

from experiments import integer_recognizer, results, scoring, usage
from experiments import recognizer as recognizer_lib
from s8bqat_jax import data

_WORKDIR = flags.DEFINE_string('workdir', None, 'Of experiments.train.')
_MODEL = flags.DEFINE_string('model', None, 'A packed file.')
_DATA = flags.DEFINE_string('data', None, 'A data spec.', required=True)
_BEAM = flags.DEFINE_integer('beam', 1, 'Hypotheses kept; 1 is greedy.')
_ARITHMETIC = usage.arithmetic_flag(integer_recognizer.ARITHMETICS)
_BATCH = flags.DEFINE_integer('batch_size', 32, 'Utterances at a time.')
_OUT = flags.DEFINE_string(
  'hypotheses',
  None,
  'Where the hypotheses go; if unset a file here that is named after the model '
  'and the data.',
)


def _name(path: pathlib.Path, corpus: data.Corpus) -> str:
  """Returns a name that no other model, data or way of computing has."""
  digest = results.file_hash(path)[:8]
  search = f'-beam{_BEAM.value}' if _BEAM.value > 1 else ''
  search += f'-{_ARITHMETIC.value}' if _ARITHMETIC.value else ''
  folder = path.resolve().parent.name
  return f'{folder}-{path.stem}-{digest}-{corpus.fingerprint}{search}.jsonl'


def main(argv):
  usage.start(argv)
  path = recognizer_lib.find_model(_MODEL.value, _WORKDIR.value)
  recognizer, params, _ = integer_recognizer.load(path, _ARITHMETIC.value)
  corpus = data.load(_DATA.value)
  scorer = scoring.Scorer(recognizer, corpus, _BATCH.value, _BEAM.value)
  hypotheses = list(scorer.hypotheses(jax.device_put(params), progress=True))
  out = pathlib.Path(_OUT.value or _name(path, corpus))
  scoring.write_hypotheses(out, hypotheses)
  print(
    json.dumps(
      {
        **scoring.summarize(hypotheses),
        'model': str(path),
        'data': corpus.spec,
        'fingerprint': corpus.fingerprint,
        'hypotheses': str(out),
      }
    )
  )


if __name__ == '__main__':
  app.run(main)
