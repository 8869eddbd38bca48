"""What each tensor's bits cost, predicted: scores and the bits they lead to.

Scores are tables {tensor: {bits: harm}} of one float model, found once:

  trace     Hessian trace times mean squared error (HAWQ-V2)
  diagonal  the Hessian's diagonal times squared errors
  kl        divergence of the outputs with that tensor alone quantized
  search    -log of the probability, by a differentiable search over uniform
            grids of one scale, that a width suffices
  size      alike for all tensors, so that large ones get few bits
  random    alike for all weights, times a random factor for each tensor
"""

from __future__ import annotations

import functools
import pathlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np
import optax

from experiments import lm_stages, methods, results
from experiments.stage_cache import RESULT
from s8bqat_jax import sensitivity
from s8bqat_jax.artifacts import packed_file, qtensor
from s8bqat_jax.data import text_windows
from s8bqat_jax.quantizers import codebook
from s8bqat_jax.quantizers import rules as rule_lib
from s8bqat_jax.quantizers import tree as trees

# What a cell may fail of without costing others their results.
FAILURES = FloatingPointError, RuntimeError, sensitivity.InfeasibleError
METRICS = ('trace', 'diagonal', 'kl', 'search', 'size', 'random')
_DIAGONAL = 'diagonal.safetensors'
Scores = dict[str, dict[int, float]]
Point = int | str


