"""Curvature of a loss, one tensor at a time, without ever forming a Hessian.

Hutchinson's estimator: for a random sign vector v, E[v_i . (H v)_i] is the
trace of the i-th tensor's diagonal block, so *one* Hessian-vector product
gives an estimate for every tensor at once.
"""

import functools
from collections.abc import Callable, Collection, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from s8bqat_jax.artifacts.names import named
from s8bqat_jax.sensitivity import checks

PyTree = Any
LossFn = Callable[[PyTree, PyTree], jax.Array]

# A standard error estimated from fewer degrees of freedom than this is itself
# too uncertain to stop by.
_MIN_DEGREES = 8
# A tensor whose trace is below this share of the largest is held to the
# absolute error of that share: an exact zero would otherwise never converge.
_NEGLIGIBLE = 0.01


class HessianTrace(NamedTuple):
  """The trace of every tensor's diagonal block of the Hessian."""

  trace: PyTree  # float64 scalars, structured like params
  stderr: PyTree  # their standard errors (of the probes, for these batches)
  probes: int  # Hessian-vector products spent
  converged: bool  # False: stopped by max_probes
  diagonal: PyTree = None  # the Hessian's, like params; noisy, unbiased


class TopEigenvalue(NamedTuple):
  """The largest eigenvalue of the Hessian."""

  value: float
  residual: float  # an eigenvalue lies within this distance of `value`
  iterations: int


def hessian_vector_product(
  grad_fn: Callable[[PyTree], PyTree], params: PyTree, v: PyTree
) -> PyTree:
  """H v at `params`, to be called while tracing (inside `jit` or `vmap`).

  Forward over reverse, the cheaper order, unless the function contains a
  `custom_vjp` that cannot be differentiated forwards; then reverse over
  reverse. JAX finds that out while tracing, so under `jit` the choice is made
  once and kept with the compiled function.

  Args:
    grad_fn: gradient of a scalar function of `params`.
    params: the point at which to take the Hessian.
    v: a pytree like `params`.

  Returns:
    The product, a pytree like `params`.
  """
  try:
    return jax.jvp(grad_fn, (params,), (v,))[1]
  except TypeError:
    _, pull_back = jax.vjp(grad_fn, params)
    return pull_back(v)[0]


def hessian_trace(
  loss_fn: LossFn,
  params: PyTree,
  batches: Iterable[PyTree],
  key: jax.Array,
  *,
  rtol: float = 0.05,
  max_probes: int = 256,
  chunk: int = 4,
  names: Collection[str] | None = None,
) -> HessianTrace:
  """Estimates the Hessian trace of every tensor by Hutchinson's method.

  The Hessian is that of the mean of `loss_fn` over `batches`. Every batch gets
  its own probes, which are independent and therefore worth more than the same
  probes repeated on each batch: several small batches cost no more than one
  large one and give a smaller error.

  Args:
    loss_fn: `(params, batch) -> scalar`; pass the same function object again
      to reuse what was compiled.
    params: any pytree of float arrays.
    batches: batches of equal shapes, each weighted alike.
    key: a PRNG key.
    rtol: stop when every tensor's standard error is below `rtol` times its
      trace. Tensors with a trace below 1% of the largest are compared with
      that 1% instead.
    max_probes: stop after this many Hessian-vector products at the latest
      (one sweep over the batches, `chunk` probes each, always runs).
    chunk: probes evaluated at once on a batch; memory grows with it. They
      share the forward and backward pass.
    names: the tensors whose errors decide when to stop; None for all. Vectors
      that stay in floating point need not hold up the rest.

  Returns:
    A `HessianTrace`.

  References:
    Hutchinson 1990; Yao et al. 2020 (PyHessian, arXiv 1912.07145). Fresh
    probes per batch and the stratified standard error are ours.
  """
  checks.check_float_params(params)
  batches = checks.check_batches(batches)
  _check_scalar(loss_fn, params, batches[0])
  if chunk < 2:
    raise ValueError(
      f'chunk={chunk}: a standard error needs at least 2 probes per batch'
    )
  if not rtol > 0:
    raise ValueError(f'rtol={rtol}: expected a positive number')

  names_L = list(named(params))
  unknown = sorted(set(names or ()) - set(names_L))
  if unknown:
    raise ValueError(
      f'names has {unknown[:3]}, which params does not have; its tensors are '
      f'{names_L[:8]}'
    )
  judged_L = np.array([names is None or name in names for name in names_L])
  samples_per_batch: list[list[np.ndarray]] = [[] for _ in batches]
  diagonal = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), params)
  probes = 0
  while True:
    for index, batch in enumerate(batches):
      key, probe_key = jax.random.split(key)
      found_CxL, diagonal = _probe(
        loss_fn, params, batch, probe_key, chunk, diagonal
      )
      samples_CxL = np.asarray(found_CxL, np.float64)
      _check_finite(samples_CxL, names_L, index)
      samples_per_batch[index].append(samples_CxL)
      probes += chunk
    trace_L, stderr_L, degrees = _stratified_mean(samples_per_batch)
    scale_L = np.maximum(np.abs(trace_L), _NEGLIGIBLE * np.max(np.abs(trace_L)))
    converged = degrees >= _MIN_DEGREES and bool(
      np.all(stderr_L <= rtol * scale_L, where=judged_L)
    )
    if converged or probes + chunk * len(batches) > max_probes:
      break

  treedef = jax.tree.structure(params)
  return HessianTrace(
    jax.tree.unflatten(treedef, list(trace_L)),
    jax.tree.unflatten(treedef, list(stderr_L)),
    probes,
    converged,
    jax.tree.map(lambda x: x / probes, diagonal),
  )


