"""The interpreter behind `lower` and `twin`.

It walks a float graph with the values of values.py and one rule per primitive
(rules.py, control.py). A rule decides; what it emits is integer primitives when
lowering, or, in the twin, the float equation itself followed by
a fake quantization wherever a rule asked for codes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from s8bqat_jax.integer import _jax_internals as internals
from s8bqat_jax.integer import elementwise, keys, patterns, requantize
from s8bqat_jax.integer import spec as spec_lib
from s8bqat_jax.integer.spec import Spec
from s8bqat_jax.integer.values import (
  Computed,
  Const,
  Exact,
  Fixed,
  Moved,
  Operand,
  QValue,
  Table,
  Value,
  Weight,
  squeeze_const,
)

# Beyond this a constant is an attention mask (see calibrate.MASK_LIMIT).
MASK_LIMIT = 1e6


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

  ranges: dict[str, tuple[float, float]]
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

  def fixed(self, shape, key: str, codes: Any, spec: Spec, live=None) -> QValue:
    return QValue(tuple(shape), key, Fixed(codes, spec), live=live)

  # Materializing them.

  def spec_of(self, v: QValue, bits: int) -> Spec:
    """The calibrated spec of a value, its clip included."""
    if v.key not in self.ranges:
      raise MissingRange(
        f'no range for {v.key!r}: it was not reached when calibrating; '
        'calibrate the same function (same parameters and same code path)'
      )
    spec = spec_lib.from_range(*self.ranges[v.key], bits, v.key)
    return _clipped(spec, v.clip)

  def natural(self, v: QValue, bits: int) -> Spec:
    """The spec that `v` takes when its consumer has no wish of its own."""
    match v.source:
      case Fixed(_, spec):
        if spec.bits == 16 and bits == 8:
          if v.key in self.ranges:
            return self.spec_of(v, 8)
          low, high = _scaled(spec, v.gain).interval
          return _clipped(spec_lib.from_range(low, high), v.clip)
        return _clipped(_scaled(spec, v.gain), v.clip)
      case Moved(parent, _):
        return _clipped(_scaled(self.natural(parent, bits), v.gain), v.clip)
      case Computed(own=own) if own is not None:
        return _clipped(_scaled(own(bits), v.gain), v.clip)
      case Computed(costly=True) if bits == 16:
        for spec in v.codes:
          return spec  # Already computed: take it as it is.
    return self.spec_of(v, bits)

  def operand(
    self, v: QValue, bits: int | None = None, spec: Spec | None = None
  ) -> Operand:
    """Materializes a value.

    Args:
      v: the value.
      bits: 8 or 16 where the consumer cares; None takes `prefers(v)`.
      spec: exactly this spec, where the consumer needs one.

    Returns:
      Codes (lowering) or fake-quantized reals (twin), and their spec.
    """
    target = spec or self.natural(v, bits or self.prefers(v))
    if self.twin:
      v.codes.setdefault(target, None)  # Later choices see it, as in lowering.
      return Operand(None, target, fake_quantize(v.live, target))
    return Operand(self._codes(v, target), target, None)

  def prefers(self, v: QValue) -> int:
    """The storage a value has by nature."""
    match v.source:
      case Fixed(_, spec):
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
      v.base = self.operand(v)
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
    if target in v.codes:
      return v.codes[target]
    inner = _scaled(target, 1 / v.gain)
    match v.source:
      case Fixed(codes, spec):
        result = self.rescale(codes, spec, inner, v.key)
      case Moved(parent, move):
        result = move(self._codes(parent, inner))
      case Table(base, fn):
        result = _lookup(base, fn, target, v.key)
      case Computed(emit, costly=True) if v.codes:
        first, codes = max(v.codes.items(), key=lambda kv: kv[0].bits)
        result = self.rescale(codes, first, target, v.key)
      case Computed(emit):
        result = emit(inner)
    v.codes[target] = result
    return result

  def rescale(self, codes: Any, source: Spec, target: Spec, site: str) -> Any:
    """Codes at another spec; the same ones where nothing changes."""
    if _close(source, target):
      return codes
    (fixed,) = requantize.to_multiplier(source.scale / target.scale)
    return elementwise.q_rescale(
      codes,
      fixed.multiplier,
      zero=source.zero,
      shift=fixed.shift,
      out=target.out,
      site=site,
    )


def _scaled(spec: Spec, gain: float) -> Spec:
  return spec._replace(scale=spec.scale * gain) if gain != 1.0 else spec


def _clipped(spec: Spec, clip: tuple[float, float]) -> Spec:
  low, high = (
    int(
      np.clip(np.floor(c / spec.scale + 0.5) + spec.zero, spec.low, spec.high)
    )
    if np.isfinite(c)
    else bound
    for c, bound in zip(clip, (spec.low, spec.high))
  )
  return spec._replace(low=low, high=high)


def _close(a: Spec, b: Spec) -> bool:
  """Equal up to rounding of the scale, and b no narrower than a."""
  return (
    abs(a.scale - b.scale) <= 1e-12 * a.scale
    and (a.zero, a.bits) == (b.zero, b.bits)
    and b.low <= a.low
    and b.high >= a.high
  )


def table_values(fn: Callable[[Any], Any], reals: np.ndarray) -> np.ndarray:
  """Evaluates an elementwise function of a base value, when lowering."""
  with jax.ensure_compile_time_eval(), np.errstate(all='ignore'):
    return np.asarray(fn(jnp.asarray(reals, jnp.float32)))


def _lookup(base: Operand, fn, target: Spec, site: str) -> Any:
  reals = base.spec.values()
  if base.spec.bits == 8:
    values = np.nan_to_num(table_values(fn, reals).astype(np.float64))
    table = target.quantize_np(values)
    return elementwise.q_lut(base.codes, table, out=target.out, site=site)
  # 513 knots, the last one just past the end of the 16-bit range.
  knots = (
    np.arange(elementwise.KNOTS) * 2.0**elementwise.KNOT_BITS - 2**15
  ) * base.spec.scale
  values = np.nan_to_num(table_values(fn, knots).astype(np.float64))
  fine = 2.0**elementwise.FRACTION_BITS
  scaled = np.rint((values / target.scale + target.zero) * fine)
  bound = 2.0**23 - 1
  table = np.clip(scaled, -bound, bound).astype(np.int32)
  return elementwise.q_lut(base.codes, table, out=target.out, site=site)


def fake_quantize(x: jax.Array, spec: Spec) -> jax.Array:
  """Rounds reals to the spec's grid; gradients pass inside its interval.

  Args:
    x: reals.
    spec: the grid. Masked-out entries of a masked spec pass unchanged.

  Returns:
    Reals on the grid, with a straight-through gradient.
  """
  return _fake_quantize(spec, x)


def _on_grid(spec: Spec, x):
  code = jnp.clip(
    jnp.floor(x / spec.scale + 0.5) + spec.zero, spec.low, spec.high
  )
  y = ((code - spec.zero) * spec.scale).astype(x.dtype)
  return jnp.where(x < -MASK_LIMIT, x, y) if spec.masked else y


@jax.custom_jvp
def _identity_grad(x, y, inside):
  del x, inside
  return y


@_identity_grad.defjvp
def _identity_jvp(primals, tangents):
  _, y, inside = primals
  return y, jnp.where(inside, tangents[0], 0)


def _fake_quantize(spec, x):
  y = jax.lax.stop_gradient(_on_grid(spec, x))
  low, high = spec.interval
  half = spec.scale / 2
  inside = (x >= low - half) & (x <= high + half)
  if spec.masked:
    inside = inside | (x < -MASK_LIMIT)
  return _identity_grad(x, y, inside)


def run(
  ctx: Context,
  graph: internals.Graph,
  names: Sequence[keys.Key],
  values: Sequence[Value],
) -> list[Value]:
  """Walks a graph.

  Args:
    ctx: of the lowering; its `named` is this graph's while it runs.
    graph: straight-line float equations.
    names: keys of the inputs.
    values: the inputs.

  Returns:
    The outputs.
  """
  named, _ = keys.assign(graph, names)
  env: dict[internals.Var, Value] = dict(zip(graph.ins, values))

  def read(a: internals.Atom) -> Value:
    if isinstance(a, internals.Lit):
      return Const(np.asarray(a.value))
    return env[a]

  rest = []
  for e in graph.eqns:
    args = [read(a) for a in e.ins if isinstance(a, internals.Lit) or a in env]
    known = len(args) == len(e.ins) and all(isinstance(a, Const) for a in args)
    if known and e.name not in ('scan', 'while', 'cond'):
      env.update(zip(e.outs, _fold(e, args)))
    else:
      rest.append(e)
  consts = {v: c.value for v, c in env.items() if isinstance(c, Const)}
  graph = patterns.match(graph._replace(eqns=tuple(rest)), consts)
  outer, ctx.named = ctx.named, named
  try:
    for e in graph.eqns:
      args = [read(a) for a in e.ins]
      outs = _apply(ctx, e, args)
      env.update(zip(e.outs, outs))
  finally:
    ctx.named = outer
  return [read(a) for a in graph.outs]


def _apply(ctx: Context, e: internals.Eqn, args: list[Value]) -> list[Value]:
  quantized = any(isinstance(a, QValue) for a in args)
  floats = any(v.is_float for v in e.outs)
  control = e.name in ('scan', 'while', 'cond')
  if not (quantized or floats or control):
    return [Exact(o) for o in e.bind(*(a.array for a in args))]
  rule = RULES.get(e.name)
  if rule is None:
    raise ctx.unsupported(e)
  outs = rule(ctx, e, *args)
  return outs if isinstance(outs, list) else [outs]


# Movements act on a quantized constant's integers, so it stays quantized.
_WEIGHT_MOVES = frozenset(
  """reshape transpose slice squeeze rev broadcast_in_dim expand_dims copy
  convert_element_type split stop_gradient""".split()
)


def _fold(e: internals.Eqn, args: list[Const]) -> list[Const]:
  """Evaluates an equation on constants."""
  name = next((a.name for a in args if a.name), '')
  lives: list[Any] = [None] * len(e.outs)
  if any(a.live is not None for a in args):
    lives = e.bind(*(a.array for a in args))
  values = _evaluate(e, [a.value for a in args])
  weights: list[Weight | None] = [None] * len(e.outs)
  w = args[0].weight if args else None
  if w is not None and e.name in _WEIGHT_MOVES:
    cast = e.name == 'convert_element_type'
    moved = [w.values] if cast else _evaluate(e, [w.values])
    scales = [w.scale] * len(e.outs)
    if np.ndim(w.scale) and not cast:
      full = np.broadcast_to(w.scale, w.values.shape)
      scales = [_uniform(s) for s in _evaluate(e, [full])]
    weights = [Weight(m, s) for m, s in zip(moved, scales)]
  elif w is not None and e.name in ('mul', 'div') and len(args) == 2:
    factor = squeeze_const(args[1].value)
    if factor.size == 1 and float(factor.reshape(-1)[0]) > 0:
      f = float(factor.reshape(-1)[0])
      weights = [
        Weight(w.values, w.scale * f if e.name == 'mul' else w.scale / f)
      ]
  return [Const(v, w, l, name) for v, w, l in zip(values, weights, lives)]


def _uniform(scale: np.ndarray) -> np.ndarray:
  """Cuts axes along which nothing changes to length 1; all of them to ()."""
  for axis in range(scale.ndim):
    first = np.take(scale, [0], axis)
    if np.all(scale == first):
      scale = first
  return scale.reshape(()) if scale.size == 1 else scale


def _evaluate(e: internals.Eqn, args: list[np.ndarray]) -> list[np.ndarray]:
  if e.name == 'broadcast_in_dim':
    shape = e.params['shape']
    ones = [1] * len(shape)
    for axis, size in zip(e.params['broadcast_dimensions'], args[0].shape):
      ones[axis] = size
    return [np.broadcast_to(args[0].reshape(ones), shape)]
  shape = e.outs[0].shape
  elementwise_like = len(e.outs) == 1 and all(
    a.shape in (shape, ()) for a in args
  )
  small = [squeeze_const(a) for a in args]
  shrinks = [a.shape != s.shape for a, s in zip(args, small)]
  with jax.ensure_compile_time_eval():
    if elementwise_like and any(shrinks) and e.name in ELEMENTWISE:
      common = np.broadcast_shapes(*(s.shape for s in small))
      small = [np.broadcast_to(s, common if s.ndim else ()) for s in small]
      value = np.asarray(e.bind(*map(jnp.asarray, small))[0])
      return [np.broadcast_to(value, shape)]
    return [np.asarray(o) for o in e.bind(*map(jnp.asarray, args))]


# Primitives that act on each element alone.
ELEMENTWISE = frozenset(
  """abs acos acosh add add_any asin asinh atan atan2 atanh cbrt ceil clamp
  convert_element_type cos cosh div eq erf erf_inv erfc exp exp2 expm1 floor ge
  gt integer_pow is_finite le log log1p logistic lt max min mul ne neg not and
  or pow reduce_precision rem round rsqrt select_n sign sin sinh sqrt square
  sub tan tanh""".split()
)
