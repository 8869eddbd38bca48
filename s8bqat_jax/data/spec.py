"""A data spec, `scheme:rest?option=value&option=value`, names a corpus.

Every scheme is one module of this package with `OPTIONS` (name -> what it
means) and `load(rest, options, spec) -> Corpus`; a new scheme is one file and
one line in `SCHEMES`.
"""

import dataclasses
import difflib
import importlib
from collections.abc import Collection, Mapping

from s8bqat_jax.data import corpus as corpus_lib

SCHEMES = {
  'espeak': 's8bqat_jax.data.espeak',
  'librispeech': 's8bqat_jax.data.librispeech',
  'manifest': 's8bqat_jax.data.manifest',
  'tfds': 's8bqat_jax.data.tfds',
}


@dataclasses.dataclass(frozen=True)
class Spec:
  """A parsed spec; `options` are still strings."""

  text: str
  scheme: str
  rest: str
  options: Mapping[str, str]

  def check_options(self, known: Mapping[str, str]) -> None:
    """Raises ValueError for an option that is not known.

    Args:
      known: what each option of the scheme means.
    """
    for name in self.options:
      if name not in known:
        listing = '\n'.join(f'  {k}: {v}' for k, v in known.items())
        raise ValueError(
          f'data spec {self.text!r}: {self.scheme}: has no option {name!r}.'
          f'{_did_you_mean(name, known)} Its options are\n{listing or "none"}'
        )


def _did_you_mean(word: str, words) -> str:
  close = difflib.get_close_matches(word, words, n=1)
  return f' Did you mean {close[0]!r}?' if close else ''


def parse(spec: str, schemes: Collection[str] = tuple(SCHEMES)) -> Spec:
  """Splits a spec string and checks the scheme.

  Args:
    spec: `scheme:rest` with options after `?`, separated by `&`.
    schemes: those that there are; of speech, unless others are named.

  Returns:
    Its parts.
  """
  body, _, query = spec.partition('?')
  scheme, colon, rest = body.partition(':')
  if not colon or scheme not in schemes:
    raise ValueError(
      f'data spec {spec!r}: unknown scheme {scheme!r}.'
      f'{_did_you_mean(scheme, schemes)} A spec is scheme:rest?option=value, '
      f'with a scheme of {", ".join(sorted(schemes))}.'
    )
  options: dict[str, str] = {}
  for item in query.split('&') if query else ():
    name, equals, value = item.partition('=')
    if not equals or not name:
      raise ValueError(
        f'data spec {spec!r}: expected option=value, got {item!r}.'
      )
    if name in options:
      raise ValueError(f'data spec {spec!r}: option {name!r} is given twice.')
    options[name] = value
  return Spec(spec, scheme, rest, options)


def load(spec: str) -> corpus_lib.Corpus:
  """Opens the corpus that a spec names; ` + ` between specs joins corpora.

  Args:
    spec: e.g. `espeak:digits?split=dev&hours=0.5` or `manifest:a.csv`.

  Returns:
    The corpus. Audio is read (or synthesized) as the scheme's module says.
  """
  parts = spec.split(' + ')
  if len(parts) > 1:
    return corpus_lib.concat([load(part.strip()) for part in parts])
  parsed = parse(spec.strip())
  module = importlib.import_module(SCHEMES[parsed.scheme])
  parsed.check_options(module.OPTIONS)
  try:
    return module.load(parsed.rest, parsed.options, parsed.text)
  except corpus_lib.BadUtteranceError:
    raise
  except ValueError as e:
    raise ValueError(f'data spec {spec!r}: {e}') from e
