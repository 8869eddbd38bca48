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
    todo = [(0, n, 0, n)]  # prefixes a..b have their last cut in low..high
    while todo:
      a, b, low, high = np.array(todo).T
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
      todo = [
        part
        for i in range(len(a))
        for part in (
          (a[i], end[i] - 1, low[i], found[i]),
          (end[i] + 1, b[i], found[i], high[i]),
        )
        if part[0] <= part[1]
      ]
    best = new
  return best[n] / n


def on_grid(w, levels, scale):
  """Least mean squared error of `levels` values of scale * (-128..127)."""
  x = np.sort(np.asarray(w, np.float64).ravel()) / float(scale)
  grid = np.arange(-128, 128)
  up = np.zeros((256, 256))  # cost of the weights between neighbours i < j
  for i in range(256):
    for j in range(i + 1, 256):
      between = x[np.searchsorted(x, grid[i]) : np.searchsorted(x, grid[j])]
      up[i, j] = np.sum(
        np.minimum(np.abs(between - grid[i]), np.abs(between - grid[j])) ** 2
      )
  best = np.array([np.sum((x[x < g] - g) ** 2) for g in grid])
  tail = np.array([np.sum((x[x >= g] - g) ** 2) for g in grid])
  up[np.tril_indices(256)] = np.inf
  for _ in range(levels - 1):
    best = np.min(best[:, None] + up, axis=0)
  return np.min(best + tail) / len(x) * float(scale) ** 2


def distortion(w, centroids):
  """Mean squared error of each weight's nearest centroid, by bisection."""
  x = np.asarray(w, np.float64).ravel()
  c = np.sort(np.asarray(centroids, np.float64))
  nearest = c[np.searchsorted((c[1:] + c[:-1]) / 2, x)]
  return np.mean((x - nearest) ** 2)
