"""Lloyd-Max centroids: time and distortion against k-means and exact solvers.

Part 1: 25 M Gaussian weights, 32 centroids, against scikit-learn's KMeans and
MiniBatchKMeans (one start each; KMeans stops after 20 iterations, which already
take a minute) and an exact solver in one run. At that size the exact solver
brackets the optimum: it sorts, cuts the weights into blocks, and solves the
blocks by exact dynamic programming twice, once as they are (cuts only between
blocks: no better than the optimum) and once without counting the blocks that
hold a cut (no worse than the optimum).

Part 2: distortion over distributions and n = 1..8, each relative to the exact
optimum of the same 20,000 weights; and over trained ones, the 4,096 of the
inner layer of the toy comparison's network.
"""

import time
import warnings

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from sklearn import cluster, exceptions

from experiments import results, toy_methods, usage
from s8bqat_jax.quantizers import codebook, lloyd_max

_SIZE = flags.DEFINE_integer('size', 25_000_000, 'Weights in part 1.')
_LEVELS = flags.DEFINE_integer('levels', 32, 'Centroids in part 1.')
_BLOCKS = flags.DEFINE_integer('blocks', 1 << 18, 'Blocks in part 1.')
_SMALL = 20_000


class _Blocks:
  """Sorted weights in blocks, with float64 sums before each block."""

  def __init__(self, w, blocks):
    x = np.sort(w).astype(np.float64)
    x -= x.mean()
    starts = np.linspace(0, len(x), min(blocks, len(x)) + 1).astype(int)[:-1]
    self.size = len(x)
    self.count = np.append(starts, len(x)).astype(np.float64)
    self.first = np.append(0, np.cumsum(np.add.reduceat(x, starts)))
    self.second = np.append(0, np.cumsum(np.add.reduceat(x * x, starts)))

  def cost(self, a, b):
    """Squared error of blocks a to b - 1 about their mean; 0 if b <= a."""
    a = np.minimum(a, b)
    total = self.first[b] - self.first[a]
    count = np.maximum(self.count[b] - self.count[a], 1)
    return np.maximum(self.second[b] - self.second[a] - total**2 / count, 0)


def _exact(blocks, levels, skip):
  """Least mean squared error of `levels` runs of blocks (Wu 1991).

  The best last cut is monotone in the end of the prefix: each layer is solved
  by divide and conquer, one depth at a time. With `skip` 1 the block after
  each cut is free of charge.
  """
  n = len(blocks.count) - 1
  best = blocks.cost(np.zeros(n + 1, int), np.arange(n + 1))
  for _ in range(levels - 1):
    new = np.empty(n + 1)
    a, b, low, high = (np.array([v]) for v in (0, n, 0, n))
    while len(a):
      end = (a + b) // 2
      width = np.minimum(high, end) - low + 1
      offset = np.cumsum(width) - width
      cut = np.arange(width.sum()) - np.repeat(offset - low, width)
      value = best[cut] + blocks.cost(cut + skip, np.repeat(end, width))
      new[end] = np.minimum.reduceat(value, offset)
      at = np.arange(len(value))
      at = np.where(value == np.repeat(new[end], width), at, len(value))
      found = cut[np.minimum.reduceat(at, offset)]
      a, b, low, high = (
        np.concatenate(pair)
        for pair in ((a, end + 1), (end - 1, b), (low, found), (found, high))
      )
      a, b, low, high = (v[a <= b] for v in (a, b, low, high))
    best = new
  return best[n] / blocks.size


