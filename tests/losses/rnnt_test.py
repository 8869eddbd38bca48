"""RNN-T loss against path enumeration, exact DP and finite differences."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from s8bqat_jax.losses import rnnt


def _log_softmax(x):
  x = np.asarray(x, np.float64)
  return x - np.logaddexp.reduce(x, axis=-1, keepdims=True)


def _nll_by_enumeration(logits_TxU1xV, labels, blank=0):
  """Sums the probability of every path, one by one."""
  log_p = _log_softmax(logits_TxU1xV)
  T, U = len(log_p), len(labels)
  total = -np.inf
  # A path is the choice of which of the first T - 1 + U steps are labels;
  # the last step is the blank that leaves the last frame.
  for label_steps in itertools.combinations(range(T - 1 + U), U):
    t = u = 0
    score = 0.0
    for step in range(T - 1 + U):
      if step in label_steps:
        score += log_p[t, u, labels[u]]
        u += 1
      else:
        score += log_p[t, u, blank]
        t += 1
    total = np.logaddexp(total, score + log_p[t, u, blank])
  return -total


def _nll_by_dp(logits_TxU1xV, labels, blank=0):
  log_p = _log_softmax(logits_TxU1xV)
  T, U = len(log_p), len(labels)
  alpha = np.full([T, U + 1], -np.inf)
  alpha[0, 0] = 0.0
  for t, u in itertools.product(range(T), range(U + 1)):
    if t:
      alpha[t, u] = alpha[t - 1, u] + log_p[t - 1, u, blank]
    if u:
      emit = alpha[t, u - 1] + log_p[t, u - 1, labels[u - 1]]
      alpha[t, u] = np.logaddexp(alpha[t, u], emit)
  return -(alpha[-1, -1] + log_p[-1, -1, blank])


def _joint(params, enc, pred):
  return jnp.tanh(enc @ params['enc'] + pred @ params['pred']) @ params['out']


def _problem(B=3, T=7, U=4, V=6, D=5, E=3, H=4, seed=0, blank=0):
  rng = np.random.default_rng(seed)
  params = {
    'enc': rng.normal(size=(D, H)),
    'pred': rng.normal(size=(E, H)),
    'out': rng.normal(size=(H, V)),
  }
  params = jax.tree.map(lambda x: x.astype(np.float32), params)
  enc = rng.normal(size=(B, T, D)).astype(np.float32)
  pred = rng.normal(size=(B, U + 1, E)).astype(np.float32)
  labels = (blank + rng.integers(1, V, size=(B, U))) % V
  enc_lengths = np.array([T, *rng.integers(1, T + 1, size=B - 1)])
  label_lengths = np.array([U, *rng.integers(0, U + 1, size=B - 1)])
  return params, enc, pred, labels, enc_lengths, label_lengths


def _dense(params, enc, pred, *rest, blank=0):
  logits = _joint(params, enc[:, :, None], pred[:, None])
  return rnnt.rnnt_loss_from_logits(logits, *rest, blank=blank)


def _chunked(params, enc, pred, *rest, blank=0):
  joint = functools.partial(_joint, params)
  return rnnt.rnnt_loss(joint, enc, pred, *rest, blank=blank)


@functools.partial(jax.jit, static_argnames=['loss'])
def _nll_and_grads(loss, params, enc, pred, *rest):
  def total(*inputs):
    nll_B = loss(*inputs, *rest)
    return nll_B.sum(), nll_B

  grads, nll_B = jax.grad(total, argnums=(0, 1, 2), has_aux=True)(
    params, enc, pred
  )
  return nll_B, grads


def _reference(params, enc, pred, labels, enc_lengths, label_lengths, oracle):
  wide = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
  hidden = enc[:, :, None] @ wide['enc'] + pred[:, None] @ wide['pred']
  logits = np.tanh(hidden) @ wide['out']
  return [
    oracle(logits[b, :t, : u + 1], labels[b, :u])
    for b, (t, u) in enumerate(zip(enc_lengths, label_lengths, strict=True))
  ]


@pytest.mark.parametrize('loss', [_dense, _chunked])
@pytest.mark.parametrize('seed', range(3))
def test_equals_path_enumeration(loss, seed):
  problem = _problem(B=4, T=5, U=4, seed=seed)
  nll_B, _ = _nll_and_grads(loss, *problem)
  expected = _reference(*problem, _nll_by_enumeration)
  np.testing.assert_allclose(nll_B, expected, rtol=2e-6)


@pytest.mark.parametrize('loss', [_dense, _chunked])
def test_equals_exact_dp_on_longer_input(loss):
  problem = _problem(B=4, T=60, U=25, seed=1)
  nll_B, _ = _nll_and_grads(loss, *problem)
  np.testing.assert_allclose(nll_B, _reference(*problem, _nll_by_dp), rtol=2e-6)


@pytest.mark.parametrize('blank', [2, 5])
def test_any_blank(blank):
  logits = np.random.default_rng(0).normal(size=(1, 4, 3, 6))
  labels = np.array([[0, 3]])
  nll_B = rnnt.rnnt_loss_from_logits(
    jnp.asarray(logits, jnp.float32),
    jnp.asarray(labels),
    jnp.array([4]),
    jnp.array([2]),
    blank=blank,
  )
  expected = _nll_by_enumeration(logits[0], labels[0], blank)
  np.testing.assert_allclose(nll_B, [expected], rtol=2e-6)


@pytest.mark.parametrize('max_elements', [1, 200, 10**9])
def test_gradients_do_not_depend_on_the_chunks(monkeypatch, max_elements):
  problem = _problem(U=6)
  expected = _nll_and_grads(_dense, *problem)
  monkeypatch.setattr(rnnt, '_CHUNK_ELEMENTS', max_elements)
  # A new function, because jit remembers the old one's chunks.
  actual = _nll_and_grads(lambda *args: _chunked(*args), *problem)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6),
    actual,
    expected,
  )


@pytest.mark.parametrize('loss', [_dense, _chunked])
def test_gradients_equal_float64_finite_differences(loss):
  with jax.enable_x64(True):
    problem = _problem(B=2, T=4, U=3)
    widen = lambda x: jnp.asarray(x, jnp.float64)
    inputs = jax.tree.map(widen, problem[:3])
    total = jax.jit(lambda *inputs: loss(*inputs, *problem[3:]).sum())
    grads = jax.jit(jax.grad(total, argnums=(0, 1, 2)))(*inputs)
    rng = np.random.default_rng(0)
    for _ in range(8):
      direction = jax.tree.map(lambda x: rng.normal(size=x.shape), inputs)
      above = jax.tree.map(lambda x, v: x + 1e-5 * v, inputs, direction)
      below = jax.tree.map(lambda x, v: x - 1e-5 * v, inputs, direction)
      numeric = (total(*above) - total(*below)) / 2e-5
      products = jax.tree.map(lambda g, v: jnp.sum(g * v), grads, direction)
      exact = sum(jax.tree.leaves(products))
      np.testing.assert_allclose(exact, numeric, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize('loss', [_dense, _chunked])
def test_hessian_vector_product(loss):
  """jvp of grad works, and is right where two arcs tie exactly."""
  with jax.enable_x64(True):
    problem = _problem(B=1, T=3, U=2)
    params, enc, pred = jax.tree.map(
      lambda x: jnp.zeros(x.shape, jnp.float64), problem[:3]
    )
    rng = np.random.default_rng(0)
    draw = lambda x: jnp.asarray(rng.normal(size=x.shape))
    # All logits are equal at the zero output layer: every sum is a tie.
    params = {**jax.tree.map(draw, params), 'out': params['out']}
    enc, pred = draw(enc), draw(pred)
    grad = jax.jit(jax.grad(lambda p: loss(p, enc, pred, *problem[3:]).sum()))
    direction = jax.tree.map(draw, params)
    _, product = jax.jit(lambda d: jax.jvp(grad, (params,), (d,)))(direction)
    step = 1e-5
    move = lambda d: jax.tree.map(lambda x, v: x + d * v, params, direction)
    numeric = jax.tree.map(
      lambda a, b: (a - b) / (2 * step), grad(move(step)), grad(move(-step))
    )
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7),
      product,
      numeric,
    )


@pytest.mark.parametrize('loss', [_dense, _chunked])
def test_padding_changes_nothing(loss):
  params, enc, pred, labels, enc_lengths, label_lengths = _problem()
  short = (params, enc, pred, labels, enc_lengths, label_lengths)
  pad = lambda x, n, value: np.pad(
    x,
    [(0, 0), (0, n)] + [(0, 0)] * (x.ndim - 2),
    constant_values=value,
  )
  long = (
    params,
    pad(enc, 5, 1e3),
    pad(pred, 3, -1e3),
    pad(labels, 3, -7),
    enc_lengths,
    label_lengths,
  )
  nll_short, (gp, ge, gq) = _nll_and_grads(loss, *short)
  nll_long, (hp, he, hq) = _nll_and_grads(loss, *long)
  np.testing.assert_allclose(nll_short, nll_long, rtol=1e-6)
  np.testing.assert_array_equal(he[:, enc.shape[1] :], 0.0)
  np.testing.assert_array_equal(hq[:, pred.shape[1] :], 0.0)
  T, U1 = enc.shape[1], pred.shape[1]
  close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
  jax.tree.map(close, gp, hp)
  close(ge, he[:, :T])
  close(gq, hq[:, :U1])
  # Nothing beyond a row's own lengths receives a gradient.
  for b, (t, u) in enumerate(zip(enc_lengths, label_lengths, strict=True)):
    np.testing.assert_array_equal(ge[b, t:], 0.0)
    np.testing.assert_array_equal(gq[b, u + 1 :], 0.0)


def _with_row_0(problem, *, label=None, enc_length=None, label_length=None):
  """The problem with row 0 made impossible."""
  params, enc, pred, labels, enc_lengths, label_lengths = problem
  labels, enc_lengths, label_lengths = (
    x.copy() for x in (labels, enc_lengths, label_lengths)
  )
  if label is not None:
    labels[0, 1] = label
  if enc_length is not None:
    enc_lengths[0] = enc_length
  if label_length is not None:
    label_lengths[0] = label_length
  return params, enc, pred, labels, enc_lengths, label_lengths


def _check_row_0_alone_is_impossible(loss, problem, changed):
  """The other rows lose what they lost; returns the loss of row 0."""
  alone = problem[0], *(x[1:] for x in problem[1:])
  nll_B, grads = _nll_and_grads(loss, *changed)
  want_B, wants = _nll_and_grads(loss, *alone)
  np.testing.assert_allclose(nll_B[1:], want_B, rtol=1e-6)
  for got, want in zip(grads[1:], wants[1:]):
    assert np.isfinite(got).all()
    np.testing.assert_allclose(got[1:], want, rtol=1e-5, atol=1e-6)
  assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))
  return nll_B[0]


@pytest.mark.parametrize('loss', [_dense, _chunked])
@pytest.mark.parametrize('label', [-1, 6, 1000])
def test_a_label_outside_the_vocabulary_is_impossible(loss, label):
  problem = _problem()
  changed = _with_row_0(problem, label=label)
  assert _check_row_0_alone_is_impossible(loss, problem, changed) > 1e19


@pytest.mark.parametrize('loss', [_dense, _chunked])
@pytest.mark.parametrize(
  'length',
  [
    {'enc_length': 8},
    {'enc_length': -1},
    {'label_length': 5},
    {'label_length': -2},
    {'enc_length': 0, 'label_length': 5},
  ],
)
def test_a_length_outside_its_axis_makes_the_loss_nan(loss, length):
  problem = _problem()
  changed = _with_row_0(problem, **length)
  nll = _check_row_0_alone_is_impossible(loss, problem, changed)
  assert np.isnan(nll)


def test_states_that_no_transcript_reaches_are_not_computed(monkeypatch):
  """A joint that would say NaN there is not asked."""
  monkeypatch.setattr(rnnt, '_CHUNK_ELEMENTS', 1)
  params, enc, pred, labels, enc_lengths, label_lengths = _problem(U=6)
  label_lengths = np.minimum(label_lengths, 3)
  reached = pred.copy()
  pred[:, 4:] = np.nan
  args = labels, enc_lengths, label_lengths
  nll_B, grads = _nll_and_grads(
    lambda *args: _chunked(*args), params, enc, pred, *args
  )
  expected = _nll_and_grads(_dense, params, enc, reached, *args)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6),
    (nll_B, grads),
    expected,
  )


def test_permuting_the_batch_permutes_the_loss():
  params, *rows = _problem(B=4)
  order = np.array([2, 0, 3, 1])
  nll_B, (_, enc_grad, _) = _nll_and_grads(_chunked, params, *rows)
  moved_B, (_, moved_grad, _) = _nll_and_grads(
    _chunked, params, *(x[order] for x in rows)
  )
  np.testing.assert_allclose(moved_B, nll_B[order], rtol=1e-6)
  np.testing.assert_allclose(moved_grad, enc_grad[order], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('loss', [_dense, _chunked])
@pytest.mark.parametrize(['T', 'U'], [(1, 0), (1, 3), (5, 0)])
def test_one_frame_or_no_labels(loss, T, U):
  problem = _problem(B=2, T=T, U=U)
  nll_B, grads = _nll_and_grads(loss, *problem)
  expected = _reference(*problem, _nll_by_enumeration)
  np.testing.assert_allclose(nll_B, expected, rtol=2e-6)
  assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))


@pytest.mark.parametrize('loss', [_dense, _chunked])
def test_rows_without_frames(loss):
  params, enc, pred, labels, _, _ = _problem(B=3)
  nll_B, grads = _nll_and_grads(
    loss, params, enc, pred, labels, np.array([0, 0, 2]), np.array([0, 2, 2])
  )
  assert nll_B[0] == 0.0 and nll_B[1] == np.inf and np.isfinite(nll_B[2])
  assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))
  np.testing.assert_array_equal(grads[1][:2], 0.0)
  assert np.abs(grads[1][2, :2]).max() > 0


@pytest.mark.parametrize('loss', [_dense, _chunked])
@pytest.mark.parametrize('U', [0, 2])
def test_a_batch_without_frames(loss, U):
  params, enc, pred, labels, _, _ = _problem(B=2, U=U)
  lengths = np.zeros(2, np.int32), np.array([0, U])
  nll_B, grads = _nll_and_grads(
    loss, params, enc[:, :0], pred, labels, *lengths
  )
  np.testing.assert_array_equal(nll_B, [0.0, np.inf if U else 0.0])
  assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))


@pytest.mark.parametrize('scale', [100.0, 1e4])
def test_very_unlikely_labels(scale):
  rng = np.random.default_rng(0)
  logits = (rng.normal(size=(2, 30, 11, 4)) * scale).astype(np.float32)
  labels = rng.integers(1, 4, size=(2, 10))
  total = lambda x: rnnt.rnnt_loss_from_logits(
    x, labels, jnp.array([30, 20]), jnp.array([10, 7])
  )
  nll_B = total(logits)
  expected = [
    _nll_by_dp(logits[0], labels[0]),
    _nll_by_dp(logits[1, :20, :8], labels[1, :7]),
  ]
  np.testing.assert_allclose(nll_B, expected, rtol=1e-5)
  grad = jax.grad(lambda x: total(x).sum())(logits)
  assert np.isfinite(grad).all()
  # What a state's arcs gain, the other V - 2 logits of the state lose.
  np.testing.assert_allclose(grad.sum(-1), 0.0, atol=1e-5)


@pytest.mark.parametrize('masked', ['label', 'other'])
def test_logits_of_minus_infinity(masked):
  logits = np.zeros([1, 3, 2, 4], np.float32)
  logits[..., 2 if masked == 'label' else 3] = -np.inf
  total = lambda x: rnnt.rnnt_loss_from_logits(
    x, jnp.array([[2]]), jnp.array([3]), jnp.array([1])
  ).sum()
  nll, grad = jax.value_and_grad(total)(logits)
  assert np.isfinite(grad).all()
  if masked == 'label':
    assert nll > 1e19
  else:
    np.testing.assert_allclose(nll, 4 * np.log(3) - np.log(3), rtol=1e-6)


def test_bfloat16_inputs_accumulate_in_float32():
  params, enc, pred, *rest = _problem(T=20, U=9, V=12)
  narrow = lambda x: jnp.asarray(x, jnp.bfloat16)
  # The reference sees the same rounded inputs, everything else in float32.
  enc, pred = narrow(enc), narrow(pred)
  logits_of = lambda p, e, q: narrow(_joint(p, e, q))

  def chunked(p, e, q):
    return rnnt.rnnt_loss(functools.partial(logits_of, p), e, q, *rest)

  def dense(p, e, q):
    e, q = e.astype(jnp.float32), q.astype(jnp.float32)
    logits = logits_of(p, e[:, :, None], q[:, None])
    return rnnt.rnnt_loss_from_logits(logits.astype(jnp.float32), *rest)

  nll_B, grads = _nll_and_grads(lambda *a: chunked(*a[:3]), params, enc, pred)
  want_B, wants = _nll_and_grads(lambda *a: dense(*a[:3]), params, enc, pred)
  assert nll_B.dtype == jnp.float32 and grads[1].dtype == jnp.bfloat16
  np.testing.assert_allclose(nll_B, want_B, rtol=1e-3)
  for got, want in zip(
    jax.tree.leaves(grads), jax.tree.leaves(wants), strict=True
  ):
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    assert np.linalg.norm(got - want) < 0.01 * np.linalg.norm(want)


def test_no_tensor_of_all_states_and_labels():
  """Neither direction holds B * T * U1 * V numbers, at any size."""
  for size in [{'T': 4, 'U': 3, 'V': 8}, {'T': 90, 'U': 40, 'V': 3000}]:
    params, enc, pred, *rest = _problem(**size)
    grad = jax.grad(lambda *x, r=rest: _chunked(*x, *r).sum(), (0, 1, 2))
    jaxpr = jax.make_jaxpr(grad)(params, enc, pred)
    full = enc.shape[0] * enc.shape[1] * pred.shape[1] * size['V']
    largest = max(
      np.prod(v.aval.shape)
      for eqn in _equations(jaxpr.jaxpr)
      for v in eqn.outvars
    )
    assert largest <= (full + 1) // 2
  assert largest <= full // 20


def _equations(jaxpr):
  for eqn in jaxpr.eqns:
    yield eqn
    for value in eqn.params.values():
      for inner in value if isinstance(value, tuple | list) else [value]:
        inner = getattr(inner, 'jaxpr', inner)
        if hasattr(inner, 'eqns'):
          yield from _equations(inner)


def test_vmap_over_models():
  problems = [_problem(seed=s) for s in range(2)]
  stack = lambda *x: jnp.stack(x)
  params, enc, pred = jax.tree.map(stack, *(p[:3] for p in problems))
  rest = problems[0][3:]
  both = jax.vmap(lambda p, e, q: _chunked(p, e, q, *rest))(params, enc, pred)
  for i, (p, e, q, *_) in enumerate(problems):
    np.testing.assert_allclose(both[i], _chunked(p, e, q, *rest), rtol=1e-6)


def test_axes_of_length_zero():
  joint = lambda enc, pred: enc + pred
  for B, T, U in ((2, 0, 1), (0, 3, 2), (0, 0, 0)):
    nll_B = rnnt.rnnt_loss(
      joint,
      jnp.zeros((B, T, 5)),
      jnp.zeros((B, U + 1, 5)),
      jnp.ones((B, U), jnp.int32),
      jnp.zeros(B, jnp.int32),
      jnp.arange(B),
    )
    np.testing.assert_array_equal(nll_B, [0.0, np.inf][:B])


@pytest.mark.parametrize('blank', [5, -1])
def test_a_blank_that_is_no_label(blank):
  zeros = jnp.zeros((1, 2, 2, 5))
  lengths = jnp.ones(1, jnp.int32)
  with pytest.raises(ValueError, match='is none of 5 labels'):
    rnnt.rnnt_loss_from_logits(
      zeros, jnp.ones((1, 1), jnp.int32), lengths, lengths, blank=blank
    )


def test_shape_errors_print_both_shapes():
  params, enc, pred, labels, enc_lengths, label_lengths = _problem()
  with pytest.raises(ValueError, match=r'\(3, 5\).*expected labels \(3, 4\)'):
    _chunked(
      params, enc, pred, np.pad(labels, [(0, 0), (0, 1)]), enc_lengths,
      label_lengths,
    )  # fmt: skip
  with pytest.raises(ValueError, match=r'enc_lengths \(2,\).*\(3,\)'):
    _chunked(params, enc, pred, labels, enc_lengths[:2], label_lengths)
  with pytest.raises(ValueError, match=r'\(3, 7, 5\).*\(2, 5, 3\)'):
    _chunked(params, enc, pred[:2], labels, enc_lengths, label_lengths)
