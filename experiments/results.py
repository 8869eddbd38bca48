"""Results files: what every figure in README and BUILD_NOTES comes from.

One JSON file per experiment, written whole or not at all:

  name, command     what ran
  revision, dirty   the commit, and whether uncommitted code was in play
  machine           processor, cores, accelerator, versions
  corpus            {"spec", "fingerprint"} or a list of them
  rows              [{"system", "method", "bits", "seed", "split", "metrics"}]
  comparisons       [{"a", "b", "metric", "relative", "p", ...}]
  not_run           cells that were planned and not run
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import math
import os
import pathlib
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import jax

from experiments import copies
from s8bqat_jax import files

FOLDER = pathlib.Path(__file__).parent / 'results'
MODELS = pathlib.Path(__file__).parent / 'models'  # published ones
_FOLDERS = re.compile(r'(?<![\w./~-])/(?:[^\s/?*]+/)+')  # of this machine
# Flags that share a matrix's jobs among copies of a command: the results file
# is of all that are done, whoever did them.
SHARING = (
  *('max_hours', 'only', 'parts', 'seeds'),
  *('runs', 'float_runs', 'publish'),
)
# Wider registers, and products of int8 into int32 as one instruction.
_VECTORS = 'avx2', 'avx512f', 'avx_vnni', 'avx512_vnni', 'amx_int8'
_ROOT = pathlib.Path(__file__).parents[1]
_NOT_CODE = 'experiments/results', 'experiments/models', '*.md', '*.ipynb'


def machine() -> dict[str, Any]:
  """Returns what a reader must know of this machine to place a figure."""
  devices = jax.devices()
  return {
    'processor': _processor(),
    'instructions': _instructions(),
    'cores': len(copies.available_cores()),
    'accelerator': devices[0].device_kind
    if devices[0].platform != 'cpu'
    else None,
    'devices': len(devices),
    'python': platform.python_version(),
    'jax': jax.__version__,
  }


def command(without: Collection[str] = ()) -> str:
  """Returns the command line that is running, as one would type it.

  Args:
    without: flags that say who does what and when, and not what is done.
  """
  main = sys.modules['__main__']
  spec = getattr(main, '__spec__', None)
  start = ['python', '-m', spec.name] if spec else ['python', _relative()]
  kept, skip = [], False
  for word in sys.argv[1:]:
    name, equals, _ = word.partition('=')
    if skip and not word.startswith('-'):
      skip = False
    elif name.startswith('-') and name.lstrip('-') in without:
      skip = not equals  # its value is the next word, if it has one
    else:
      kept.append(_FOLDERS.sub('.../', word))
      skip = False
  return shlex.join([*start, *kept])


def config_hash(config: Mapping[str, Any]) -> str:
  """Returns a short hash of a JSON-able config: the name of a cached stage."""
  text = json.dumps(config, sort_keys=True, default=str)
  return hashlib.sha256(text.encode()).hexdigest()[:12]


def file_hash(path: pathlib.Path) -> str:
  """Returns the hash of a file's content."""
  return hashlib.sha256(path.read_bytes()).hexdigest()


def write(
  name: str,
  rows: Sequence[Mapping[str, Any]],
  *,
  comparisons: Sequence[Mapping[str, Any]] = (),
  corpus: Any = None,
  not_run: Sequence[Any] = (),
  folder: os.PathLike | str | None = None,
  **extra: Any,
) -> pathlib.Path:
  """Writes `<folder>/<name>.json`, replacing an older one in one step.

  Args:
    name: of the experiment.
    rows: one per measured cell.
    comparisons: between rows, over all seeds; `relative` and its `ci95` are in
      percent.
    corpus: {"spec", "fingerprint"} or a list of them.
    not_run: planned cells that were not run.
    folder: where to; None is `FOLDER`.
    **extra: any further JSON-able fields.

  Returns:
    The path written.
  """
  commit, dirty = revision()
  content = {
    'name': name,
    'command': command(),
    'revision': commit,
    'dirty': dirty,
    'machine': machine(),
    'corpus': corpus,
    **extra,
    'rows': list(rows),
    'comparisons': list(comparisons),
    'not_run': list(not_run),
  }
  path = pathlib.Path(folder or FOLDER) / f'{name}.json'
  path.parent.mkdir(parents=True, exist_ok=True)
  _warn_of_fewer(path, len(content['rows']))
  files.write_text(path, json.dumps(content, indent=1, allow_nan=False) + '\n')
  return path


