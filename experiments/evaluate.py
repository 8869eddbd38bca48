"""Scores a trained recognizer on a corpus: one JSON line, and every hypothesis.

  python -m experiments.evaluate --workdir=runs/digits \
    --data='espeak:digits?split=eval&utterances=300'

--model=FILE scores a packed file instead of a working directory's. The weights
always come from the file, as decode(encode(...)) of what was trained.
"""

from __future__ import annotations

import json
import os
import pathlib
from typing import Any

import jax
from absl import app, flags

from experiments import recognizer as recognizer_lib
from experiments import scoring
from experiments.train import MODEL_FILE
from s8bqat_jax import artifacts, data

_WORKDIR = flags.DEFINE_string('workdir', None, 'Of experiments.train.')
_MODEL = flags.DEFINE_string('model', None, 'A packed file.')
_DATA = flags.DEFINE_string('data', None, 'A data spec.')
_BEAM = flags.DEFINE_integer('beam', 1, 'Hypotheses kept; 1 is greedy.')
_BATCH = flags.DEFINE_integer('batch_size', 32, 'Utterances at a time.')
_OUT = flags.DEFINE_string(
  'hypotheses',
  None,
  'Where the hypotheses go; hypotheses.jsonl beside the model if unset.',
)


def load_model(
  path: os.PathLike | str,
) -> tuple[recognizer_lib.Recognizer, Any, dict[str, Any]]:
  """Opens a packed recognizer.

  Args:
    path: of the file.

  Returns:
    The recognizer, its decoded params and the file's config.

  Raises:
    ValueError: if the file is not a packed recognizer.
  """
  packed = artifacts.load(path)
  if 'recognizer' not in packed.config:
    raise ValueError(
      f'{path} holds weights but no recognizer (its config has no '
      '"recognizer"): expected a file that experiments.train wrote'
    )
  recognizer = recognizer_lib.from_config(packed.config['recognizer'])
  return recognizer, artifacts.decode(packed.tree), packed.config


def model_path() -> pathlib.Path:
  """Returns the file that --model or --workdir names."""
  if bool(_MODEL.value) == bool(_WORKDIR.value):
    raise app.UsageError('give exactly one of --model=FILE and --workdir=DIR')
  if _MODEL.value:
    return pathlib.Path(_MODEL.value)
  path = pathlib.Path(_WORKDIR.value) / MODEL_FILE
  if not path.exists():
    raise app.UsageError(
      f'--workdir: {path} does not exist. Training writes it at its first '
      'evaluation on the development data'
    )
  return path


def main(argv):
  del argv
  path = model_path()
  recognizer, params, _ = load_model(path)
  corpus = data.load(_DATA.value)
  scorer = scoring.Scorer(
    recognizer, corpus, _BATCH.value, scoring.Decoding(beam=_BEAM.value)
  )
  hypotheses = list(scorer.hypotheses(jax.device_put(params), progress=True))
  out = pathlib.Path(_OUT.value or path.with_name('hypotheses.jsonl'))
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
  flags.mark_flag_as_required('data')
  app.run(main)