class Sensitivity:
  """Scores of one float model's tensors."""

  def __init__(self, stages: lm_stages.Stages):
    self.stages, self.config = stages, stages.config
    self._views: dict[tuple[str, int], jax.Array] = {}

  @functools.cache  # noqa: B019
  def sizes(self) -> Scores:
    """Returns packed bytes of every quantizable tensor at every width."""
    return {
      name: {b: _bytes(w, b, self._rows(name)) for b in self.config.choices}
      for name, w in trees.weights(self._params).items()
    }

  @functools.cache  # noqa: B019
  def scores(self, metric: str) -> Scores:
    """Returns the predicted harm of every tensor at every width.

    Args:
      metric: one of `METRICS`.
    """
    if metric == 'trace':
      return self._second_order(sensitivity.trace_scores, self.traces()[0])
    if metric == 'diagonal':
      return self._second_order(sensitivity.diagonal_scores, self._diagonal())
    if metric == 'kl':
      return _int_keys(self._divergences()['scores'])
    if metric == 'search':
      return self._search()
    if metric == 'size':
      # Alike for all tensors, whatever they hold: large ones are dear.
      return {n: {b: 4.0**-b for b in w} for n, w in self._widths().items()}
    if metric == 'random':
      return self.random_scores(np.random.default_rng(self.config.seed))
    raise ValueError(f'metric {metric!r} is none of {", ".join(METRICS)}')

  def traces(self) -> tuple[Any, Any, dict[str, Any]]:
    """Returns trace and standard error of every tensor, and how found."""

    def work(folder):
      section = self.config.sensitivity
      found = sensitivity.hessian_trace(
        self._mean_nll,
        self._params,
        self.windows(),
        jax.random.key(self.config.seed),
        rtol=section.rtol,
        max_probes=section.max_probes,
        names=tuple(trees.weights(self._params)),
      )
      packed_file.save(folder / _DIAGONAL, jax.device_get(found.diagonal))
      named = lambda tree: {k: float(x) for k, x in trees.named(tree).items()}
      return {
        'trace': named(found.trace),
        'stderr': named(found.stderr),
        'probes': found.probes,
        'converged': found.converged,
      }

    name, config = self._trace_stage()
    found = self.stages.stage('sensitivity', name, config, work)
    like = self._params
    return (
      trees.replace(like, found['trace']),
      trees.replace(like, found['stderr']),
      found,
    )

  def divergences(self) -> list[dict[str, Any]]:
    """Returns what each tensor's bits cost alone, a row for every width.

    `nats` a token, with its standard error if that is known; `nats_percent` of
    the sum over all tensors at that width, where `weights_percent` of the
    weights are.
    """
    found, weights = self._divergences(), trees.weights(self._params)
    scores, stderr = (_int_keys(found[k]) for k in ('scores', 'stderr'))
    count = sum(w.size for w in weights.values())
    total = {
      b: sum(of[b] for of in scores.values()) or np.nan
      for b in self.config.choices
    }
    return [
      {
        'tensor': name,
        'bits': bits,
        'weights_percent': 100 * weights[name].size / count,
        'nats': nats,
        'stderr': results.finite(stderr[name][bits]),
        'nats_percent': results.finite(100 * nats / total[bits]),
      }
      for name, of_it in scores.items()
      for bits, nats in of_it.items()
    ]

  def _diagonal(self) -> Any:
    self.traces()
    folder = self.stages.folder('sensitivity', *self._trace_stage())
    return packed_file.load(folder / _DIAGONAL).tree

  def _second_order(self, score: Callable[..., Scores], curvature) -> Scores:
    _, stderr, _ = self.traces()
    return score(
      curvature, self._params, self._quantize, self._widths(), stderr=stderr
    )

  def random_scores(self, rng: np.random.Generator) -> Scores:
    """Returns scores of which only sizes and widths mean something.

    Without sizes a large tensor would get next to nothing, which no metric
    needs any knowledge to do better.
    """
    widths, params = self._widths(), trees.weights(self._params)
    weights = np.exp(rng.normal(0, 1, len(widths)))
    return {
      n: {b: float(weight) * params[n].size * 4.0**-b for b in of}
      for (n, of), weight in zip(widths.items(), weights)
    }

  def ready(self, metric: str) -> bool:
    """Whether scores need no work beyond reading and rounding."""
    if not self.stages.float_done():
      return False
    folder = self.stage_folder(metric)
    return folder is None or (folder / RESULT).exists()

  def stage_folder(self, metric: str) -> pathlib.Path | None:
    """Returns where a metric's scores are kept; None for those that are not.

    Args:
      metric: in `METRICS`.
    """
    stage = {
      'trace': self._trace_stage,
      'diagonal': self._trace_stage,
      'kl': self._kl_stage,
      'search': self._search_stage,
    }.get(metric)
    return self.stages.folder('sensitivity', *stage()) if stage else None

  def budget(self, point: Point) -> float:
    """Returns the bytes that all tensors may take together.

    Args:
      point: whole bits, whose bytes they are; or the file's size, as a ratio
        to all weights in float32 such as '16x' or in bytes such as '300000B',
        of which the vocabulary and what stays in floating point is taken off.

    Raises:
      ValueError: saying what a point may be.
    """
    number, unit = _read_point(point, self.config.choices)
    if unit == 'bits':
      return sum(of[int(number)] for of in self.sizes().values())
    return self._file_size(number, unit, self._params) - self._rest()

  def _file_size(self, number: float, unit: str, like: Any) -> float:
    if unit == 'B':
      return number
    return 4 * sum(map(np.size, jax.tree.leaves(like))) / number

  @functools.cache  # noqa: B019
  def _rest(self) -> float:
    """Bytes of a file that are not its tensors'."""
    bits = max(self.config.choices)
    sizes = self.sizes()
    file = self._file_of(dict.fromkeys(sizes, bits))
    return file - sum(of[bits] for of in sizes.values())

  def _file_of(self, bits: Mapping[str, int], like: Any = None) -> int:
    """Bytes of a file with these widths.

    Args:
      bits: of every tensor.
      like: params; None for the float model's.
    """
    params = self._params if like is None else like
    named = {
      n: _roughly(w, bits[n], self._rows(n))
      for n, w in trees.weights(params).items()
    }
    return self.stages.file_bytes(trees.replace(params, named))

  def check_sizes(self, points: Iterable[Point]) -> None:
    """Raises InfeasibleError if a point asks for less than any file has.

    Shapes and vocabulary say so, before anything is trained.

    Args:
      points: those that will be worked for.
    """
    rng, init = np.random.default_rng(0), self.stages.model.init
    # Of equal tensors a file keeps one, which may happen to what stays in
    # floating point.
    zeros = jax.tree.map(
      lambda x: np.zeros(x.shape, x.dtype),
      jax.eval_shape(init, jax.random.key(0)),
    )
    named = {
      n: rng.normal(size=w.shape).astype(w.dtype)
      for n, w in trees.weights(zeros).items()
    }
    like = trees.replace(zeros, named)
    for point in points:
      if isinstance(point, str):
        self._check_size(point, like)

  def _check_size(self, point: Point, like: Any) -> None:
    size = self._file_size(*_read_point(point, self.config.choices), like)
    narrowest = min(self.config.choices)
    least = self._file_of(dict.fromkeys(trees.weights(like), narrowest), like)
    if size < least:
      raise sensitivity.InfeasibleError(
        f'config.points has {point!r}, a file of {size:,.0f} bytes; the '
        f'smallest, all tensors at {narrowest} bits, has {least:,}, which is '
        f'{self._file_size(1.0, "x", like) / least:.1f}x'
      )

  def allocation(self, metric: str, point: Point) -> sensitivity.Allocation:
    """Returns the best bits by a metric in the bytes of a point.

    Raises:
      InfeasibleError: if no choice of bits fits.
    """
    number, unit = _read_point(point, self.config.choices)
    scores, sizes, budget = (
      self.scores(metric),
      self.sizes(),
      self.budget(point),
    )
    if unit == 'bits':
      return sensitivity.allocate(scores, sizes, budget)
    self._check_size(point, self._params)
    size = self._file_size(number, unit, self._params)
    found = sensitivity.allocate(scores, sizes, budget)
    # Headers grow a little with the number of different widths.
    while (excess := self._file_of(found.bits) - size) > 0:
      budget -= excess
      found = sensitivity.allocate(scores, sizes, budget)
    return found

  def about(self, metric: str, point: Point) -> dict[str, Any]:
    """Returns what an allocation depends on, beside the float model.

    Args:
      metric: in `METRICS`.
      point: what it may take.
    """
    section = self.config.sensitivity.to_dict()
    del section['allocations']  # that predictions are held against
    return {
      'metric': metric,
      'point': point,
      'choices': self.config.choices,
      'sensitivity': section,
    }

  def windows(self, dev: bool = False, factor: int = 1) -> list[np.ndarray]:
    """Returns windows of the text: of training, where scores come from, or not.

    Args:
      dev: of the development text.
      factor: as many times the windows of a score.
    """
    section = self.config.sensitivity
    corpora = self.stages.corpora
    batches = text_windows.TrainBatches(
      (corpora.dev if dev else corpora.train).ids_N,
      section.batch_size,
      self.config.data.length,
      seed=self.config.seed + 1,
    )
    return [batches(i) for i in range(factor * section.batches)]

  def quantized(self, bits: Mapping[str, int]) -> Any:
    """Returns the float model's weights, each rounded to its bits."""
    views = {
      name: self._quantize(name, w, bits[name])
      for name, w in trees.weights(self._params).items()
    }
    return trees.replace(self._params, views)

  def _quantize(self, name: str, w: jax.Array, bits: int) -> jax.Array:
    """A tensor as the experiment's tables would have it, without training."""
    if (name, bits) not in self._views:
      book = methods.fit_centroids(w, 2**bits, self._rows(name))
      self._views[name, bits] = codebook.snap(w, book)
    return self._views[name, bits]

  def _rows(self, name: str) -> bool:
    """Whether the rows of a tensor have a scale each."""
    return lm_stages.has_row_scales(self.config.row_scales, name)

  @functools.cached_property
  def _mean_nll(self):
    return lambda params, tokens: self.stages.model.nll(params, tokens).mean()

  def _widths(self) -> dict[str, tuple[int, ...]]:
    return {name: tuple(of) for name, of in self.sizes().items()}

  def _divergences(self) -> dict[str, Any]:
    def work(folder):
      del folder
      found = sensitivity.kl_sensitivity(
        lambda params, tokens: self.stages.model.logits(params, tokens[:, :-1]),
        self._params,
        self.windows(),
        self._quantize,
        self._widths(),
      )
      return {'scores': found.scores, 'stderr': found.stderr}

    name, config = self._kl_stage()
    return self.stages.stage('sensitivity', name, config, work)

  def _search(self) -> Scores:
    """Scores from mixtures that learn beside the weights."""
    self.stages.float_model()  # The key knows it, and its seconds are its own.
    name, config = self._search_stage()
    section = self.config.sensitivity
    choices = tuple(self.config.choices)
    temperature = optax.exponential_decay(1.0, config.train.steps, 0.1)
    search = sensitivity.search(
      max(choices),
      choices=choices,
      price=section.search_price,
      temperature=temperature,
      gumbel=True,
    )

    def work(folder):
      outcome = self.stages.fit(
        folder,
        config,
        search,
        self._params,
        learned_tx=optax.adam(section.search_rate),
      )
      state = jax.device_get(outcome.state)
      found = sensitivity.search_scores(
        max(choices), state.params, state.quantizer, choices=choices
      )
      return {'scores': found}

    found = self.stages.stage('sensitivity', name, config, work)
    return _int_keys(found['scores'])

  def _trace_stage(self) -> tuple[str, ml_collections.ConfigDict]:
    config = self._section('rtol', 'max_probes')
    config.keeps = _DIAGONAL
    del config.choices  # no curvature depends on them
    return 'trace', config

  def _kl_stage(self) -> tuple[str, ml_collections.ConfigDict]:
    config = self._section()
    if self.config.row_scales:
      config.row_scales = self.config.row_scales
    return 'kl', config

  def _search_stage(self) -> tuple[str, ml_collections.ConfigDict]:
    config = self.stages.finetuning()
    section = self.config.sensitivity
    config.train.steps = round(section.search_share * self.config.train.steps)
    config.method = ml_collections.ConfigDict(
      {
        'name': 'search',
        'price': section.search_price,
        'rate': section.search_rate,
        'choices': self.config.choices,
      }
    )
    return 'search', config

  @functools.cached_property
  def _params(self):
    return self.stages.float_params()

  def _section(self, *names: str) -> ml_collections.ConfigDict:
    """What a stage depends on."""
    config = self.stages.float_config.copy_and_resolve_references()
    config.starts_from = self.stages.float_hash()
    section = self.config.sensitivity
    config.sensitivity = ml_collections.ConfigDict(
      {n: section[n] for n in ('batches', 'batch_size', *names)}
    )
    config.choices = self.config.choices
    return config


