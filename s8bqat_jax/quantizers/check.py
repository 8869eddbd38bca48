"""`check_quantizer`: what every Quantizer promises, tried on given params."""

from __future__ import annotations

import pathlib
import tempfile
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from s8bqat_jax.artifacts import qtensor
from s8bqat_jax.artifacts.names import name_of
from s8bqat_jax.quantizers import tree as trees
from s8bqat_jax.quantizers import types


class _Outcome(NamedTuple):
  """All that a quantizer does in one step."""

  encoded: Any
  decoded: Any
  encoded_again: Any
  branches: types.Branches
  view_grads: Any
  penalty: jax.Array
  penalty_grads: Any
  metrics: dict[str, jax.Array]
  params: types.Params
  state: types.State
  moved: Any


def check_quantizer(
  quantizer: types.Quantizer,
  params: types.Params,
  *,
  ships_what_it_sees: bool = False,
  steps: tuple[int, ...] = (0, 1),
) -> None:
  """Verifies a Quantizer's contract on small params of any kind.

  What is verified, under `jit`: views, updated params and state keep
  structure, shapes and dtypes; penalty and metrics are finite scalars;
  gradients through views and penalty are finite, and every quantized weight
  gets one; `encode` yields valid QTensors, leaves other leaves as they are and
  gives decoded weights the same codes, before and after `after_update`; `vmap`
  over a stack of params does what a loop does; on a mesh of all devices
  param-shaped state is laid out as its weight and results are the same; state
  comes back from an orbax checkpoint bit for bit.

  Args:
    quantizer: the Quantizer.
    params: params of any kind, small, with at least one leaf that the
      quantizer encodes.
    ships_what_it_sees: the method is straight-through: its view `main` must be
      what `encode` ships, to the last bit.
    steps: training steps at which it is tried, in order.

  Returns:
    None: what holds is silent.

  Raises:
    AssertionError: naming the promise that is broken, and where.
  """
  params = jax.tree.map(jnp.asarray, params)
  state = quantizer.init(params)
  _require(isinstance(state, types.State), 'init must return a State')
  _check_forms(quantizer, params, state)
  compiled = jax.jit(lambda *args: _run(quantizer, *args))
  # As NumPy arrays: comparing is then free of a compilation for each shape.
  run = lambda *args: jax.device_get(compiled(*args))
  tried, carried_on = params, state
  for step in steps:
    outcome = run(tried, carried_on, _ctx(step, tried, carried_on))
    _check_encoded(tried, outcome)
    _check_views(outcome, ships_what_it_sees)
    _check_finite(outcome)
    tried, carried_on = outcome.params, outcome.state
  last = _ctx(steps[-1] + 1, tried, carried_on)
  _check_encoded(tried, run(tried, carried_on, last))
  _check_vmap(quantizer, run, params)
  _check_sharding(quantizer, run, params)
  _check_round_trip(carried_on)


def _run(
  quantizer: types.Quantizer,
  params: types.Params,
  state: types.State,
  ctx: types.Ctx,
) -> _Outcome:
  def probe(params, learned):
    # Any loss will do whose slope differs from weight to weight.
    seen = quantizer.views(params, state._replace(learned=learned), ctx)
    waves = [
      jnp.sum(jnp.sin(x.astype(jnp.float32))) for x in jax.tree.leaves(seen)
    ]
    return sum(waves), seen

  def penalty(params, learned):
    return quantizer.penalty(params, state._replace(learned=learned), ctx)

  trained = params, state.learned
  view_grads, branches = jax.grad(probe, (0, 1), has_aux=True)(*trained)
  value, penalty_grads = jax.value_and_grad(penalty, (0, 1))(*trained)
  encoded = quantizer.encode(params, state)
  decoded = qtensor.decode(encoded)
  again = quantizer.encode(decoded, state)
  metrics = quantizer.metrics(params, state)
  updated = quantizer.after_update(params, state, ctx)
  return _Outcome(
    encoded,
    decoded,
    again,
    branches,
    view_grads,
    value,
    penalty_grads,
    metrics,
    *updated,
  )


def _ctx(step: int, params: types.Params, state: types.State) -> types.Ctx:
  """That of a step whose averages are far behind."""
  # By a power of two: exact in every dtype, fused with what follows or not.
  lagging = lambda x: x * jnp.asarray(0.5, x.dtype) if _is_float(x) else x
  average = jax.tree.map(lagging, types.Average(params, state.learned))
  return types.Ctx(
    jnp.asarray(step, jnp.int32),
    jax.random.key(step),
    jnp.float32(0.01),
    average,
  )


