"""Scores for `allocate`: what each tensor costs at each width."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from s8bqat_jax.artifacts.names import named
from s8bqat_jax.sensitivity import checks

PyTree = Any
# (name, tensor, bits) -> the tensor as it is after quantization.
Quantize = Callable[[str, jax.Array, int], jax.Array]
Scores = dict[str, dict[int, float]]


class KlSensitivity(NamedTuple):
  """KL(float || one tensor quantized), in nats per position."""

  scores: Scores
  stderr: Scores  # over batches; NaN when there is one batch


def trace_scores(
  trace: PyTree,
  params: PyTree,
  quantize: Quantize,
  bits: Mapping[str, Sequence[int]],
  *,
  stderr: PyTree = None,
) -> Scores:
  """Quantization perturbation weighted by the mean Hessian eigenvalue.

  Omega = Tr(H_i) / n_i * ||Q(W_i, b) - W_i||^2. A negative estimate of a trace
  counts as zero: more error does not improve a trained model. With standard
  errors an estimate counts as no less than its own, so that a tensor whose
  trace is lost in noise is not taken for one that bears anything.

  Args:
    trace: `hessian_trace(...).trace`.
    params: the tensors, structured alike.
    quantize: the quantizer that will be used; called once per width.
    bits: the widths to score, per tensor to score.
    stderr: `hessian_trace(...).stderr`.

  Returns:
    `{tensor: {bits: omega}}`.

  References:
    Dong et al. 2020 (HAWQ-V2); Xu et al. 2021 (arXiv 2112.11540), who apply it
    to Transformer language models.
  """
  traces = named(trace)
  harm = lambda name, squares: float(traces[name]) * float(squares.mean())
  return _perturbations(trace, harm, params, quantize, bits, stderr)


def diagonal_scores(
  diagonal: PyTree,
  params: PyTree,
  quantize: Quantize,
  bits: Mapping[str, Sequence[int]],
  *,
  stderr: PyTree = None,
) -> Scores:
  """Quantization perturbation weighted by the Hessian's diagonal.

  Omega = sum_j H_jj (Q(w_j, b) - w_j)^2. The trace alone supposes that errors
  are as large where the loss is curved as where it is flat; in an embedding,
  whose frequent rows are short, they are not.

  Args:
    diagonal: `hessian_trace(...).diagonal`. Each of its elements is noisy; the
      sum is about as certain as the trace.
    params: as in `trace_scores`.
    quantize: as in `trace_scores`.
    bits: as in `trace_scores`.
    stderr: as in `trace_scores`.

  Returns:
    `{tensor: {bits: omega}}`.
  """
  curved = named(diagonal)
  harm = lambda name, squares: float(
    np.sum(np.asarray(curved[name], np.float64) * squares)
  )
  return _perturbations(diagonal, harm, params, quantize, bits, stderr)


def _perturbations(curvature, harm, params, quantize, bits, stderr) -> Scores:
  """Harm of every rounding, `harm(name, squared errors)`.

  It counts as no less than under a trace of its own standard error.
  """
  tensors = named(params)
  if list(named(curvature)) != list(tensors):
    raise ValueError(
      'curvature and params differ in structure; their tensors are\n'
      f'{list(named(curvature))[:8]}\n{list(tensors)[:8]}'
    )
  _check_names(bits, tensors)
  floors = named(stderr) if stderr is not None else {}
  scores: Scores = {}
  for name, widths in bits.items():
    tensor = np.asarray(tensors[name], np.float64)
    floor = max(float(floors.get(name, 0.0)), 0.0)
    scores[name] = {}
    for b in widths:
      view = _quantized(quantize, name, tensors[name], b)
      squares = (np.asarray(view, np.float64) - tensor) ** 2
      if not tensor.size:
        scores[name][b] = 0.0
        continue
      least = floor * float(squares.mean())
      scores[name][b] = max(harm(name, squares), least)
  return scores


def kl_sensitivity(
  logits_fn: Callable[[PyTree, PyTree], Any],
  params: PyTree,
  batches: Iterable[PyTree],
  quantize: Quantize,
  bits: Mapping[str, Sequence[int]],
) -> KlSensitivity:
  """KL divergence of the model's outputs when one tensor alone is quantized.

  The model is compiled twice (reference, divergence) however many tensors and
  widths are scored: a candidate is the params with one leaf exchanged.

  Args:
    logits_fn: `(params, batch) -> logits [..., V]`, or a pair (logits,
      weights [...]) where some positions are padding.
    params: the float tensors.
    batches: batches of equal shapes.
    quantize: the quantizer that will be used; called once per width.
    bits: the widths to score, per tensor to score.

  Returns:
    A `KlSensitivity`; batches count by their number of positions.

  References:
    Xu et al. 2021 (arXiv 2112.11438), KL as a sensitivity of language models.
  """
  checks.check_float_params(params)
  batches = checks.check_batches(batches)
  _check_names(bits, named(params))

  @jax.jit
  def reference(p, batch):
    logits, weights = _logits_and_weights(logits_fn(p, batch))
    return jax.nn.log_softmax(logits.astype(jnp.float32)), weights

  @jax.jit
  def divergence(p, batch, logp, weights):
    logits, _ = _logits_and_weights(logits_fn(p, batch))
    logq = jax.nn.log_softmax(logits.astype(jnp.float32))
    # With q - p added, which sums to zero: no term is negative, and nothing
    # cancels where both are close.
    p, q, d = jnp.exp(logp), jnp.exp(logq), logq - logp
    near = jnp.abs(d) < 1
    small = jnp.where(near, d, 0)
    terms = jnp.where(near, p * (jnp.expm1(small) - small), q - p - p * d)
    # A class that never comes (masked to -inf, mostly on both sides).
    terms = jnp.where(logp == -jnp.inf, q, terms)
    return jnp.sum(weights * jnp.sum(terms, -1))

  references = [reference(params, batch) for batch in batches]
  weight_J = np.array([float(jnp.sum(w)) for _, w in references])
  if not weight_J.all():
    raise ValueError(
      f'batch {int(np.argmin(weight_J))} has no position of weight above zero'
    )
  leaves, treedef = jax.tree.flatten(params)
  result = KlSensitivity({}, {})
  for index, name in enumerate(named(params)):
    if name not in bits:
      continue
    result.scores[name], result.stderr[name] = {}, {}
    for b in bits[name]:
      view = _quantized(quantize, name, leaves[index], b)
      candidate = jax.tree.unflatten(
        treedef, [*leaves[:index], view, *leaves[index + 1 :]]
      )
      sums = [
        divergence(candidate, batch, *ref)
        for batch, ref in zip(batches, references)
      ]
      kl_J = np.array(sums, np.float64) / weight_J
      if not np.isfinite(kl_J).all():
        raise FloatingPointError(
          f'the divergence with {name!r} at {b} bits is '
          f'{kl_J[~np.isfinite(kl_J)][0]}; check the quantized tensor and the '
          "model's logits for NaN and infinity"
        )
      share_J = weight_J / weight_J.sum()
      mean = float(share_J @ kl_J)
      result.scores[name][b] = mean
      result.stderr[name][b] = _weighted_error(kl_J - mean, share_J)
  return result


def _weighted_error(deviation_J, share_J):
  """Standard error of a mean of batches weighted by `share_J`."""
  count = len(share_J)
  if count < 2:
    return float('nan')
  variance = np.sum((share_J * deviation_J) ** 2) * count / (count - 1)
  return float(np.sqrt(variance))


def _logits_and_weights(output):
  if isinstance(output, tuple):
    logits, weights = output
    if weights.shape != logits.shape[:-1]:
      raise ValueError(
        f'logits_fn returned weights of shape {weights.shape} for logits of '
        f'shape {logits.shape}; expected {logits.shape[:-1]}'
      )
    return logits, weights.astype(jnp.float32)
  return output, jnp.ones(output.shape[:-1], jnp.float32)


def _check_names(bits, tensors):
  unknown = [name for name in bits if name not in tensors]
  if unknown:
    raise ValueError(
      f'bits names {unknown[:3]}, which params does not have; its tensors are '
      f'{list(tensors)[:8]}{" ..." if len(tensors) > 8 else ""}'
    )


def _quantized(quantize, name, tensor, bits):
  view = quantize(name, tensor, bits)
  if view.shape != tensor.shape or view.dtype != tensor.dtype:
    raise ValueError(
      f'quantize({name!r}, bits={bits}) returned {view.dtype}{view.shape}; '
      f'expected {tensor.dtype}{tensor.shape}, the dequantized tensor'
    )
  return view
