"""Evaluations that go with the repository: metrics, and what was recognized.

From them statistics can be worked out again without training (though not
without the data), and a matrix that one machine cannot finish is finished on
another. A file is named by the hash of config, corpora and costed machines, so
that what has changed since never meets it.
"""

from __future__ import annotations

import gzip
import json
import pathlib
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

from experiments import results, scoring
from s8bqat_jax import files


def path_of(
  folder: pathlib.Path, name: str, about: Mapping[str, Any]
) -> pathlib.Path:
  """Returns where an evaluation is kept, or would be.

  Args:
    folder: of evaluations.
    name: for readers.
    about: what the evaluation depends on.
  """
  return folder / f'{name}-{results.config_hash(about)}.json.gz'


def write(
  path: pathlib.Path,
  about: Mapping[str, Any],
  metrics: Mapping[str, Any],
  hypotheses: Sequence[scoring.Hypothesis],
) -> None:
  """Writes an evaluation; the same one gives the same bytes.

  Args:
    path: of the file, which ends in `.json.gz`.
    about: what the evaluation depends on, for readers; the machine is added.
    metrics: JSON-able.
    hypotheses: what was recognized.
  """
  path.parent.mkdir(parents=True, exist_ok=True)
  whole = {
    'about': about,
    'machine': results.machine(),
    'metrics': metrics,
    'hypotheses': sorted(hypotheses),
  }
  text = json.dumps(whole, default=str)
  with files.replacing(path) as partial:
    partial.write_bytes(gzip.compress(text.encode(), mtime=0))


def read(
  path: pathlib.Path,
) -> tuple[dict[str, Any], list[scoring.Hypothesis]]:
  """Returns the metrics and the hypotheses of an evaluation.

  Args:
    path: of a file that `write` wrote.

  Raises:
    ValueError: if it is not whole.
  """
  try:
    whole = json.loads(gzip.decompress(path.read_bytes()))
    hypotheses = [scoring.Hypothesis(*fields) for fields in whole['hypotheses']]
    return whole['metrics'], hypotheses
  except (OSError, EOFError, zlib.error, KeyError, TypeError, ValueError) as e:
    raise ValueError(
      f'{path} is no evaluation ({e}): take it from the repository again, or '
      'remove it to train anew'
    ) from e