def _is_float(x: Any) -> bool:
  return jnp.issubdtype(jnp.result_type(x), jnp.floating)


def _require(ok: Any, promise: str) -> None:
  if not ok:
    raise AssertionError(promise)


def _check_forms(
  quantizer: types.Quantizer, params: types.Params, state: types.State
) -> None:
  """Traces each function by itself, so that an error names it."""

  def trace(name, *args):
    try:
      return jax.eval_shape(getattr(quantizer, name), *args)
    except jax.errors.JAXTypeError as error:
      raise AssertionError(f'{name} does not run under jit: {error}') from error

  ctx = _ctx(0, params, state)
  _same_form(trace('init', params), state, 'init under jit')
  branches = trace('views', params, state, ctx)
  _require(branches, 'views must return at least one branch')
  for branch, seen in branches.items():
    _same_form(seen, params, f'views: branch {branch!r}')
  value = trace('penalty', params, state, ctx)
  _require(value.shape == (), f'penalty must be a scalar, got {value}')
  for name, value in trace('metrics', params, state).items():
    _require(value.shape == (), f'metric {name!r} must be a scalar')
  shipped = trace('encode', params, state)
  names = list(trees.named(params))
  found = list(trees.named(shipped))
  _require(found == names, f'encode: leaves {found}, expected {names}')
  _require(
    any(map(qtensor.is_qtensor, trees.named(shipped).values())),
    f'encode yields no QTensor among {names}',
  )
  _same_form(jax.eval_shape(qtensor.decode, shipped), params, 'decode(encode)')
  trace('after_update', params, state, ctx._replace(average=None))
  new, new_state, moved = trace('after_update', params, state, ctx)
  _same_form(new, params, 'after_update: params')
  _same_form(new_state, state, 'after_update: state')
  flags = trees.named(moved)
  for name, w in trees.named(params).items():
    flag: Any = flags.get(name)
    _require(
      flag is not None and flag.dtype == bool,
      f'after_update: moved must have booleans for {name}, got {flag}',
    )
    _require(
      _broadcasts(flag.shape, w.shape),
      f'after_update: moved for {name} has shape {flag.shape}, which does not '
      f'broadcast to {w.shape}',
    )


def _broadcasts(shape: tuple[int, ...], to: tuple[int, ...]) -> bool:
  try:
    return np.broadcast_shapes(shape, to) == to
  except ValueError:
    return False


def _same_form(new: Any, old: Any, what: str) -> None:
  """Structure, shapes and dtypes agree."""
  found, expected = jax.tree.structure(new), jax.tree.structure(old)
  _require(
    found == expected,  # type: ignore[operator]
    f'{what}: structure {found}, expected {expected}',
  )
  leaves = jax.tree_util.tree_leaves_with_path(old)
  for (path, a), b in zip(leaves, jax.tree.leaves(new)):
    form_a, form_b = (
      f'{jnp.result_type(x)}{list(jnp.shape(x))}' for x in (a, b)
    )
    _require(
      form_a == form_b,
      f'{what}: {name_of(path)} is {form_b}, expected {form_a}',
    )


def _equal(a: Any, b: Any) -> bool:
  return np.array_equal(np.asarray(a), np.asarray(b))


def _same_values(a: Any, b: Any, what: str, tolerance: float = 0.0) -> None:
  leaves = jax.tree_util.tree_leaves_with_path(a)
  for (path, x), y in zip(leaves, jax.tree.leaves(b), strict=True):
    same = _equal(x, y)
    if not same and jnp.issubdtype(x.dtype, jnp.floating):
      x, y = (np.asarray(v, np.float64) for v in (x, y))
      # Relative to the tensor, not to the element.
      same = bool(np.max(np.abs(x - y)) <= tolerance * np.max(np.abs(x)))
    _require(same, f'{what}: {jax.tree_util.keystr(path)} differs')


def _reordered(params: types.Params) -> float:
  """What sums in another order may differ by, in the coarsest dtype."""
  dtypes = [jnp.result_type(x) for x in jax.tree.leaves(params)]
  return max(
    float(jnp.finfo(d).eps) ** 0.5
    for d in dtypes
    if jnp.issubdtype(d, jnp.floating)
  )


def _finite(tree: Any) -> bool:
  return all(
    np.all(np.isfinite(x))
    for x in jax.tree.leaves(tree)
    if jnp.issubdtype(x.dtype, jnp.inexact)
  )


