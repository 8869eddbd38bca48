"""Is a difference of error rates real, and is a loss small enough?

Everything works on error counts per utterance. Utterances of one speaker are
not independent, nor are speakers that one trained model recognized (those of a
fold), and several seeds of one system are not new utterances: the bootstrap
resamples folds, and within them seeds, speakers, and utterances of a speaker.
Drawing at every level makes intervals slightly too wide for many clusters; with
a handful of speakers they are still too narrow, as any cluster bootstrap's.

Dimension key: R bootstrap replicates, S seeds, N utterances, F folds, G
speakers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy.stats

_LEVEL = 0.95


class Interval(NamedTuple):
  """Ends of a 95% interval."""

  low: float
  high: float


class Comparison(NamedTuple):
  """System B against system A; rates are fractions."""

  rate_a: float
  rate_b: float
  relative: float  # (rate_b - rate_a) / rate_a; below 0 is a gain
  interval: Interval  # of `relative`
  p_bootstrap: float  # two-sided, over folds, seeds, speakers and utterances
  p_mapsswe: float  # two-sided, over utterances, seeds averaged

  def non_inferior(self, margin: float = 0.03) -> bool:
    """Whether B's relative loss is surely below the margin.

    "p > 0.05" proves nothing; this does: the upper end of the interval is
    below the margin.
    """
    return self.interval.high < margin

  @property
  def resolves(self) -> float:
    """The relative change that data like these show four times in five.

    2.8 standard errors, of which the interval holds 3.92, however many words
    and speakers there are and however alike a speaker's words.
    """
    return 2.8 / 3.92 * (self.interval.high - self.interval.low)


class Difference(NamedTuple):
  """System B less system A, per unit."""

  value: float
  interval: Interval
  p: float  # two-sided, by the same bootstrap


class Mapsswe(NamedTuple):
  """The statistic, normal with unit variance if there is no difference."""

  z: float
  p: float


def mapsswe(errors_a_N: Any, errors_b_N: Any) -> Mapsswe:
  """Matched-pairs sentence-segment word error test, two-sided.

  Args:
    errors_a_N: errors of system A in each segment. We take one utterance as
      one segment, so that errors of different segments are independent.
    errors_b_N: errors of B in the same segments.

  Returns:
    z (positive where A makes more errors) and p.

  References:
    L. Gillick, S. Cox, Some Statistical Issues in the Comparison of Speech
    Recognition Algorithms, ICASSP 1989.
  """
  a_N, b_N = np.asarray(errors_a_N, float), np.asarray(errors_b_N, float)
  if a_N.shape != b_N.shape or a_N.ndim != 1 or a_N.size < 2:
    raise ValueError(
      'expected two equally long arrays of at least 2 error counts, got '
      f'shapes {a_N.shape} and {b_N.shape}'
    )
  if not (np.isfinite(a_N).all() and np.isfinite(b_N).all()):
    raise ValueError('error counts must be finite')
  difference_N = a_N - b_N
  mean = difference_N.mean()
  rounding = 1e-12 * max(np.abs(a_N).max(), np.abs(b_N).max())
  if abs(mean) <= rounding:
    return Mapsswe(0.0, 1.0)
  error = difference_N.std(ddof=1) / np.sqrt(a_N.size)
  z = mean / error if error > rounding else np.copysign(np.inf, mean)
  return Mapsswe(float(z), float(2 * scipy.stats.norm.sf(abs(z))))


def rate_interval(
  errors_SxN: Any,
  units_N: Any,
  speakers_N: Sequence[str],
  folds_N: Sequence[str] | None = None,
  *,
  replicates: int = 4000,
  seed: int = 0,
) -> Interval:
  """The 95% interval of one system's error rate, a fraction.

  With one speaker it is over utterances only and says nothing of others; one
  utterance says nothing at all, which is NaN.

  Args:
    errors_SxN: errors of each seed in each utterance.
    units_N: reference words (or characters) of each utterance.
    speakers_N: who speaks.
    folds_N: whose model recognized it, where each fold has a model of its own;
      None for one model a seed.
    replicates: R.
    seed: of the resampling.

  Returns:
    The interval.
  """
  errors_SxN = np.asarray(errors_SxN, float)
  return difference(
    np.zeros_like(errors_SxN),
    errors_SxN,
    units_N,
    speakers_N,
    folds_N,
    replicates=replicates,
    seed=seed,
  ).interval


def compare(
  errors_a_SxN: Any,
  errors_b_SxN: Any,
  units_N: Any,
  speakers_N: Sequence[str],
  folds_N: Sequence[str] | None = None,
  *,
  replicates: int = 4000,
  seed: int = 0,
) -> Comparison:
  """Compares B with A on the same utterances.

  Args:
    errors_a_SxN: errors of each seed of A; seed s of A and of B belong
      together (they start from one checkpoint) and are resampled together.
    errors_b_SxN: errors of B.
    units_N: reference words (or characters) of each utterance.
    speakers_N: who speaks.
    folds_N: whose model recognized it, where each fold has a model of its own;
      None for one model a seed.
    replicates: R.
    seed: of the resampling.

  Returns:
    The comparison.
  """
  a_SxN, b_SxN, units_N = _check_pair(
    errors_a_SxN, errors_b_SxN, units_N, speakers_N
  )
  rate_a, rate_b = a_SxN.mean(0).sum(), b_SxN.mean(0).sum()
  if rate_a == 0:
    raise ValueError(
      'system A makes no error: a relative change does not exist; compare on '
      'a harder set'
    )
  (a_R, b_R), _ = _resample(
    [a_SxN, b_SxN], units_N, speakers_N, folds_N, replicates, seed
  )
  # A replicate in which A makes no error: no loss, or an infinite one.
  relative_R = np.where(
    a_R > 0,
    (b_R - a_R) / np.where(a_R > 0, a_R, 1),
    np.where(b_R > 0, np.inf, 0.0),
  )
  units = units_N.sum()
  found = Comparison(
    rate_a=float(rate_a / units),
    rate_b=float(rate_b / units),
    relative=float((rate_b - rate_a) / rate_a),
    interval=Interval(-np.inf, np.inf),
    p_bootstrap=1.0,
    p_mapsswe=1.0,
  )
  if len(units_N) == 1:  # which says nothing of others
    return found
  return found._replace(
    interval=_interval(relative_R),
    p_bootstrap=_p_value(relative_R),
    p_mapsswe=mapsswe(a_SxN.mean(0), b_SxN.mean(0)).p,
  )


def difference(
  costs_a_SxN: Any,
  costs_b_SxN: Any,
  units_N: Any,
  speakers_N: Sequence[str],
  folds_N: Sequence[str] | None = None,
  *,
  replicates: int = 4000,
  seed: int = 0,
) -> Difference:
  """Compares B with A by what they add per unit, such as nats per word.

  Args:
    costs_a_SxN: of each seed of A in each utterance, or line.
    costs_b_SxN: of B; seed s of both are resampled together.
    units_N: words of each utterance.
    speakers_N: what is resampled as one, such as speakers or articles.
    folds_N: as for `compare`.
    replicates: R.
    seed: of the resampling.

  Returns:
    The difference; of a single utterance, which says nothing of others, its
    interval is NaN.
  """
  a_SxN, b_SxN, units_N = _check_pair(
    costs_a_SxN, costs_b_SxN, units_N, speakers_N
  )
  rise_SxN = b_SxN - a_SxN
  value = float(rise_SxN.mean(0).sum() / units_N.sum())
  if len(units_N) == 1:
    return Difference(value, Interval(np.nan, np.nan), 1.0)
  (rise_R,), units_R = _resample(
    [rise_SxN], units_N, speakers_N, folds_N, replicates, seed
  )
  return Difference(
    value, _interval(rise_R / np.maximum(units_R, 1)), _p_value(rise_R)
  )


def _p_value(changes_R):
  """Two-sided: how rarely replicates fall on the other side of no change."""
  tail = min(np.sum(changes_R <= 0), np.sum(changes_R >= 0))
  return float(min(1.0, 2 * (tail + 1) / (len(changes_R) + 1)))


def _check(errors_SxN, units_N, speakers_N):
  errors_SxN = np.atleast_2d(np.asarray(errors_SxN, float))
  units_N = np.asarray(units_N, float)
  N = len(speakers_N)
  if errors_SxN.shape[1:] != (N,) or units_N.shape != (N,):
    raise ValueError(
      f'expected errors (seeds, {N}) and units ({N},) for {N} speaker labels, '
      f'got {errors_SxN.shape} and {units_N.shape}'
    )
  if not errors_SxN.shape[0]:
    raise ValueError('no seeds to compare: errors of shape (seeds, utterances)')
  if not np.isfinite(errors_SxN).all():
    raise ValueError('error counts must be finite')
  if not (np.isfinite(units_N).all() and (units_N >= 0).all()):
    raise ValueError('units (words) must be finite and not below zero')
  if N == 0 or units_N.sum() <= 0:
    raise ValueError('no reference words to compare on')
  return errors_SxN, units_N


def _check_pair(a_SxN, b_SxN, units_N, speakers_N):
  a_SxN, units_N = _check(a_SxN, units_N, speakers_N)
  b_SxN, _ = _check(b_SxN, units_N, speakers_N)
  if a_SxN.shape != b_SxN.shape:
    raise ValueError(
      f'A has errors of shape {a_SxN.shape} (seeds, utterances), B of '
      f'{b_SxN.shape}: compare equally many seeds on the same utterances'
    )
  return a_SxN, b_SxN, units_N


def _resample(systems, units_N, speakers_N, folds_N, replicates, seed):
  """Totals of each replicate: ([errors_R of each system], units_R)."""
  if replicates < 1:
    raise ValueError(f'replicates={replicates}: expected at least 1')
  rng = np.random.default_rng(seed)
  S, N = systems[0].shape
  if folds_N is not None and len(folds_N) != N:
    raise ValueError(f'expected {N} fold labels, got {len(folds_N)}')
  folds_N = _labels([''] * N if folds_N is None else folds_N)
  speakers_N = np.asarray(speakers_N)
  F = folds_N.max() + 1
  draws_RxF = rng.multinomial(F, np.full(F, 1 / F), size=replicates)
  rows_KxN = np.concatenate([*systems, units_N[None]])  # K systems * S + 1
  errors_IxR = np.zeros([len(systems), replicates])
  units_R = np.zeros(replicates)
  for f in range(F):
    members = folds_N == f
    totals_RxK = _totals(
      rng, rows_KxN[:, members], _labels(speakers_N[members]), draws_RxF[:, f]
    )
    draws_R = draws_RxF[:, f, None] * S
    seeds_RxS = rng.multinomial(draws_R[:, 0], np.full(S, 1 / S))
    seeds_RxS = seeds_RxS / np.maximum(draws_R, 1)
    for i in range(len(systems)):
      of_seeds_RxS = totals_RxK[:, i * S : (i + 1) * S]
      errors_IxR[i] += (of_seeds_RxS * seeds_RxS).sum(1)
    units_R += totals_RxK[:, -1]
  return list(errors_IxR), units_R


def _totals(rng, rows_KxN, groups_N, times_R):
  """Sums over `times_R` independent draws of the speakers of one fold."""
  G = groups_N.max() + 1
  draws_RxG = rng.multinomial(times_R * G, np.full(G, 1 / G))
  totals_RxK = np.zeros([len(times_R), len(rows_KxN)])
  for g in range(G):
    members = np.flatnonzero(groups_N == g)
    n = len(members)
    # A speaker drawn c times brings c independent draws of n utterances.
    weights_RxM = rng.multinomial(draws_RxG[:, g] * n, np.full(n, 1 / n))
    totals_RxK += weights_RxM @ rows_KxN[:, members].T
  return totals_RxK


def _labels(names):
  """0, 1, ... for the different names."""
  return np.unique(np.asarray(names), return_inverse=True)[1]


def _interval(values_R):
  tail = (1 - _LEVEL) / 2
  low, high = np.quantile(values_R, [tail, 1 - tail], method='nearest')
  return Interval(float(low), float(high))
