"""Oracles in float64: exact optimal scalar quantization of small samples."""

import numpy as np


def free(w, levels):
  """Least mean squared error of any `levels` centroids.

  Wu's dynamic program; the best last cut is monotone in the end of the prefix,
  so each layer is solved by divide and conquer, one depth at a time.
  """
  x = np.sort(np.asarray(w, np.float64).ravel())
  x = x - x.mean()
  n = len(x)
  first = np.concatenate([[0.0], np.cumsum(x)])
  second = np.concatenate([[0.0], np.cumsum(x * x)])

  def cost(a, b):
    total = first[b] - first[a]
    return np.maximum(
      second[b] - second[a] - total * total / np.maximum(b - a, 1), 0.0
    )

  best = cost(np.zeros(n + 1, int), np.arange(n + 1))
  for _ in range(levels - 1):
    new = np.empty(n + 1)
    # Columns: prefixes a..b have their last cut in low..high.
    todo = np.array([[0], [n], [0], [n]])
    while todo.size:
      a, b, low, high = todo
      end = (a + b) // 2
      width = np.minimum(high, end) - low + 1
      offset = np.concatenate([[0], np.cumsum(width)[:-1]])
      at = np.arange(width.sum())
      cut = at - np.repeat(offset - low, width)
      value = best[cut] + cost(cut, np.repeat(end, width))
      least = np.minimum.reduceat(value, offset)
      where = np.where(value == np.repeat(least, width), at, len(at))
      found = cut[np.minimum.reduceat(where, offset)]
      new[end] = least
      halves = [(a, end - 1, low, found), (end + 1, b, found, high)]
      todo = np.concatenate(halves, axis=1)
      todo = todo[:, todo[0] <= todo[1]]
    best = new
  return best[n] / n


def on_grid(w, levels, scale):
  """Least mean squared error of `levels` values of scale * (-128..127)."""
  x = np.sort(np.asarray(w, np.float64).ravel()) / float(scale)
  grid = np.arange(-128.0, 128.0)
  sums = [np.concatenate([[0.0], np.cumsum(x**power)]) for power in range(3)]

  def cost(low, high, value):
    """Squared error of the weights in low..high, all sent to one value."""
    ends = np.searchsorted(x, low), np.searchsorted(x, high)
    count, first, second = (s[ends[1]] - s[ends[0]] for s in sums)
    return np.maximum(second - 2 * value * first + value**2 * count, 0.0)

  i, j = grid[:, None], grid
  middle = (i + j) / 2
  # Of the weights between neighbours i < j.
  up = np.where(i < j, cost(i, middle, i) + cost(middle, j, j), np.inf)
  best, tail = cost(-np.inf, grid, grid), cost(grid, np.inf, grid)
  for _ in range(levels - 1):
    best = np.min(best[:, None] + up, axis=0)
  return np.min(best + tail) / len(x) * float(scale) ** 2


def distortion(w, centroids):
  """Mean squared error of each weight's nearest centroid, by bisection."""
  x = np.asarray(w, np.float64).ravel()
  c = np.sort(np.asarray(centroids, np.float64))
  nearest = c[np.searchsorted((c[1:] + c[:-1]) / 2, x)]
  return np.mean((x - nearest) ** 2)
