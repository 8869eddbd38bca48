"""What a rule may ask of a lowering, and the registry of rules.

A rule decides; what it emits is integer primitives when lowering, or, in the
twin, the float equation itself, followed by a fake quantization wherever a rule
asked for codes.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from s8bqat_jax.integer import _jax_internals as internals
from s8bqat_jax.integer import elementwise, keys, requantize, tables
from s8bqat_jax.integer import spec as spec_lib
from s8bqat_jax.integer.spec import (
  MASK_LIMIT,
  TRUTH,
  Spec,
  fake_quantize,
)
from s8bqat_jax.integer.values import (
  Computed,
  Const,
  Fixed,
  Moved,
  Operand,
  QValue,
  Table,
  Value,
  Weight,
  squeeze_const,
)


class UnsupportedPrimitive(NotImplementedError):
  """A primitive without a rule for these operands."""


class MissingRange(KeyError):
  """A value that calibration never saw."""

  def __str__(self) -> str:
    return self.args[0]


Rule = Callable[..., Any]
RULES: dict[str, Rule] = {}


def register(*names: str) -> Callable[[Rule], Rule]:
  """Registers a rule for primitives by name.

  A rule is `rule(ctx, eqn, *values) -> value or list of values`; see
  rules.py for examples and `Context` for what it may ask.

  Args:
    *names: names of JAX primitives, e.g. 'tanh'.

  Returns:
    A decorator that registers and returns the rule.
  """

  def add(rule: Rule) -> Rule:
    for name in names:
      RULES[name] = rule
    return rule

  return add


@dataclasses.dataclass
class Context:
  """What rules may ask of a lowering.

  Attributes:
    ranges: {key: (low, high)}.
    twin: emit fake-quantized float instead of integers.
    named: keys of the variables of the graph being walked.
  """

  ranges: Mapping[str, Sequence[float]]
  twin: bool = False
  named: dict[internals.Var, keys.Key] = dataclasses.field(default_factory=dict)

  def unsupported(self, e: internals.Eqn, why: str = '') -> Exception:
    shapes = [getattr(a, 'shape', None) or () for a in e.ins]
    return UnsupportedPrimitive(
      f'no integer rule for {e.name!r} on shapes {shapes}'
      f'{": " + why if why else ""}, at {e.where()}. Register one with '
      f's8bqat_jax.integer.register({e.name!r}), or keep that part in float '
      'by lowering the function around it'
    )

  def astray(self, key: str) -> Exception:
    return ValueError(
      f'{key!r} has entries of {-MASK_LIMIT:g} and less, which are read as '
      'masks, and goes where integers have none: masks pass through movements, '
      'sums, maxima and functions of one value into a softmax; elsewhere fill '
      'with a value of the size of the data'
    )

  # Making values.

  def key(self, e: internals.Eqn, index: int = 0) -> str:
    return self.named[e.outs[index]].name

  def live(self, e: internals.Eqn, *ins: Any) -> Any:
    """The equation in float, for the twin; None when lowering."""
    if not self.twin:
      return None
    arrays = [
      i.live if isinstance(i, Operand | QValue) else i.array for i in ins
    ]
    return e.bind(*arrays)[0]

  def computed(
    self, e: internals.Eqn, ins: Sequence[Any], emit, **options: Any
  ) -> QValue:
    """A value that `emit(spec)` computes from materialized operands."""
    return QValue(
      e.outs[0].shape,
      self.key(e),
      Computed(emit, **options),
      live=self.live(e, *ins),
    )

  def moved(self, e: internals.Eqn, parent: QValue, *ins: Any, move) -> QValue:
    """A movement of `parent`; `ins` are all the equation's inputs."""
    return QValue(
      e.outs[0].shape,
      self.key(e),
      Moved(parent, move),
      live=self.live(e, *ins),
    )

  def fixed(
    self, shape, key: str, codes: Any, spec: Spec, live=None, parameter=False
  ) -> QValue:
    source = Fixed(codes, spec, parameter)
    return QValue(tuple(shape), key, source, live=live)

  # Materializing them.

  def range_spec(
    self, key: str, bits: int, firsts: Sequence[Value] = ()
  ) -> Spec:
    """The spec that covers the calibrated range of a name.

    Args:
      key: the name.
      bits: 8 or 16.
      firsts: what a loop starts from, to be covered as well.
    """
    low, high = self._range(key)
    for first in firsts:
      least, most = self._reach(first, (low, high))
      low, high = min(low, least), max(high, most)
    return spec_lib.from_range(low, high, bits, key)

  def start_spec(self, bits: int, firsts: Sequence[Value]) -> Spec:
    """The spec of what a loop only passes on: of what that starts from."""
    reaches = [self._reach(first, (0.0, 0.0)) for first in firsts]
    low, high = min(r[0] for r in reaches), max(r[1] for r in reaches)
    return spec_lib.from_range(low, high, bits, 'what a loop passes on')

  def _range(self, key: str) -> tuple[float, float]:
    """The calibrated range of a name."""
    if key in ('', keys.CARRY) and key not in self.ranges:
      raise MissingRange(
        'no range for what a loop or branch returns: it is a constant there; '
        'make it an input, or compute it outside'
      )
    if key not in self.ranges:
      raise MissingRange(
        f'no range for {key!r}: it was not reached when calibrating; '
        'calibrate the same function (same parameters and same code path)'
      )
    found = self.ranges[key]
    if np.shape(found) != (2,):
      raise TypeError(
        f'ranges[{key!r}] must be (low, high), as `calibrate` returns it, got '
        f'{found!r}'
      )
    low, high = found
    return low, high

  def _reach(
    self, first: Value, others: tuple[float, float]
  ) -> tuple[float, float]:
    """The range of what a loop starts from; `others` is that of the rest."""
    if isinstance(first, QValue):
      if first.key in self.ranges and first.key != keys.CARRY:
        return self._range(first.key)
      # What stands for a range reaches beyond it by as much as half a step.
      spec = self.natural(first, 16)
      least, most = spec.interval
      return min(least + spec.scale, 0.0), max(most - spec.scale, 0.0)
    if isinstance(first, Const):
      # What is larger than all data is a fill on either side.
      small = squeeze_const(first.value)
      data = small[(np.abs(small) < MASK_LIMIT) | (np.abs(small) <= others[1])]
      if data.size:
        return data.min(), data.max()
    return others

  def masked_spec(self, e: internals.Eqn) -> Callable[[int], Spec]:
    """The spec of a result some of which is masked out, at any width asked."""
    low, high = self.ranges.get(self.key(e), (0.0, 0.0))
    return functools.partial(spec_lib.masked_range, low, high)

  def constant_spec(self, c: Const, bits: int) -> Spec:
    """The spec that covers a constant."""
    data = squeeze_const(c.value)[~c.masked_out]
    low, high = (data.min(), data.max()) if data.size else (0.0, 0.0)
    if data.size < c.masked_out.size:
      return spec_lib.masked_range(low, high, bits)
    return spec_lib.from_range(low, high, bits, c.name)

  def is_masked(self, v: Value) -> bool:
    """Whether entries of a value may be masked out."""
    if not isinstance(v, QValue):
      return isinstance(v, Const) and bool(np.any(v.masked_out))
    if v.clip[0] > -MASK_LIMIT:
      return False
    match v.source:
      case Fixed(spec=spec):
        return spec.masked
      case Moved(parent, _):
        return self.is_masked(parent)
      case Table(base, fn):
        return tables.masks(base.spec, fn)
      case Computed(own=own):
        return own is not None and own(8).masked

  def is_truth(self, v: Value) -> bool:
    """Whether a value is nothing but zeros and ones."""
    if isinstance(v, Const):
      return not v.name and bool(
        np.all(np.isin(squeeze_const(v.value), (0, 1)))
      )
    if not isinstance(v, QValue) or v.gain != 1.0:
      return False
    match v.source:
      case Fixed(spec=spec):
        return spec == TRUTH
      case Moved(parent, _):
        return self.is_truth(parent)
      case Computed(own=own):
        return own is not None and own(8) == TRUTH
    return False

  def spec_of(self, v: QValue, bits: int) -> Spec:
    """The calibrated spec of a value, its clip included."""
    return self.range_spec(v.key, bits).clipped(*v.clip)

  def natural(self, v: QValue, bits: int) -> Spec:
    """The spec that `v` takes when its consumer has no wish of its own."""
    spec = self._of_source(v, bits)
    low, high = spec.interval
    if v.clip[0] > high or v.clip[1] < low:
      return self.spec_of(v, bits)  # Nothing of what it is a clip of is left.
    return spec.clipped(*v.clip)

  def _of_source(self, v: QValue, bits: int) -> Spec:
    """`natural`, but for the clip."""
    match v.source:
      case Fixed(spec=spec):
        if spec.bits == 16 and bits == 8:
          low, high = spec.scaled(v.gain).interval
          # A carry's name is that of every carry.
          if v.key in self.ranges and v.key != keys.CARRY:
            low, high = self.range_spec(v.key, 8).interval
          cover = spec_lib.masked_range if spec.masked else spec_lib.from_range
          return cover(low, high)
        return spec.scaled(v.gain)
      case Moved(parent, _):
        return self.natural(parent, bits).scaled(v.gain)
      case Table(base, fn) if tables.masks(base.spec, fn):
        return spec_lib.masked_range(*self.spec_of(v, 8).interval)
      case Computed(own=own) if own is not None:
        return own(bits).scaled(v.gain)
      case Computed(costly=True) if bits == 16:
        for spec in v.codes:
          return spec  # Already computed: take it as it is.
    return self.spec_of(v, bits)

  def operand(
    self,
    v: QValue,
    bits: int | None = None,
    spec: Spec | None = None,
    masks: bool = False,
  ) -> Operand:
    """Materializes a value.

    Args:
      v: the value.
      bits: 8 or 16 where the consumer cares; None takes `prefers(v)`.
      spec: exactly this spec, where the consumer needs one.
      masks: whether the consumer knows what to do with masked-out entries.

    Returns:
      Codes (lowering) or fake-quantized reals (twin), and their spec.

    Raises:
      ValueError: the value is masked and the consumer knows of no masks.
    """
    target = spec or self.natural(v, bits or self.prefers(v))
    if spec is None and target.masked and not masks:
      raise self.astray(v.key)
    if self.twin:
      if isinstance(table := _owner(v).source, Table):
        tables.check_masks(table.base.spec, table.fn, target, v.key)
      v.codes.setdefault(target, None)  # Later choices see it, as in lowering.
      as_given = _is_parameter(v) and target == self.natural(v, target.bits)
      live = v.live if as_given else fake_quantize(v.live, target)
      return Operand(None, target, live)
    return Operand(self._codes(v, target), target, None)

  def prefers(self, v: QValue) -> int:
    """The storage a value has by nature."""
    match v.source:
      case Fixed(spec=spec):
        return spec.bits
      case Moved(parent, _):
        return self.prefers(parent)
      case Computed(bits=bits):
        return bits
    return 8

  def view(self, v: QValue) -> tuple[Operand, Callable[[Any], Any]]:
    """Returns (base, fn): `v` as a function of one materialized value."""
    if isinstance(v.source, Table):
      return v.source.base, v.source.fn
    if v.root is not None and v.step is not None:
      (base, fn), step = self.view(v.root), v.step
      return base, lambda r: step(fn(r))
    if v.base is None:
      v.base = self.operand(v, masks=True)
    return v.base, lambda r: r

  def constant(self, c: Const, bits: int = 16) -> Operand:
    """A constant as an operand of an elementwise primitive."""
    small = squeeze_const(c.value)
    if np.abs(small).max(initial=0) >= MASK_LIMIT:
      raise ValueError(
        f'constant {c.name or "of the function"} reaches '
        f'{np.abs(small).max():.3g}: too large to be a quantized value'
      )
    if c.weight is not None and np.ndim(c.weight.scale) == 0:
      spec = Spec(float(c.weight.scale))
      codes = c.weight.values
    else:
      spec = spec_lib.from_range(small.min(), small.max(), bits, c.name)
      codes = spec.quantize_np(small)
    return Operand(None if self.twin else codes, spec, c.array)

  def weight(self, c: Const) -> Weight:
    """A constant as int8 weights; a float one is rounded to 8 bits."""
    if c.weight is not None:
      return c.weight
    value = np.asarray(c.value, np.float64)
    if not np.all(np.isfinite(value)):
      raise ValueError(f'weight {c.name!r} is not finite')
    spec = spec_lib.symmetric(np.abs(value).max(initial=0))
    return Weight(spec.quantize_np(value), np.asarray(spec.scale))

  def _codes(self, v: QValue, target: Spec) -> Any:
    # Whoever names a spec has not seen what `v` is clipped to.
    target = target.clipped(*v.clip)
    if target in v.codes:
      return v.codes[target]
    inner = target.scaled(1 / v.gain)
    match v.source:
      case Fixed(codes=codes, spec=spec):
        result = self.rescale(codes, spec, inner, v.key)
      case Moved(parent, move):
        result = move(self._codes(parent, inner))
      case Table(base, fn):
        result = tables.lookup(base, fn, target, v.key)
      case Computed(emit, costly=True) if v.codes:
        first, codes = max(v.codes.items(), key=lambda kv: kv[0].bits)
        result = self.rescale(codes, first, target, v.key)
      case Computed(emit):
        result = emit(inner)
    v.codes[target] = result
    return result

  def rescale(self, codes: Any, source: Spec, target: Spec, site: str) -> Any:
    """Codes at another spec; the same ones where nothing changes."""
    if target.holds(source):
      return codes
    (fixed,) = requantize.to_multiplier(source.scale / target.scale)
    moved = elementwise.q_rescale(
      codes,
      fixed.multiplier,
      zero=source.zero,
      shift=fixed.shift,
      out=target.out,
      site=site,
    )
    return (
      self.mask(moved, codes == source.mask_code, target)
      if source.masked
      else moved
    )

  def mask(self, codes: Any, where: Any, spec: Spec) -> Any:
    """Codes with masked-out entries: the lowest, if `spec` has no masks."""
    fill = spec.mask_code if spec.masked else spec.low
    return jnp.where(where, jnp.asarray(fill, spec.dtype), codes)


def _owner(v: QValue) -> QValue:
  """What a value is a movement of; itself if it is none."""
  while isinstance(v.source, Moved):
    v = v.source.parent
  return v


def _is_parameter(v: QValue) -> bool:
  """Whether a value is (a movement of) an indexed parameter."""
  source = _owner(v).source
  return isinstance(source, Fixed) and source.parameter
