import pytest

from s8bqat_jax import data
from s8bqat_jax.data import spec


def test_parse():
  parsed = spec.parse('manifest:/a/b.csv?split=dev&folds=4')
  assert parsed.scheme == 'manifest'
  assert parsed.rest == '/a/b.csv'
  assert parsed.options == {'split': 'dev', 'folds': '4'}
  assert spec.parse('librispeech:/d:dev-clean').rest == '/d:dev-clean'


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    ('espek:digits', "unknown scheme 'espek'. Did you mean 'espeak'"),
    ('digits', 'scheme:rest'),
    ('manifest:a.csv?split', 'option=value'),
    ('manifest:a.csv?=x', 'option=value'),
    ('manifest:a.csv?fold=1&fold=2', 'given twice'),
    ('manifest:a.csv?splt=dev', "no option 'splt'. Did you mean 'split'"),
    ('manifest:a.csv?x=1', 'split_column: '),
    ('manifest:no.csv', 'no.csv: no such file'),
    ('librispeech:dev-clean', 'librispeech:DIR:SUBSET'),
    ('tfds:librispeech', 'tfds:NAME:SPLIT'),
  ],
)
def test_errors_name_the_spec_and_what_is_wrong(text, message):
  with pytest.raises(ValueError) as e:
    data.load(text)
  assert message in str(e.value)
  assert text in str(e.value)


def test_every_scheme_says_what_its_options_mean():
  import importlib

  for module in spec.SCHEMES.values():
    options = importlib.import_module(module).OPTIONS
    assert options and all(options.values())


def test_plus_joins_corpora(words_manifest):
  one = f'manifest:{words_manifest}?speakers=a'
  two = f'manifest:{words_manifest}?speakers=b,c'
  both = data.load(f'{one} + {two}')
  assert len(both) == 45
  assert both.speakers_N[:15] == ['a'] * 15
  assert both.spec == f'{one} + {two}'
