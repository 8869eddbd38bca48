"""Names for the values of a float function that survive retracing.

A range measured on the batch encoder must be found again by its streaming
step, so a value is named by where it comes from, not by where its equation
stands: the path of the last weight consumed, plus what was done since.

  params 'enc/kernel', 'enc/bias', x an input
  x @ kernel               enc/kernel:dot_general
  ... + bias               enc/bias:add
  sigmoid(...[:, :4])      enc/bias:add[0].logistic
  a scan's carry, inside   ~
  f * c, inside            mul(enc/bias:add[4].logistic,~)

Reshapes and broadcasts keep the name, and so do slices along any axis but the
last. Equal names share one range: the union. Within one body the same is not
done to the same value under one name with different constants (x + 0.1 and
x + 1000): all but the first such name end in a digest of these. Long names end
in a digest, but name their weight in full.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from s8bqat_jax.artifacts import names
from s8bqat_jax.integer import _jax_internals as internals

MAX_LENGTH = 96
CARRY = '~'
_INPUT = 'in'

PRODUCTS = ('dot_general', 'conv_general_dilated')
# Movement of one array's values alone, which changes no value's range.
MOVEMENT = frozenset(
  """reshape transpose broadcast_in_dim squeeze rev copy slice split unstack
  tile convert_element_type stop_gradient dynamic_slice gather
  reduce_precision optimization_barrier""".split()
)


class Key(NamedTuple):
  """A value's name; `const` when it follows from parameters alone."""

  name: str
  const: bool = False


def assign(
  graph: internals.Graph, ins: Sequence[Key]
) -> tuple[dict[internals.Var, Key], list[Key]]:
  """Names every value of a graph.

  Args:
    graph: straight-line equations.
    ins: names of its inputs.

  Returns:
    ({variable: key}, keys of the outputs). Bodies of scan, cond and while are
    named when they are entered: see `scan_body`.
  """
  env: dict[internals.Var, Key] = dict(zip(graph.ins, ins))
  constants = _Constants()

  def read(a):
    return Key('', True) if isinstance(a, internals.Lit) else env[a]

  for e in graph.eqns:
    args = [read(a) for a in e.ins]
    if e.name == 'scan':
      parts = internals.scan_parts(e)
      _, names = assign(parts.body, scan_body(parts, args))
    elif e.name == 'cond':
      branches = internals.cond_parts(e)
      per_branch = [assign(b, args[1:])[1] for b in branches]
      names = [
        _shorten(Key('|'.join(k.name for k in n))) for n in zip(*per_branch)
      ]
    elif e.name == 'while':
      names = while_outs(e, args)
    else:
      names = [_name(e, args, i) for i in range(len(e.outs))]
      names = constants.apart(e, names)
    env.update(zip(e.outs, names))
  return env, [read(a) for a in graph.outs]


class _Constants:
  """Which constants the values of one body are made with, as digests."""

  def __init__(self):
    self._of_const: dict[internals.Var, str] = {}
    self._of_name: dict[str, str] = {}

  def apart(self, e: internals.Eqn, names: list[Key]) -> list[Key]:
    """Returns names of an equation's results that no other constants have."""
    made_of = self._digest(e)
    if names[0].const:
      self._of_const.update(dict.fromkeys(e.outs, made_of))
      return names
    if e.name in MOVEMENT:
      return names
    return [
      n
      if self._of_name.setdefault(n.name, made_of) == made_of
      else _shorten(Key(f'{n.name}{{{made_of}}}'))
      for n in names
    ]

  def _digest(self, e: internals.Eqn) -> str:
    whole = e.name in PRODUCTS  # else arrays may be as long as the input
    parts = [str(e.params.get('y', ''))]  # of integer_pow
    for a in e.ins:
      if isinstance(a, internals.Var):
        parts.append(self._of_const.get(a, ''))
      elif not jnp.issubdtype(a.dtype, np.number):
        continue  # a random key
      elif whole or np.size(a.value) == 1:
        content = np.asarray(a.value, np.float64).tobytes()
        parts.append(hashlib.sha1(content).hexdigest())
    # A parameter's name tells it, whatever moves it.
    if not any(parts) or e.name in MOVEMENT:
      return ''.join(parts)
    return hashlib.sha1(repr((e.name, parts)).encode()).hexdigest()[:8]


def scan_body(parts: internals.Scan, args: Sequence[Key]) -> list[Key]:
  """Names the inputs of a scan's body; the carry is `~`, whatever it is."""
  c, n = parts.num_consts, parts.num_carry
  return [*args[:c], *[Key(CARRY)] * n, *args[c + n :]]


