"""The floating-point baselines of the protocol: error rate against size.

  python -m experiments.float_baselines --tasks=digits,b --sizes=30k,90k

Trains what is not yet trained (each cell in its own working directory, so that
a rerun continues), evaluates every cell once and writes
experiments/results/float_<task>.json and .png. Cells of the plan that have not
been run are listed as not run. What was published (--publish) counts as run.

  a       task A, synthesized sentences of a closed grammar
  b       task B, strings of all forty Arabic command words, four folds
  digits  task B, the ten digits only, four folds
  fsdd    English digit strings, leaving one of six speakers out
  c       task C, read English of learners, pretrained on synthesized speech
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import time
from collections.abc import Sequence
from typing import Any

import matplotlib

matplotlib.use('Agg')
import jax  # noqa: E402
import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402
from absl import app, flags  # noqa: E402

from experiments import (  # noqa: E402
  evaluations,
  keys,
  plots,
  results,
  scoring,
  trainer,
  usage,
)
from experiments import recognizer as recognizer_lib  # noqa: E402
from experiments.configs import float as float_configs  # noqa: E402
from experiments.configs.float import (  # noqa: E402
  asc_strings,
  espeak_grammar,
  fsdd_strings,
  speechocean,
)
from experiments.stages import HYPOTHESES  # noqa: E402
from s8bqat_jax import data, files  # noqa: E402
from s8bqat_jax.speech import significance  # noqa: E402

_TASKS = flags.DEFINE_list('tasks', ['digits'], 'Of a, b, digits, fsdd and c.')
_SIZES = flags.DEFINE_list('sizes', list(float_configs.SIZES), 'Model sizes.')
_PARTS = flags.DEFINE_list('parts', [], 'Only these folds, speakers or seeds.')
_ROOT = flags.DEFINE_string('runs', 'runs/float', 'Where the runs go.')
_PUBLISH = flags.DEFINE_bool(
  'publish',
  False,
  'Keep evaluations in experiments/results/evaluations: whoever has them, and '
  'the data, need not train to complete the curve.',
)
_DATA = flags.DEFINE_string('data', '../shared/data', 'Real corpora.')

_SPEAKERS = ('george', 'jackson', 'lucas', 'nicolas', 'theo', 'yweweler')


@dataclasses.dataclass(frozen=True)
class Task:
  """One task: its config and what its parts (folds, seeds) are.

  Attributes:
    module: whose get_config makes the config.
    part: the argument that varies, and its values. Parts of different
      speakers are pooled; seeds are not new evidence and are averaged.
    pooled: whether parts are disjoint evaluation sets.
    fixed: further arguments.
  """

  module: Any
  part: tuple[str, tuple[str, ...]]
  pooled: bool = True
  fixed: str = ''


TASKS = {
  'a': Task(espeak_grammar, ('seed', ('0', '1', '2')), pooled=False),
  'b': Task(asc_strings, ('fold', ('0', '1', '2', '3')), fixed='words=all'),
  'digits': Task(
    asc_strings, ('fold', ('0', '1', '2', '3')), fixed='words=digits'
  ),
  'fsdd': Task(fsdd_strings, ('speaker', _SPEAKERS)),
  'c': Task(speechocean, ('seed', ('0', '1', '2')), pooled=False),
}


def get_config(task: Task, size: str, part: str):
  """Returns the config of one cell."""
  text = f'size={size},{task.part[0]}={part}'
  text += f',{task.fixed}' if task.fixed else ''
  if task.module is not espeak_grammar:
    text += f',data={_DATA.value}'
  return task.module.get_config(text)


def run_cell(
  config, workdir: pathlib.Path
) -> tuple[dict, list[scoring.Hypothesis]]:
  """Returns a cell's summary and hypotheses; trains it if it is not done."""
  summary = workdir / 'eval.json'
  corpus = data.load(config.data.eval)
  mark = results.config_hash(config.to_dict())
  if summary.exists():
    found = json.loads(summary.read_text())
    why = ''
    if found['config_hash'] != mark:
      why = 'by another config'
    elif changed := trainer.changed_corpora(config, workdir):
      why = f'on other data ({changed[0]} has changed since)'
    if why:
      raise SystemExit(
        f'{workdir} was trained {why}: remove it, or give another --runs'
      )
    if found['fingerprint'] == corpus.fingerprint:
      return found, scoring.read_hypotheses(workdir / HYPOTHESES)
  start = time.perf_counter()
  trained = trainer.run(config, workdir)
  if trained.reason == 'interrupted':
    raise SystemExit('interrupted: run the same command again to go on')
  recognizer, params, _ = recognizer_lib.load(
    workdir / recognizer_lib.MODEL_FILE
  )
  hypotheses = sorted(scoring.Scorer(recognizer, corpus).hypotheses(params))
  scoring.write_hypotheses(workdir / HYPOTHESES, hypotheses)
  found = {
    **scoring.summarize(hypotheses),
    'parameters': sum(np.size(x) for x in jax.tree.leaves(params)),
    'steps': trainer.steps_in_all(config),
    'wall_seconds': time.perf_counter() - start,
    'config_hash': mark,
    'spec': corpus.spec,
    'fingerprint': corpus.fingerprint,
  }
  files.write_text(summary, json.dumps(found))
  return found, hypotheses


def _is_done(workdir: pathlib.Path, config) -> bool:
  path = workdir / 'eval.json'
  mark = results.config_hash(config.to_dict())
  return path.exists() and json.loads(path.read_text())['config_hash'] == mark


