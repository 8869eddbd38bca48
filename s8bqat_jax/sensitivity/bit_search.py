"""Differentiable search for the bits of each tensor.

Every weight is seen as a mixture of itself at several widths; the mixture's
logits learn beside the weights, the loss pulling them up and a price on size
pulling them down. It is a Quantizer like any other; what it finds is read with
`found_bits` (or weighed against a budget through `search_scores` and
`allocate`) and trained again with a quantizer of fixed bits.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax

from s8bqat_jax.artifacts import qtensor
from s8bqat_jax.quantizers import lift, schedules, types
from s8bqat_jax.quantizers import rules as rule_lib
from s8bqat_jax.quantizers.learnable import quantized, step_size
from s8bqat_jax.quantizers.uniform import mse_scale, quantize


def search(
  rules: rule_lib.Rules,
  *,
  choices: Sequence[int] = (1, 2, 4, 8),
  price: float,
  temperature: optax.ScalarOrSchedule = 1.0,
  gumbel: bool = False,
) -> types.Quantizer:
  """Architecture search over the widths of uniform grids.

  The view of a weight is sum_b a_b Q(w; b) with a = softmax(logits / tau), or
  with Gumbel noise added to the logits, drawn anew at each step. The penalty
  is `price` times the expected bits per weight under the same a.

  Args:
    rules: as for any quantizer; their bits are the most that a weight may
      get, and the weights of a group share their logits.
    choices: the widths to mix.
    price: of one bit per weight, in units of the loss; it means the same for
      all model sizes.
    temperature: tau, a number or a schedule; lower it towards the end so that
      the mixture becomes a choice.
    gumbel: draw Gumbel noise (exploration) or not (a plain softmax).

  Returns:
    The Quantizer. `learned` holds the logits of each group and a factor on
    each step size. `encode` takes each group's likeliest width; the number of
    levels of a QTensor can't depend on what was learned, so codes of fewer
    bits sit in a QTensor of the most bits allowed.

  References:
    Xu et al. 2021 (arXiv 2112.11540), Wu et al. 2018 (arXiv 1812.00090): the
    mixture, Gumbel-softmax and a size penalty are published; mixing weights
    rather than outputs, the learned step sizes and the price per bit are our
    reconstruction.
  """
  choices = _check_choices(choices)

  def init(weights, specs):
    groups = {spec.group: _widths(spec, choices) for spec in specs.values()}
    for spec in specs.values():
      if _widths(spec, choices) != groups[spec.group]:
        raise ValueError(
          f'group {spec.group!r}: its weights are allowed different bits; '
          'give them the same bits in the rules'
        )
    scales = {
      name: jnp.stack(
        [mse_scale(w, 2**b) for b in _widths(specs[name], choices)]
      )
      for name, w in weights.items()
    }
    learned = {
      'logits': {g: jnp.zeros(len(widths)) for g, widths in groups.items()},
      # In float32: a step of bfloat16 would be too long to learn from.
      'factors': {n: jnp.ones(s.shape, jnp.float32) for n, s in scales.items()},
    }
    return types.State(learned, scales)

  def mixture(state, ctx):
    tau = schedules.at(temperature, ctx.step)
    shares = {}
    for group, logits_C in state.learned['logits'].items():
      if gumbel:
        key = lift.key_of(ctx.key, group)
        logits_C = logits_C + jax.random.gumbel(key, logits_C.shape)
      shares[group] = jax.nn.softmax(logits_C / tau)
    return shares

  def views(weights, state, specs, ctx):
    shares = mixture(state, ctx)
    seen = {}
    for name, w in weights.items():
      share_C = shares[specs[name].group].astype(w.dtype)
      step_C = _steps(state, name)
      seen[name] = sum(
        share_C[i] * quantized(w, step_C[i], 2**b)
        for i, b in enumerate(_widths(specs[name], choices))
      )
    return {types.MAIN: seen}

  def penalty(weights, state, specs, ctx):
    return price * _expected_bits(weights, mixture(state, ctx), specs, choices)

  def encode(weights, state, specs):
    encoded = {}
    for name, w in weights.items():
      spec, step_C = specs[name], _steps(state, name)
      options = [
        quantize(w, step_C[i], 2**b)
        for i, b in enumerate(_widths(spec, choices))
      ]
      best = jnp.argmax(state.learned['logits'][spec.group])
      # One-bit weights, centroids -1 and +1, are codes of a wider grid too.
      codes = jnp.stack([qtensor.grid_values(q) for q in options])[best]
      encoded[name] = _container(codes, step_C[best], spec.levels)
    return encoded

  def metrics(weights, state, specs):
    shares = {g: jax.nn.softmax(x) for g, x in state.learned['logits'].items()}
    entropies = [
      -jnp.sum(jax.scipy.special.xlogy(s, s)) for s in shares.values()
    ]
    if not entropies:
      return {}
    return {
      'expected_bits': _expected_bits(weights, shares, specs, choices),
      'choice_entropy': jnp.mean(jnp.stack(entropies)),
    }

  return lift.lift(
    rules,
    init=init,
    encode=encode,
    views=views,
    penalty=penalty,
    metrics=metrics,
  )


def search_scores(
  rules: rule_lib.Rules,
  params: types.Params,
  state: types.State,
  *,
  choices: Sequence[int],
) -> dict[str, dict[int, float]]:
  """What was learned, as scores for `allocate`.

  A share is read as the probability that a tensor needs just that width, the
  score as -log of the probability that a width suffices. It falls with the
  bits, so that a budget beyond what the search itself would spend is spent.

  Args:
    rules: as given to `search`.
    params: the params.
    state: the search's state, `TrainState.quantizer`.
    choices: as given to `search`.

  Returns:
    `{tensor: {bits: score}}`.
  """
  scores = {}
  for name, share in _shares(rules, params, state, choices).items():
    within = np.logaddexp.accumulate(list(share.values()))
    scores[name] = dict(zip(share, np.maximum(-within, 0.0).tolist()))
  return scores


def found_bits(
  rules: rule_lib.Rules,
  params: types.Params,
  state: types.State,
  *,
  choices: Sequence[int],
) -> dict[str, int]:
  """The likeliest width of every tensor; `to_rules` makes rules of it.

  Args:
    rules: as given to `search`.
    params: the params.
    state: the search's state, `TrainState.quantizer`.
    choices: as given to `search`.

  Returns:
    `{tensor: bits}`.
  """
  shares = _shares(rules, params, state, choices)
  return {name: max(s, key=lambda b: (s[b], -b)) for name, s in shares.items()}


def _shares(rules, params, state, choices) -> dict[str, dict[int, float]]:
  """The logarithm of each width's share."""
  choices = _check_choices(choices)
  shares = {}
  for name, spec in rule_lib.resolve(rules, params).items():
    log_share_C = jax.nn.log_softmax(state.learned['logits'][spec.group])
    widths = _widths(spec, choices)
    if len(widths) != len(log_share_C):
      raise ValueError(
        f'{name}: {len(log_share_C)} logits for the widths {widths}: expected '
        'the rules and choices that were given to `search`'
      )
    shares[name] = dict(zip(widths, np.asarray(log_share_C).tolist()))
  return shares