def while_inputs(
  e: internals.Eqn, args: Sequence[Key]
) -> tuple[list[Key], list[Key]]:
  """Names the inputs of a while loop's condition, and of its body."""
  _, skip, _, consts = internals.while_parts(e)
  first = skip + consts
  carried = [Key(CARRY)] * (len(args) - first)
  return [*args[:skip], *carried], [*args[skip:first], *carried]


def while_outs(e: internals.Eqn, args: Sequence[Key]) -> list[Key]:
  """Names the results of a while loop: those of its body."""
  return assign(internals.while_parts(e)[2], while_inputs(e, args)[1])[1]


def _name(e: internals.Eqn, args: Sequence[Key], index: int) -> Key:
  suffix = _suffix(e, index)
  if all(a.const for a in args):
    name = next((a.name for a in args if a.name), '')
    return _shorten(Key(name and name + _start(e, index), True))
  data = [a.name for a in args if not a.const]
  weights = [a.name for a in args if a.const and a.name]
  if weights:
    return _shorten(Key(f'{weights[-1]}:{e.name}{suffix}'))
  if e.name in MOVEMENT and len(data) == 1:
    return _shorten(Key(data[0] + suffix))
  if len(data) == 1:
    return _shorten(Key(f'{data[0]}.{e.name}{suffix}'))
  return _shorten(Key(f'{e.name}({",".join(data)}){suffix}'))


def _start(e: internals.Eqn, index: int) -> str:
  """Which part of a weight is taken, if not its beginning."""
  if e.name == 'slice':
    start = e.params['start_indices']
  elif e.name == 'split':
    start = (sum(e.params['sizes'][:index]),)
  else:
    return ''
  return f'[{",".join(map(str, start))}]' if any(start) else ''


def _suffix(e: internals.Eqn, index: int) -> str:
  """Which part of a value's last axis is taken: other axes don't count."""
  if e.name == 'slice':
    start, limit = e.params['start_indices'], e.params['limit_indices']
    whole = not start or (start[-1], limit[-1]) == (0, _shape(e.ins[0])[-1])
    return '' if whole else f'[{start[-1]}]'
  if e.name == 'split':
    last = e.params['axis'] == len(_shape(e.ins[0])) - 1
    return f'[{sum(e.params["sizes"][:index])}]' if last else ''
  return f'#{index}' if len(e.outs) > 1 else ''


def _shape(a: internals.Atom) -> tuple[int, ...]:
  return np.shape(a.value) if isinstance(a, internals.Lit) else a.shape


def _shorten(key: Key) -> Key:
  if len(key.name) <= MAX_LENGTH or key.const:
    return key
  digest = hashlib.sha1(key.name.encode()).hexdigest()[:8]
  whole = key.name.index(':') + 1 if weight_of(key.name) else 0
  kept = max(MAX_LENGTH // 2, whole)
  return Key(f'{key.name[:kept]}..{digest}')


def weight_of(name: str) -> str:
  """Returns the name of the parameter that a value's name begins with.

  Args:
    name: of a value; '' comes back for one that begins with none.
  """
  path, colon, rest = name.partition(':')
  of_input = path == _INPUT and rest[:1].isdigit()
  if not colon or '(' in path or of_input:
    return ''
  escaped = path.split('[')[0]
  return re.sub('%([0-9A-F]{2})', lambda m: chr(int(m[1], 16)), escaped)


def of_arguments(params: Any, inputs: Any, carry: bool) -> list[Key]:
  """Names what goes into a function.

  Args:
    params: pytree of its parameters; a QTensor is one leaf.
    inputs: its other arguments.
    carry: whether the first of these is a state, as for `calibrate`.

  Returns:
    One key per leaf, in order: the parameters' paths, `~` for a state, and
    'in:0', 'in:1', ... for the inputs.

  Raises:
    ValueError: if two parameters have the same name.
  """
  state = len(jax.tree.leaves(inputs[0])) if carry else 0
  count = len(jax.tree.leaves(inputs)) - state
  of_params = [Key(_escaped(n), True) for n in names.named(params)]
  of_inputs = [Key(f'{_INPUT}:{i}') for i in range(count)]
  return [*of_params, *[Key(CARRY)] * state, *of_inputs]


def _escaped(name: str) -> str:
  """A parameter's name without what names of values are made with."""
  return re.sub(r'[%:[(]', lambda m: f'%{ord(m[0]):02X}', name)
