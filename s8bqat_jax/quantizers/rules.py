"""Rules as data: which weights are quantized, to how many levels, with whom.

A list of rules is read from the top and the first one whose pattern matches a
weight's whole name decides, as in:

  (
    Rule('decoder/.*', None),  # stays in floating point
    Rule(r'(encoder/layer_\\d+)/.*', 'ternary', r'\\1'),  # a group per layer
    Rule('.*', 8),
  )
"""

from __future__ import annotations

import numbers
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from s8bqat_jax.quantizers import tree as trees

TERNARY = 'ternary'
Bits = int | str


class Rule(NamedTuple):
  """One line of the list.

  Attributes:
    pattern: regular expression that must match a weight's whole name.
    bits: 1..8, or 'ternary' for three levels; None leaves it in floating point.
    group: name of the group, which may refer to the pattern's own groups as in
      `re.Match.expand`; None makes each weight a group of its own. What a
      group shares is the member's business: a table, a random draw.
  """

  pattern: str
  bits: Bits | None
  group: str | None = None


class Spec(NamedTuple):
  """What the rules say about one weight.

  Attributes:
    name: the weight's name.
    levels: how many values its elements may take, 2..256.
    group: name of its group.
  """

  name: str
  levels: int
  group: str

  @property
  def bits(self) -> int:
    return (self.levels - 1).bit_length()


Rules = Bits | Rule | Sequence[Rule]


def levels_of(bits: Bits) -> int:
  """Returns the number of levels of `bits`: 2 ** bits, or 3 for 'ternary'.

  Args:
    bits: 1..8 or 'ternary'.

  Returns:
    2..256.

  Raises:
    ValueError: naming `bits`, if they are neither.
  """
  if bits == TERNARY:
    return 3
  whole = isinstance(bits, numbers.Integral) and not isinstance(bits, bool)
  if not whole or not 1 <= int(bits) <= 8:
    raise ValueError(f"bits must be 1..8 or 'ternary', got {bits!r}")
  return 2 ** int(bits)


def as_rules(rules: Rules) -> tuple[Rule, ...]:
  """Returns a tuple of checked rules; plain bits mean every weight.

  Args:
    rules: bits for every weight, one rule, or a sequence of rules.

  Returns:
    The rules.

  Raises:
    ValueError: naming bits or a pattern that make no sense.
  """
  given: Any = rules
  if isinstance(given, str) or not isinstance(given, Sequence):
    levels_of(given)
    given = (Rule('.*', given),)
  elif given and isinstance(given[0], str):
    given = (given,)  # one rule, not a sequence of them
  return tuple(map(_checked, given))


def _checked(rule: Any) -> Rule:
  """Returns a Rule, or a plain tuple as one."""
  try:
    rule = Rule(*rule)
    if rule.bits is not None:
      levels_of(rule.bits)
    check_pattern(rule.pattern)
    if not isinstance(rule.group, str | None):
      raise TypeError(f'group must be a string or None, got {rule.group!r}')
  except (TypeError, ValueError) as error:
    raise ValueError(
      f'{rule!r}: expected Rule(pattern, bits, group): {error}'
    ) from error
  return rule


def check_pattern(pattern: Any) -> None:
  """Raises ValueError for what is no regular expression of strings."""
  try:
    if isinstance(re.compile(pattern).pattern, str):
      return
    reason = 'it must be a string'
  except (TypeError, re.error) as error:
    reason = str(error)
  raise ValueError(f'{pattern!r} is no regular expression: {reason}')


def from_bits(bits: Mapping[str, Bits | None]) -> tuple[Rule, ...]:
  """Returns rules that give each named weight its own bits.

  Args:
    bits: {name: bits}; None leaves a weight in floating point.

  Returns:
    A rule for each name.
  """
  return as_rules([Rule(re.escape(name), n) for name, n in bits.items()])


def first_match(
  patterns: Sequence[str], names: Sequence[str]
) -> dict[str, tuple[int, re.Match[str]]]:
  """Finds the first pattern that matches each name whole.

  Args:
    patterns: regular expressions, in order.
    names: names to look up.

  Returns:
    {name: (index of its pattern, the match)} for the names that match one.

  Raises:
    ValueError: naming every pattern that decides about no name, and the names.
  """
  found = {}
  for name in names:
    for i, pattern in enumerate(patterns):
      match = re.fullmatch(pattern, name, re.DOTALL)
      if match:
        found[name] = i, match
        break
  used = {i for i, _ in found.values()}
  unused = [p for i, p in enumerate(patterns) if i not in used]
  if unused:
    listing = '\n  '.join(names) or '(none)'
    raise ValueError(
      f'unused rules {unused}: each matches no weight, or only weights that a '
      'rule before it takes. A pattern must match the whole name. The weights '
      '(floating point, two axes or more, neither bias nor gain) are:\n  '
      f'{listing}'
    )
  return found


def resolve(rules: Rules, params: Any) -> dict[str, Spec]:
  """Applies rules to a params tree.

  Args:
    rules: bits for every weight, or a sequence of rules.
    params: any params pytree.

  Returns:
    {name: Spec} of the weights to quantize, in the tree's order.

  Raises:
    ValueError: if a rule decides about no weight.
  """
  rules = as_rules(rules)
  names = list(trees.weights(params))
  specs = {}
  for name, (i, match) in first_match([r[0] for r in rules], names).items():
    bits = rules[i].bits
    if bits is not None:
      specs[name] = Spec(name, levels_of(bits), _group(rules[i], match))
  return specs


def _group(rule: Rule, match: re.Match[str]) -> str:
  if rule.group is None:
    return match.string
  try:
    return match.expand(rule.group)
  except (re.error, IndexError) as error:
    raise ValueError(
      f'{rule}: the group refers to what the pattern does not capture ({error})'
    ) from error
