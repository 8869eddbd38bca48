"""How many bits each tensor gets.

| step | function |
| --- | --- |
| curvature of the loss, per tensor | `hessian_trace`, `top_eigenvalue` |
| scores, `{tensor: {bits: harm}}`, by it | `trace_scores`, `diagonal_scores` |
| or by what the outputs diverge | `kl_sensitivity` |
| bits under a budget, exactly | `allocate`, `pareto_front` |
| or learned beside the weights | `search`, `found_bits`, `search_scores` |
| rules for a quantizer | `to_rules` |
"""

from s8bqat_jax.sensitivity.allocation import (
  BITS,
  Allocation,
  Budget,
  InfeasibleError,
  allocate,
  to_rules,
)
from s8bqat_jax.sensitivity.bit_search import found_bits, search, search_scores
from s8bqat_jax.sensitivity.hessian import (
  HessianTrace,
  TopEigenvalue,
  hessian_trace,
  top_eigenvalue,
)
from s8bqat_jax.sensitivity.pareto import ParetoFront, pareto_front
from s8bqat_jax.sensitivity.scores import (
  KlSensitivity,
  diagonal_scores,
  kl_sensitivity,
  trace_scores,
)

__all__ = [
  'BITS',
  'Allocation',
  'Budget',
  'HessianTrace',
  'InfeasibleError',
  'KlSensitivity',
  'ParetoFront',
  'TopEigenvalue',
  'allocate',
  'diagonal_scores',
  'found_bits',
  'hessian_trace',
  'kl_sensitivity',
  'pareto_front',
  'search',
  'search_scores',
  'to_rules',
  'top_eigenvalue',
  'trace_scores',
]