def _distortion(w, centroids):
  """Mean squared error in float64 of each weight's nearest centroid."""
  c = np.sort(np.asarray(centroids, np.float64).ravel())
  middle = ((c[1:] + c[:-1]) / 2).astype(np.float32)
  total = 0.0
  for part in np.array_split(w, max(1, len(w) // 1_000_000)):
    total += np.sum((part - c[np.searchsorted(middle, part)]) ** 2)
  return total / len(w)


def _large():
  size, levels = _SIZE.value, _LEVELS.value
  w = np.random.default_rng(0).standard_normal(size, np.float32)
  device = jnp.asarray(w)
  seconds, found = {}, {}

  def ours(grid):
    return lambda: codebook.centroids(
      jax.block_until_ready(lloyd_max.fit(device, levels, grid=grid))
    )

  def peer(model):
    return lambda: model.fit(w[:, None]).cluster_centers_

  runs = {
    'ours, free': ours(None),
    'ours, int8 grid': ours('int8'),
    'scikit-learn KMeans': peer(
      cluster.KMeans(levels, n_init=1, max_iter=20, random_state=0)
    ),
    'scikit-learn MiniBatchKMeans': peer(
      cluster.MiniBatchKMeans(levels, n_init=1, random_state=0)
    ),
  }
  first = {}
  for name, run in runs.items():
    if name.startswith('ours'):  # the first call compiles
      start = time.perf_counter()
      run()
      first[name] = time.perf_counter() - start
    start = time.perf_counter()
    with warnings.catch_warnings():
      warnings.simplefilter('ignore', exceptions.ConvergenceWarning)
      found[name] = run()
    seconds[name] = time.perf_counter() - start

  start = time.perf_counter()
  blocks = _Blocks(w, _BLOCKS.value)
  upper = _exact(blocks, levels, skip=0)
  seconds['exact, bracket'] = time.perf_counter() - start
  lower = _exact(blocks, levels, skip=1)
  rows = []
  for name in seconds:
    if name == 'exact, bracket':
      metrics = {'distortion': upper, 'least_possible': lower}
    else:
      metrics = {'distortion': float(_distortion(w, found[name]))}
    rows.append(
      {
        'system': f'Gaussian, {size:,} weights, {levels} centroids',
        'method': name,
        'metrics': {
          'seconds': seconds[name],
          'first_call_seconds': first.get(name),
          **metrics,
          'at_most_times_optimum': metrics['distortion'] / lower,
        },
      }
    )
  return rows


def _trained():
  """Returns the weights of a layer that has trained for some seconds."""
  train = toy_methods.trainer(
    None, toy_methods.FLOAT_STEPS, toy_methods.FLOAT_PEAK
  )
  params, _ = train(toy_methods.make_task(0), toy_methods.init_params(0), 0)
  return np.asarray(params['layer_1']['kernel']).ravel()


def _small():
  rng = np.random.default_rng(0)
  n = _SMALL
  samples = {
    'Gaussian': rng.standard_normal(n),
    'Laplacian': rng.laplace(size=n),
    'bimodal': rng.choice([-1, 1], n) + 0.1 * rng.standard_normal(n),
    'sparse': rng.standard_normal(n) * (rng.random(n) < 0.2),
    'Student t, 3': rng.standard_t(3, n),
    'trained': _trained(),
  }
  rows = []
  for name, sample in samples.items():
    w = sample.astype(np.float32)
    blocks = _Blocks(w, len(w))
    for bits in range(1, 9):
      exact = _exact(blocks, 2**bits, skip=0)
      books = (
        lloyd_max.fit(jnp.asarray(w), 2**bits, grid=None),
        lloyd_max.fit(jnp.asarray(w), 2**bits, grid='int8'),
      )
      free, grid = (float(_distortion(w, codebook.centroids(b))) for b in books)
      rows.append(
        {
          'system': name,
          'method': 'Lloyd-Max',
          'bits': bits,
          'metrics': {
            'exact': exact / w.var(),
            'free_over_exact': free / exact,
            'int8_grid_over_exact': grid / exact,
          },
        }
      )
  return rows


def main(argv):
  usage.no_arguments(argv)
  large, small = _large(), _small()
  results.write('lloyd_max', [*large, *small])
  print(results.table(large))
  print(
    results.table(
      small,
      {
        'system': '',
        'bits': '',
        'exact': '.6f',
        'free_over_exact': '.6f',
        'int8_grid_over_exact': '.4f',
      },
    )
  )


if __name__ == '__main__':
  app.run(main)
