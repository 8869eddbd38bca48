"""Orders a recognizer's N-best lists by language models, and compares these.

  python -m experiments.rescore --model=asr.safetensors \
    --dev=SPEC --data=SPEC --lm=large=A.safetensors,small=B.safetensors \
    --sentences='text:FILE?form=spoken' --runs=runs/rescore

The lists are searched once and kept in --runs. Each language model of --lm is
used alone and, with --sentences, mixed word by word with an n-gram of these;
the mixture's share fits the development transcripts best, and the weights of
language model and words have the fewest errors on the development lists. --data
is then scored once. Writes experiments/results/NAME.json: a row for each
system, and every language model compared with the first.
"""

from __future__ import annotations

import pathlib
from typing import Any

from absl import app, flags

from experiments import (
  language_model,
  nbest,
  rescoring,
  results,
  scoring,
  stage_cache,
  usage,
)
from experiments import recognizer as recognizer_lib
from s8bqat_jax.data import text as text_lib
from s8bqat_jax.speech import significance

_MODEL = flags.DEFINE_string('model', None, 'A packed recognizer.')
_LM = flags.DEFINE_list('lm', [], 'Packed language models: NAME=FILE, or FILE.')
_DEV = flags.DEFINE_string('dev', None, 'Data to tune on.')
_DATA = flags.DEFINE_string('data', None, 'Data to score.')
_SENTENCES = flags.DEFINE_string('sentences', None, 'Text spec of an n-gram.')
_ORDER = flags.DEFINE_integer('order', 4, 'Of the n-gram.')
_WORDS = flags.DEFINE_integer(
  'words',
  0,
  "The search spells so many of --sentences' words; 0: whatever it likes.",
)
_BEAM = flags.DEFINE_integer('beam', 16, 'Hypotheses kept.')
_BATCH = flags.DEFINE_integer('batch_size', 16, 'Utterances at a time.')
_RUNS = flags.DEFINE_string('runs', 'runs/rescore', 'Where lists are kept.')
_NAME = flags.DEFINE_string('name', 'rescore', 'Of the results file.')


def main(argv):
  usage.start(argv)
  files = nbest.named_files(_LM.value)
  if _WORDS.value and not _SENTENCES.value:
    raise app.UsageError('--words are those of --sentences: give both')
  text = text_lib.load_text(_SENTENCES.value) if _SENTENCES.value else None
  rescorer = rescoring.Rescorer(
    recognizer_lib.find_model(_MODEL.value, None),
    _DEV.value or '',
    _DATA.value or '',
    _RUNS.value,
    text=text,
    words=_WORDS.value,
    beam=_BEAM.value,
    batch_size=_BATCH.value,
  )
  dev, scored = rescorer.dev, rescorer.scored
  # Another copy may be searching.
  stage_cache.patiently(lambda: rescorer.searched)
  found: dict[str, list[scoring.Hypothesis]] = {
    'first of the list': rescorer.first_of_lists(),
    'oracle': rescorer.best_of_lists(),
  }
  about: dict[str, dict[str, Any]] = {name: {} for name in found}

  def add(name, language, **more):
    found[name], tuned = rescorer.chosen(language)
    about[name] = {**more, **tuned}

  count = None
  if text is not None:
    count = rescorer.counted(_ORDER.value)
    add(f'{_ORDER.value}-gram', count)
  for stem, file in files.items():
    made, params, _ = language_model.load(file)
    alone = rescorer.known(made, params)
    size = pathlib.Path(file).stat().st_size
    add(stem, alone, bytes=size)
    if count is not None:
      both = rescorer.mixed(alone, count)
      add(f'{stem}, {_ORDER.value}-gram', both, bytes=size)

  rows = [
    {
      'method': name,
      'split': 'eval',
      'metrics': {**scoring.summarize(hypotheses), **about[name]},
    }
    for name, hypotheses in found.items()
  ]
  errors = {name: scoring.count(of) for name, of in found.items()}
  base = next(iter(files), 'first of the list')
  results.write(
    _NAME.value,
    rows,
    comparisons=[
      _compare(base, name, errors, scored.speakers_N)
      for name in found
      # Nothing is relative to no errors.
      if name not in (base, 'oracle') and errors[base].word_errors_N.any()
    ],
    corpus={'spec': scored.spec, 'fingerprint': scored.fingerprint},
    tuned_on={'spec': dev.spec, 'fingerprint': dev.fingerprint},
    beam=_BEAM.value,
    words=_WORDS.value,
  )
  print(results.table(rows))


def _compare(a: str, b: str, errors, speakers_N) -> dict[str, Any]:
  found = significance.compare(
    errors[a].word_errors_N,
    errors[b].word_errors_N,
    errors[a].words_N,
    speakers_N,
  )
  return {
    'a': a,
    'b': b,
    'metric': 'wer',
    **scoring.relative(found),
  }


if __name__ == '__main__':
  flags.mark_flags_as_required(['model', 'dev', 'data'])
  app.run(main)
