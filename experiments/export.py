"""Writes a packed recognizer's streaming step for other runtimes.

  python -m experiments.export --model=FILE --format=tflite --out=FOLDER

Three files, one per function: encoder (states and features of one encoder
frame -> states and encoding), predictor (states and label -> states and
encoding), joint (both encodings -> 16-bit logits). All are integers: inputs
and outputs are codes, states included, in the order of the integer program;
`functions.json` beside the files says what they stand for (real = (code - zero)
* scale). The exported files are run once and
compared with our own program, per operation. Needs the export extra.
"""

from __future__ import annotations

import json
import pathlib

from absl import app, flags

from experiments import exporting, usage
from s8bqat_jax import files

_MODEL = flags.DEFINE_string(
  'model', None, 'A packed recognizer with 8-bit activations.', required=True
)
_FORMAT = flags.DEFINE_enum(
  'format', 'tflite', list(exporting.FORMATS), 'Of files.'
)
_OUT = flags.DEFINE_string('out', 'exported', 'Folder of the files.')


def main(argv) -> None:
  usage.start(argv)
  folder = pathlib.Path(_OUT.value)
  folder.mkdir(parents=True, exist_ok=True)
  told = {}
  for name, fn in exporting.functions(_MODEL.value).items():
    file = folder / f'{name}.{_FORMAT.value}'
    agreements = exporting.write(fn, _FORMAT.value, file)
    told[name] = {'file': file.name, **exporting.describe(fn)}
    print(f'{file}: {file.stat().st_size} bytes')
    for kind, found in agreements.items():
      print(
        f'  {kind:20} {100 * found.identical:6.2f}% of {found.codes} codes '
        f'equal ours, largest difference {found.largest}'
      )
  files.write_text(folder / 'functions.json', json.dumps(told, indent=1) + '\n')


if __name__ == '__main__':
  app.run(main)