def check_points(config: ml_collections.ConfigDict) -> None:
  """Raises ValueError unless all that a config asks for can be read."""
  if any(type(b) is not int or not 1 <= b <= 8 for b in config.choices):
    raise ValueError(
      f'config.choices is {tuple(config.choices)}: expected 1..8 bits'
    )
  for point in config.points:
    _read_point(point, config.choices)
  for bits in config.easy_points:
    if not isinstance(bits, int) or not 1 <= bits <= 8:
      raise ValueError(f'config.easy_points has {bits!r}: expected 1..8 bits')
  for method, metrics in config.mixed.items():
    unknown = sorted(set(metrics) - set(METRICS))
    known = method in methods.METHODS and methods.METHODS[method].trains
    if unknown or not known or method.startswith('float'):
      raise ValueError(
        f'config.mixed has {method!r} by {", ".join(metrics)}: expected a '
        f'method that trains and metrics of {", ".join(METRICS)}'
      )
    try:
      _make_mixed(method, config)
    except ValueError as e:
      raise ValueError(f'config.mixed has {method!r}: {e}') from None


def _make_mixed(method: str, config: ml_collections.ConfigDict) -> None:
  """Makes a method with bits of each tensor, for the errors that has."""
  rules = rule_lib.as_rules(min(config.choices))
  run = methods.Run(100, lambda _: 1e-3)
  row_rules = rules if config.row_scales else ()
  methods.make(method, 0, rules, run, row_rules=row_rules)


