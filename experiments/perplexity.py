"""Scores packed language models on one text, and compares them.

  python -m experiments.perplexity --data='text:FILE?part=eval' \
    --lm=large=A.safetensors,small=B.safetensors

Perplexity is per word, ends of lines counted, whatever the units of a model.
Every model is compared with the first of --lm: the ratio of perplexities, with
an interval by a bootstrap over the text's articles and lines. With --name the
table is written to experiments/results/NAME.json.
"""

from __future__ import annotations

from absl import app, flags

from experiments import language_model, nbest, results, usage
from s8bqat_jax.data import text as text_lib

_LM = flags.DEFINE_list(
  'lm', None, 'Packed language models: NAME=FILE, or FILE.', required=True
)
_DATA = flags.DEFINE_string('data', None, 'Text spec to score.', required=True)
_LENGTH = flags.DEFINE_integer(
  'length', 128, 'Tokens seen at once; no more than models were trained on.'
)
_CONTEXT = flags.DEFINE_integer(
  'context', 64, 'How many of them only serve to predict the others.'
)
_NAME = flags.DEFINE_string('name', '', 'Of the results file.')
_COLUMNS = {
  'method': '',
  'perplexity': '.2f',
  'bytes': ',',
  'parameters': ',',
  'words': ',',
  'unknown_words': ',',
}
_COMPARED = {'a': '', 'b': '', 'relative': '.1f', 'ci95': '.1f'}


def main(argv):
  usage.start(argv)
  files = nbest.named_files(_LM.value)
  if not files:
    raise app.UsageError('--lm: name at least one language model')
  corpus = text_lib.load_text(_DATA.value)
  found = {
    name: language_model.score(path, corpus, _LENGTH.value, _CONTEXT.value)
    for name, path in files.items()
  }
  rows = [
    {'method': name, 'split': 'eval', 'metrics': metrics}
    for name, (metrics, _) in found.items()
  ]
  base, *others = found
  compared = [
    {
      'a': base,
      'b': name,
      'metric': 'perplexity',
      **language_model.relative_perplexity(
        found[base][1][None], found[name][1][None], corpus
      ),
    }
    for name in others
  ]
  print(results.table(rows, _COLUMNS))
  if compared:
    print(results.table(compared, _COMPARED))
  if _NAME.value:
    results.write(
      _NAME.value,
      rows,
      comparisons=compared,
      corpus={'spec': corpus.spec, 'fingerprint': corpus.fingerprint},
    )


if __name__ == '__main__':
  app.run(main)