def top_eigenvalue(
  loss_fn: LossFn,
  params: PyTree,
  batches: Iterable[PyTree],
  key: jax.Array,
  *,
  rtol: float = 0.01,
  max_iterations: int = 64,
) -> TopEigenvalue:
  """The largest eigenvalue of the Hessian, by Lanczos iteration.

  Three-term recurrence without reorthogonalization: it holds three vectors of
  the size of `params`, and what is lost (repeated copies of converged
  eigenvalues) does not move the largest one.

  Args:
    loss_fn: `(params, batch) -> scalar`.
    params: any pytree of float arrays.
    batches: batches of equal shapes; the Hessian is that of their mean loss.
    key: a PRNG key, for the starting vector.
    rtol: stop when the residual is below `rtol * |value|`.
    max_iterations: products with the Hessian, at most; at least 1.

  Returns:
    A `TopEigenvalue`.

  References:
    Lanczos 1950; Paige 1972, on the recurrence in finite precision.
  """
  if max_iterations < 1:
    raise ValueError(f'max_iterations must be at least 1, got {max_iterations}')
  checks.check_float_params(params)
  batches = checks.check_batches(batches)
  _check_scalar(loss_fn, params, batches[0])

  flat_P, unravel = ravel_pytree(params)
  vector_P = jax.random.normal(key, flat_P.shape, flat_P.dtype)
  vector_P /= jnp.linalg.norm(vector_P)
  previous_P = jnp.zeros_like(vector_P)
  alphas: list[float] = []
  betas: list[float] = []
  beta = 0.0
  for iteration in range(1, min(max_iterations, flat_P.size) + 1):
    product_P = jnp.zeros_like(vector_P)
    for batch in batches:
      hv = _hvp(loss_fn, params, batch, unravel(vector_P))
      product_P += ravel_pytree(hv)[0] / len(batches)
    alpha = float(product_P @ vector_P)
    if not np.isfinite(alpha):
      raise FloatingPointError(
        f'the Hessian product of Lanczos iteration {iteration} is not finite; '
        'check that the loss and its gradient are finite at these params'
      )
    alphas.append(alpha)
    product_P = product_P - alpha * vector_P - beta * previous_P
    beta = float(jnp.linalg.norm(product_P))
    ritz, vectors = np.linalg.eigh(
      np.diag(alphas) + np.diag(betas, 1) + np.diag(betas, -1)
    )
    value, residual = float(ritz[-1]), float(beta * abs(vectors[-1, -1]))
    if residual <= rtol * abs(value) or beta == 0:
      break
    betas.append(beta)
    previous_P, vector_P = vector_P, product_P / beta
  return TopEigenvalue(value, residual, iteration)