def _check_encoded(params: types.Params, outcome: _Outcome) -> None:
  weights = trees.named(params)
  for name, leaf in trees.named(outcome.encoded).items():
    if qtensor.is_qtensor(leaf):
      qtensor.check(leaf, f'encode: {name}')
    else:
      same = _equal(leaf, weights[name])
      _require(same, f'encode changes {name} without encoding it')
  _same_values(
    outcome.encoded_again,
    outcome.encoded,
    'encode of decoded weights against encode',
  )


def _check_views(outcome: _Outcome, ships_what_it_sees: bool) -> None:
  shipped = trees.named(outcome.encoded)
  if ships_what_it_sees:
    main = trees.named(outcome.branches[types.MAIN])
    for name, leaf in trees.named(outcome.decoded).items():
      _require(_equal(main[name], leaf), f'views: {name} is not what ships')
  grads, learned_grads = outcome.view_grads
  for name, grad in trees.named(grads).items():
    _require(_finite(grad), f'gradient through views is not finite in {name}')
    _require(
      not qtensor.is_qtensor(shipped[name]) or not grad.size or np.any(grad),
      f'no gradient reaches {name} through views',
    )
  _require(_finite(learned_grads), 'gradient of learned state is not finite')


def _check_finite(outcome: _Outcome) -> None:
  value = outcome.penalty
  _require(_finite(value), f'penalty must be finite, got {value}')
  _require(
    _finite(outcome.penalty_grads), 'gradient of the penalty is not finite'
  )
  for name, value in outcome.metrics.items():
    _require(_finite(value), f'metric {name!r} must be finite, got {value}')
  _require(
    _finite((outcome.params, outcome.state)),
    'after_update: a value is not finite',
  )


def _check_vmap(quantizer: types.Quantizer, run: Any, params: Any) -> None:
  twice = jax.tree.map(lambda x: x * jnp.asarray(2, x.dtype), params)
  started = [(p, quantizer.init(p)) for p in (params, twice)]
  members = [(*of, _ctx(1, *of)) for of in started]
  params_stack, state_stack = jax.tree.map(lambda *x: np.stack(x), *started)

  # Not under jit: fits that are compiled once for all are long to compile.
  states = jax.device_get(jax.vmap(quantizer.init)(params_stack))
  many = jax.vmap(
    lambda params, state: _run(quantizer, params, state, _ctx(1, params, state))
  )
  outcomes = jax.device_get(jax.jit(many)(params_stack, state_stack))
  for i, member in enumerate(members):
    for whole, own, what in (
      (states, member[1], 'init under vmap and outside'),
      (outcomes, run(*member), 'under vmap and outside'),
    ):
      own_slice = jax.tree.map(lambda x, i=i: x[i], whole)
      _same_values(own_slice, own, what, _reordered(params))


def _check_sharding(quantizer: types.Quantizer, run: Any, params: Any) -> None:
  mesh = jax.make_mesh(
    (jax.device_count(),), ('x',), axis_types=(jax.sharding.AxisType.Auto,)
  )

  def put(x):
    axes = [i for i, n in enumerate(x.shape) if n and n % mesh.size == 0]
    spec = ['x' if i in axes[:1] else None for i in range(x.ndim)]
    sharding = jax.sharding.PartitionSpec(*spec)
    return jax.device_put(x, jax.NamedSharding(mesh, sharding))

  spread = jax.tree.map(put, params)
  weights = trees.named(spread)

  def weight_shaped(params):
    """State leaves of a weight's shape, by that weight's name and their path.

    Only these, so that jit has no fit to compile that they do not need.
    """
    found = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(
      quantizer.init(params)
    ):
      for entry in path:
        name = str(getattr(entry, 'key', ''))
        if name in weights and leaf.shape == weights[name].shape:
          found[name, jax.tree_util.keystr(path)] = leaf
    return found

  for made in (weight_shaped(spread), jax.jit(weight_shaped)(spread)):
    for (name, path), leaf in made.items():
      layout = weights[name].sharding
      _require(
        leaf.sharding.is_equivalent_to(layout, leaf.ndim),
        f'state {path} is laid out over devices as {leaf.sharding}, its weight '
        f'as {layout}',
      )
  state = quantizer.init(params)
  _same_values(
    run(spread, state, _ctx(1, spread, state)),
    run(params, state, _ctx(1, params, state)),
    'on a mesh and on one device',
    _reordered(params),
  )


def _check_round_trip(state: types.State) -> None:
  if not jax.tree.leaves(state):
    return
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder) / 'state'
    with ocp.StandardCheckpointer() as checkpointer:
      checkpointer.save(path, state)
      checkpointer.wait_until_finished()
      restored = checkpointer.restore(path, jax.eval_shape(lambda: state))
  _same_form(restored, state, 'state from a checkpoint')
  _same_values(restored, state, 'state before and after a checkpoint')
