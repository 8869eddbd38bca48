"""Reading option values of a data spec, with errors that name the option."""

import math
from collections.abc import Mapping, Sequence


def integer(
  options: Mapping[str, str], name: str, default: int, least: int = 0
) -> int:
  """Returns the whole number `name`, at least `least`."""
  text = options.get(name)
  if text is None:
    return default
  try:
    value = int(text)
  except ValueError:
    raise ValueError(
      f'{name}={text!r}: expected a whole number, e.g. '
      f'{name}={max(default, least)}'
    ) from None
  if value < least:
    raise ValueError(f'{name}={value}: expected at least {least}')
  return value


def number(options: Mapping[str, str], name: str, default: float) -> float:
  """Returns the positive number `name`."""
  text = options.get(name)
  if text is None:
    return default
  try:
    value = float(text)
  except ValueError:
    raise ValueError(
      f'{name}={text!r}: expected a number, e.g. {name}={default}'
    ) from None
  if not 0 < value < float('inf'):
    raise ValueError(f'{name}={text}: expected a positive number')
  return value


def choice(
  options: Mapping[str, str], name: str, choices: Sequence[str], default: str
) -> str:
  """Returns the option `name`, one of `choices`."""
  value = options.get(name, default)
  if value not in choices:
    raise ValueError(f'{name}={value!r}: expected one of {", ".join(choices)}')
  return value


def names(options: Mapping[str, str], name: str) -> list[str] | None:
  """Returns the comma-separated list `name`, or None when absent."""
  if name not in options:
    return None
  values = [v.strip() for v in options[name].split(',')]
  if not all(values):
    raise ValueError(f'{name}={options[name]!r}: has an empty item')
  return values


def interval(
  options: Mapping[str, str], name: str, default: tuple[float, float] | None
) -> tuple[float, float] | None:
  """Returns `LO-HI` (or one number) as a pair; `clean` and absence as None."""
  text = options.get(name)
  if text is None:
    return default
  if text == 'clean':
    return None
  # A leading minus belongs to the number: -5-20 is from -5 to 20.
  cut = text.find('-', 1)
  try:
    low = float(text if cut < 0 else text[:cut])
    high = low if cut < 0 else float(text[cut + 1 :])
  except ValueError:
    raise ValueError(
      f'{name}={text!r}: expected LO-HI, e.g. {name}=3-7'
    ) from None
  if not (math.isfinite(low) and math.isfinite(high)):
    raise ValueError(f'{name}={text!r}: both ends must be finite numbers')
  if low > high:
    raise ValueError(f'{name}={text!r}: the lower end is above the upper end')
  return low, high