@functools.partial(
  jax.jit, static_argnames=('loss_fn', 'chunk'), donate_argnames='diagonal'
)
def _probe(loss_fn, params, batch, key, chunk, diagonal):
  """v_i . (H v)_i for `chunk` probes and every tensor: [chunk, L].

  And `diagonal` with the elements of these products added.
  """
  grad_fn = jax.grad(lambda p: loss_fn(p, batch))

  def one_probe(probe_key):
    v = _random_signs(probe_key, params)
    return jax.tree.map(
      lambda a, b: a.astype(jnp.float32) * b.astype(jnp.float32),
      v,
      hessian_vector_product(grad_fn, params, v),
    )

  # What does not depend on the probe, the forward and the backward pass, is
  # not batched by vmap: `chunk` probes share it.
  products = jax.vmap(one_probe)(jax.random.split(key, chunk))
  sums = [x.reshape(chunk, -1).sum(1) for x in jax.tree.leaves(products)]
  diagonal = jax.tree.map(lambda a, x: a + x.sum(0), diagonal, products)
  return jnp.stack(sums, 1), diagonal


@functools.partial(jax.jit, static_argnames='loss_fn')
def _hvp(loss_fn, params, batch, v):
  grad_fn = jax.grad(lambda p: loss_fn(p, batch))
  return hessian_vector_product(grad_fn, params, v)


def _random_signs(key, params):
  """Rademacher probes; 32 signs are drawn from each random word."""
  leaves, treedef = jax.tree.flatten(params)
  keys = jax.random.split(key, len(leaves))
  signs = []
  for leaf_key, leaf in zip(keys, leaves):
    words_W = jax.random.bits(leaf_key, (-(-leaf.size // 32),), jnp.uint32)
    bits_Wx32 = (words_W[:, None] >> jnp.arange(32, dtype=jnp.uint32)) & 1
    bits = bits_Wx32.reshape(-1)[: leaf.size].reshape(leaf.shape)
    signs.append(bits.astype(leaf.dtype) * 2 - 1)
  return jax.tree.unflatten(treedef, signs)


def _stratified_mean(samples_per_batch):
  """Mean over batches, its standard error, and the error's degrees of freedom.

  Probes are averaged within a batch, then the batches: differences between
  batches are part of the answer and not of its error.
  """
  count = len(samples_per_batch)
  means, variances, degrees = [], [], 0
  for chunks in samples_per_batch:
    samples_NxL = np.concatenate(chunks)
    number = len(samples_NxL)
    means.append(samples_NxL.mean(0))
    variances.append(samples_NxL.var(0, ddof=1) / number)
    degrees += number - 1
  return np.mean(means, 0), np.sqrt(np.sum(variances, 0)) / count, degrees


def _check_scalar(loss_fn, params, batch):
  out = jax.eval_shape(loss_fn, params, batch)
  if not hasattr(out, 'shape'):
    raise TypeError(
      f'loss_fn returned {jax.tree.structure(out)}; expected one scalar. Drop '
      'auxiliary outputs, for example lambda p, b: loss_fn(p, b)[0]'
    )
  if out.shape != () or not jnp.issubdtype(out.dtype, jnp.floating):
    raise TypeError(
      f'loss_fn returned shape {out.shape}, dtype {out.dtype}; expected a '
      'float scalar of shape (). Average over the batch inside loss_fn.'
    )


def _check_finite(samples_CxL, names, batch_index):
  bad_L = ~np.isfinite(samples_CxL).all(0)
  if bad_L.any():
    tensors = ', '.join(repr(names[i]) for i in np.flatnonzero(bad_L)[:4])
    raise FloatingPointError(
      f'{bad_L.sum()} of {len(names)} tensors have a NaN or infinite '
      f'Hessian product on batch {batch_index}, among them {tensors}; check '
      'that the loss and its gradient are finite there'
    )