def _warn_of_fewer(path: pathlib.Path, rows: int) -> None:
  before = 0
  with contextlib.suppress(OSError, ValueError, LookupError):
    before = len(json.loads(path.read_text())['rows'])
  if rows < before:
    print(f'{path} had {before} rows and now gets {rows}; `git` has the others')


def ratios(parameters: int, size: float) -> dict[str, float]:
  """Returns how often a file would fit into its weights alone, in floats.

  Args:
    parameters: how many weights.
    size: bytes of the file, everything in it.
  """
  return {
    'ratio_fp32': 4 * parameters / size,
    'ratio_fp16': 2 * parameters / size,
  }


def finite(x: float) -> float | None:
  """Returns what JSON can hold of a number: None if it is none."""
  return float(x) if math.isfinite(x) else None


def percent(ends: Iterable[float]) -> list[float | None]:
  """Returns the ends of an interval of fractions as a results file has them."""
  return [finite(100 * x) for x in ends]


def read(name: str, folder: os.PathLike | str | None = None) -> dict[str, Any]:
  """Returns the content of a results file."""
  path = pathlib.Path(folder or FOLDER) / f'{name}.json'
  return json.loads(path.read_text())


_ENDS = 'ci95', '_range'  # columns of intervals; other lists are lists


def table(
  rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str] | None = None
) -> str:
  """Returns rows as a Markdown table.

  Args:
    rows: flat or with a nested "metrics", whose entries count as columns.
    columns: {key: format spec}, in order; all keys as they are, if None.
  """
  flat = [{**row, **row.get('metrics', {})} for row in rows]
  for row in flat:
    row.pop('metrics', None)
  if columns is None:
    columns = {key: '' for row in flat for key in row}
  lines = [list(columns)]
  lines += [
    [_cell(row.get(k), f, k.endswith(_ENDS)) for k, f in columns.items()]
    for row in flat
  ]
  widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
  out = [
    '| ' + ' | '.join(c.ljust(w) for c, w in zip(line, widths)) + ' |'
    for line in lines
  ]
  out.insert(1, '|' + '|'.join('-' * (w + 2) for w in widths) + '|')
  return '\n'.join(out)


def _cell(value: Any, spec: str, interval: bool = False) -> str:
  if value is None:
    return ''
  if isinstance(value, list | tuple):
    return (' .. ' if interval else ', ').join(_cell(v, spec) for v in value)
  if isinstance(value, float):
    return format(value, spec or '.4g')
  return format(value, spec) if isinstance(value, int) else str(value)


def _relative() -> str:
  script = pathlib.Path(sys.argv[0]).resolve()
  return (
    str(script.relative_to(_ROOT))
    if script.is_relative_to(_ROOT)
    else script.name
  )


def _processor() -> str:
  try:
    lines = pathlib.Path('/proc/cpuinfo').read_text().splitlines()
    names = [x.split(':', 1)[1].strip() for x in lines if 'model name' in x]
    return names[0] if names else platform.processor()
  except OSError:
    return platform.processor()


def _instructions() -> list[str] | None:
  """The processor's vector instructions that integer speed depends on."""
  try:
    text = pathlib.Path('/proc/cpuinfo').read_text()
  except OSError:
    return None
  flags = next((x for x in text.splitlines() if x.startswith('flags')), '')
  return [name for name in _VECTORS if name in flags.split()]


@functools.cache
def revision() -> tuple[str | None, bool | None]:
  """Returns the commit, and whether code differs from it; None if unknown.

  As they were when first asked for, which `usage.start` does: a commit that
  is made while a process runs is not what it runs.
  """

  def git(*args):
    return subprocess.run(
      ['git', *args], cwd=_ROOT, capture_output=True, text=True, check=True
    ).stdout.strip()

  try:
    code = ['--', '.', *(f':!{name}' for name in _NOT_CODE)]
    changed = git('status', '--porcelain', '--untracked-files=no', *code)
    new = git('ls-files', '--others', '--exclude-standard', '*.py', '*.cc')
    return git('rev-parse', 'HEAD'), bool(changed or new)
  except (OSError, subprocess.CalledProcessError):
    return None, None