def _check_choices(choices):
  choices = tuple(sorted(set(choices)))
  if not choices or not all(1 <= b <= 8 for b in choices):
    raise ValueError(f'choices={choices}: expected widths of 1..8 bits')
  return choices


def _widths(spec, choices):
  widths = [b for b in choices if 2**b <= spec.levels]
  if not widths:
    raise ValueError(
      f'{spec.name}: none of the choices {choices} is within its '
      f'{spec.levels} levels'
    )
  return widths


def _steps(state, name):
  return step_size(state.carried[name], state.learned['factors'][name])


def _expected_bits(weights, shares, specs, choices):
  """Mean over all weights' elements."""
  # Not as whole numbers: there may be more than an int32 holds.
  total = sum(
    float(w.size)
    * jnp.dot(
      shares[specs[name].group], jnp.array(_widths(specs[name], choices), float)
    )
    for name, w in weights.items()
  )
  return total / float(max(sum(w.size for w in weights.values()), 1))


def _container(codes, step, levels):
  """Integer codes as a QTensor of `levels`, which must hold them."""
  if levels == 2:
    return qtensor.QTensor(
      (codes > 0).astype(jnp.uint8), step, jnp.array([-1, 1], jnp.int8), 2
    )
  return qtensor.QTensor(codes.astype(jnp.int8), step, None, levels)