def _read_point(point: Point, choices: Sequence[int]) -> tuple[float, str]:
  """Returns the number and its unit: bits, x or B."""
  if isinstance(point, int) and point in choices:
    return point, 'bits'
  form = re.fullmatch(r'(\d+(?:\.\d+)?)(x|B)', str(point))
  if form is None or not float(form[1]):
    raise ValueError(
      f'config.points has {point!r}: expected bits out of config.choices '
      f"{tuple(choices)}, a ratio to float32 such as '16x', or bytes of the "
      "file such as '300000B'"
    )
  return float(form[1]), form[2]


def _roughly(w: jax.Array, bits: int, rows: bool) -> qtensor.QTensor:
  """A tensor on the simplest grid, which costs what any grid of its width does.

  Args:
    w: the tensor.
    bits: its width.
    rows: whether each of its rows has a scale.
  """
  x = np.asarray(w, np.float32)
  top = np.max(np.abs(x), initial=0.0) or 1.0
  codes = np.rint((x / top + 1) / 2 * (2**bits - 1)).astype(np.uint8)
  book = np.arange(2**bits) - 2 ** (bits - 1)
  scale = np.ones([len(x)] + [1] * (x.ndim - 1) if rows else (), np.float32)
  return qtensor.QTensor(codes, scale, book.astype(np.int8), 2**bits)


def _bytes(w: jax.Array, bits: int, rows: bool) -> float:
  """What a tensor adds to a file, at this width."""
  empty = packed_file.packed_bytes({})
  return float(packed_file.packed_bytes({'w': _roughly(w, bits, rows)}) - empty)


def _int_keys(scores: Mapping[str, Mapping[str, float]]) -> Scores:
  """Scores as they were before JSON made text of the widths."""
  return {
    name: {int(b): x for b, x in of.items()} for name, of in scores.items()
  }