def outcome(
  name: str, size: str, part: str, asked: bool
) -> tuple[dict, list[scoring.Hypothesis]] | None:
  """Returns a cell's summary and hypotheses, trained only if asked for.

  Args:
    name: of the task.
    size: of the model.
    part: fold, speaker or seed.
    asked: whether to train what is neither done here nor published.
  """
  task = TASKS[name]
  config = get_config(task, size, part)
  workdir = pathlib.Path(_ROOT.value) / name / f'{size}-{part}'
  published = results.FOLDER / 'evaluations' / f'float_{name}'
  about = lambda: {
    **keys.anywhere(keys.about(config)),
    'evaluated': keys.fingerprint(config.data.eval),
  }
  done = _is_done(workdir, config)
  if not done and (kept := evaluations.find(published, workdir.name, about)):
    return evaluations.read(kept)
  if not (asked or done):
    return None
  print(f'== task {name}, {size}, {task.part[0]} {part}')
  found, hypotheses = run_cell(config, workdir)
  if _PUBLISH.value:
    path = evaluations.path_of(published, workdir.name, about())
    evaluations.write(path, about(), found, hypotheses)
  return found, hypotheses


def pool(task: Task, parts: Sequence[Sequence[scoring.Hypothesis]]) -> dict:
  """Error rate over the parts of one size, with its clustered interval."""
  counts = [scoring.count(p) for p in parts]
  if task.pooled:
    errors = np.concatenate([c.word_errors_N for c in counts])
    words = np.concatenate([c.words_N for c in counts])
    speakers = [h.speaker for p in parts for h in p]
    folds = [str(i) for i, p in enumerate(parts) for _ in p]
  else:
    errors = np.stack([c.word_errors_N for c in counts])
    words = counts[0].words_N
    speakers, folds = [h.speaker for h in parts[0]], None
  interval = significance.rate_interval(errors, words, speakers, folds)
  chars = sum(int(c.chars_N.sum()) for c in counts)
  return {
    'wer': 100 * float(np.atleast_2d(errors).sum(1).mean() / words.sum()),
    'ci95': [100 * interval.low, 100 * interval.high],
    'cer': 100 * sum(int(c.char_errors_N.sum()) for c in counts) / chars,
    'words': int(words.sum()),
    'speakers': len(set(speakers)),
  }


def plot(name: str, rows: Sequence[dict], path: pathlib.Path) -> None:
  """Draws WER against parameters: each part, and the pooled interval."""
  figure, axes = plt.subplots(figsize=(6, 4), layout='constrained')
  for row in rows:
    metrics = row['metrics']
    x, y = metrics['parameters'], metrics['wer']
    if row['part'] == 'all':
      low, high = metrics['ci95']
      axes.errorbar(x, y, [[y - low], [high - y]], fmt='o', color='tab:blue')
    else:
      axes.plot(x, y, '.', color='tab:gray', alpha=0.6)
  plots.log_scale(axes, 'x')
  plots.log_scale(axes, 'y')
  axes.set(title=f'task {name}, float')
  axes.set(xlabel='parameters', ylabel='WER, %')
  plots.save(figure, path)


def run_task(name: str) -> None:
  """Runs the asked cells of a task and writes its results file."""
  task = TASKS[name]
  rows: list[dict[str, Any]] = []
  not_run: list[str] = []
  corpora: dict[str, str] = {}
  for size in float_configs.SIZES:
    done = []
    for part in task.part[1]:
      asked = size in _SIZES.value and part in (_PARTS.value or task.part[1])
      cell = outcome(name, size, part, asked)
      if cell is None:
        not_run.append(f'{size}, {task.part[0]} {part}')
        continue
      found, hypotheses = cell
      corpora[found.pop('spec')] = found.pop('fingerprint')
      done.append(hypotheses)
      row = {'system': 'RNN-T', 'method': 'float', 'bits': 32, 'size': size}
      row |= {'part': part, 'split': 'eval', 'metrics': found}
      rows.append(row)
      print(results.table([row], _COLUMNS))
    if len(done) == len(task.part[1]):
      metrics = pool(task, done) | {
        key: rows[-1]['metrics'][key] for key in ('parameters', 'steps')
      }
      rows.append({**rows[-1], 'part': 'all', 'metrics': metrics})
  path = results.write(
    f'float_{name}',
    rows,
    corpus=[{'spec': k, 'fingerprint': v} for k, v in corpora.items()],
    not_run=not_run,
    command=results.command(without=results.SHARING),
  )
  plot(name, rows, path.with_suffix('.png'))
  print(results.table(rows, _COLUMNS))


_COLUMNS = {
  'size': '',
  'part': '',
  'parameters': ',',
  'wer': '.2f',
  'ci95': '.1f',
  'cer': '.2f',
  'words': ',',
  'speakers': '',
  'steps': '',
}


def main(argv):
  usage.no_arguments(argv)
  trainer.set_up()
  trainer.keep_compiled(pathlib.Path(_ROOT.value) / 'compiled')
  usage.check_known('tasks', _TASKS.value, TASKS)
  usage.check_known('sizes', _SIZES.value, float_configs.SIZES)
  for name in _TASKS.value:
    usage.check_known('parts', _PARTS.value, TASKS[name].part[1])
  for name in _TASKS.value:
    run_task(name)


if __name__ == '__main__':
  app.run(main)
