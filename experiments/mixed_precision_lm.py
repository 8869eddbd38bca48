"""Mixed-precision Transformer language models, from text to packed files.

  python -m experiments.mixed_precision_lm \
    --config=experiments/configs/lm/wikitext2.py

Trains a float model, asks what each tensor's bits cost (Hessian traces,
divergences, a differentiable search, and two controls), allocates bits in the
bytes that uniform precision takes, trains each choice by ADMM beside uniform
post-training and straight-through quantization, and scores the packed files.
Every method starts from the same float model and takes the same steps. Stages
are kept in --runs; the same command goes on where it stopped. Writes
experiments/results/<name>.json and pictures.
"""

from __future__ import annotations

import itertools
import pathlib
import time

from absl import app, flags
from ml_collections import config_flags

from experiments import (
  lm_matrix,
  lm_plots,
  lm_sensitivity,
  lm_stages,
  results,
  trainer,
)
from experiments.stages import Interrupted
from s8bqat_jax.data import text as text_lib

_CONFIG = config_flags.DEFINE_config_file(
  'config', None, 'A file of experiments/configs/lm.'
)
_RUNS = flags.DEFINE_string('runs', 'runs/lm', 'Where stages are kept.')
_ONLY = flags.DEFINE_string('only', '', 'Only cells that contain this.')
_SEEDS = flags.DEFINE_list('seeds', [], 'Only these seeds.')
_HOURS = flags.DEFINE_float(
  'max_hours', float('inf'), 'Start nothing after that; it is listed.'
)
_ESTIMATE = flags.DEFINE_bool('estimate_only', False, 'Print hours and stop.')

COLUMNS = {
  'method': '',
  'bits': '.2f',
  'seed': '',
  'perplexity': '.2f',
  'dev_perplexity': '.2f',
  'bytes': ',',
  'encoded_bytes': ',',
  'ratio_fp32': '.2f',
  'ratio_fp16': '.2f',
}


def main(argv):
  if len(argv) > 1:
    raise app.UsageError(f'unexpected arguments {argv[1:]}')
  trainer.set_up()
  config = _CONFIG.value
  root = pathlib.Path(_RUNS.value)
  trainer.keep_compiled(root / 'compiled')
  corpora = lm_stages.Corpora(config)
  planned = list(itertools.product(config.seeds, lm_matrix.cells(config)))
  asked = [
    (seed, cell)
    for seed, cell in planned
    if _ONLY.value in str(cell)
    and (not _SEEDS.value or str(seed) in _SEEDS.value)
  ]
  by_seed = {
    seed: lm_stages.Stages(config, corpora, root / config.name, seed)
    for seed in dict.fromkeys(seed for seed, _ in asked)
  }
  hours = lm_matrix.estimated_hours(
    config, list(by_seed.values()), list(dict.fromkeys(c for _, c in asked))
  )
  print(f'{len(asked)} of {len(planned)} cells; at most {hours:.2f} h to go')
  if _ESTIMATE.value:
    return
  start = time.perf_counter()
  rows, folders, done = [], {}, set()
  scores: dict[int, lm_sensitivity.Sensitivity] = {}
  try:
    for seed, cell in asked:
      if time.perf_counter() - start > 3600 * _HOURS.value:
        break
      stages = by_seed[seed]
      found = scores.setdefault(seed, lm_sensitivity.Sensitivity(stages))
      bits = lm_matrix.bits_of(cell, found)
      path = stages.train(cell.method, bits)
      metrics = stages.evaluate(path)
      row = {
        'system': 'Transformer LM',
        'method': cell.label,
        'bits': lm_matrix.mean_bits(bits, stages.float_params()),
        'point': cell.point,
        'seed': seed,
        'split': 'eval',
        'metrics': metrics,
      }
      if not isinstance(bits, int):
        row['allocation'] = bits
      rows.append(row)
      folders[cell, seed] = path.parent / 'eval' / lm_stages.LINE_NATS
      done.add((seed, cell))
      print(results.table([row], COLUMNS), flush=True)
  except Interrupted:
    print('interrupted; run the same command again to go on')
    return
  first = next(iter(scores.values()), None)
  if first is None:
    return
  lines = corpora.eval_text.lines
  articles = [str(n) for n in text_lib.article_of_lines(lines)]
  words = [len(line.split()) + 1 for line in lines]
  path = results.write(
    config.name,
    rows,
    comparisons=lm_matrix.comparisons(
      folders, articles, words, lm_matrix.Cell('float')
    )
    + lm_matrix.comparisons(
      folders, articles, words, lm_matrix.Cell('float continued')
    ),
    corpus=[
      {'spec': k, 'fingerprint': v} for k, v in corpora.fingerprints.items()
    ],
    not_run=[
      f'{cell}, seed {seed}'
      for seed, cell in planned
      if (seed, cell) not in done
    ],
    agreement=lm_matrix.agreement(first.stages, first),
    traces=first.traces()[2],
    config_hash=results.config_hash(config.to_dict()),
  )
  lm_plots.write(rows, first, path.with_suffix(''))
  print(results.table(rows, COLUMNS))


if __name__ == '__main__':
  flags.mark_flag_as_required('config')
  app.run(main)
