"""Lossless entropy coding of codes: range asymmetric numeral systems (rANS).

NPU compilers compress weights on the way to memory too, so the entropy-coded
size is a second, honest size beside the packed one. The model is each tensor's
own histogram; many interleaved coders run side by side as NumPy vectors.

A stream is [levels bits: which codes occur] [their frequencies, uint16] [lanes
states, uint32] [words, uint16], all little-endian. Code i belongs to lane i mod
lanes. A tensor may have 256 levels and use 20: it pays for those.

References:
  Duda, "Asymmetric numeral systems", arXiv 1311.2540, 2013.
"""

from __future__ import annotations

import numpy as np

_PRECISION = 14  # frequencies sum to 2^14
_LOWEST = 1 << 16  # a state lies in [2^16, 2^32) and moves words of 16 bits
_CODES_PER_LANE = 2048
_MAX_LANES = 8192


def encode(codes: np.ndarray, levels: int) -> np.ndarray:
  """Encodes codes by their own histogram.

  Args:
    codes: uint8 of any shape, each below `levels`.
    levels: 2..256.

  Returns:
    The stream, uint8; `decode` needs `levels` and the number of codes too.
  """
  flat = codes.reshape(-1)
  if not flat.size:
    return np.zeros(0, np.uint8)
  counts = np.bincount(flat, minlength=levels)
  frequencies = _frequencies(counts)
  starts = np.cumsum(frequencies) - frequencies
  # The cheapest code fills the last row.
  lanes = _lanes(flat.size)
  rows = np.pad(
    flat, (0, -flat.size % lanes), constant_values=counts.argmax()
  ).reshape(-1, lanes)
  states = np.full(lanes, _LOWEST, np.uint64)
  words = []
  for row in rows[::-1]:  # what is encoded last is decoded first
    frequency, start = frequencies[row], starts[row]
    full = states >= frequency << np.uint64(32 - _PRECISION)
    words.append((states[full] & np.uint64(0xFFFF)).astype('<u2'))
    states = np.where(full, states >> np.uint64(16), states)
    quotient, rest = np.divmod(states, frequency)
    states = (quotient << np.uint64(_PRECISION)) + rest + start
  occurs = frequencies > 0
  parts = [
    np.packbits(occurs, bitorder='little'),
    frequencies[occurs].astype('<u2'),
    states.astype('<u4'),
    *words[::-1],
  ]
  return np.concatenate([part.view(np.uint8) for part in parts])


def decode(stream: np.ndarray, levels: int, size: int) -> np.ndarray:
  """Inverts `encode`.

  Args:
    stream: uint8.
    levels: 2..256.
    size: how many codes.

  Returns:
    uint8 [size].

  Raises:
    ValueError: the stream is not one of `size` codes of `levels` levels.
  """
  if not size:
    if stream.size:
      raise ValueError(f'no codes, but a stream of {stream.size} bytes')
    return np.zeros(0, np.uint8)
  lanes = _lanes(size)
  flags = -(-levels // 8)
  occurs = np.unpackbits(stream[:flags], bitorder='little').astype(bool)
  if occurs[levels:].any():
    raise ValueError(f'the stream has codes above {levels - 1}')
  table = flags + 2 * int(occurs.sum())
  head = table + 4 * lanes
  if stream.size < head or (stream.size - head) % 2:
    raise ValueError(
      f'a stream of {size} codes has {head} bytes and whole words after them, '
      f'got {stream.size} bytes'
    )
  frequencies = np.zeros(levels, np.uint64)
  frequencies[occurs[:levels]] = stream[flags:table].view('<u2')
  if frequencies.sum() != 1 << _PRECISION:
    raise ValueError(
      f'frequencies must sum to {1 << _PRECISION}, got {frequencies.sum()}'
    )
  states = stream[table:head].view('<u4').astype(np.uint64)
  words = stream[head:].view('<u2').astype(np.uint64)
  starts = np.cumsum(frequencies) - frequencies
  code_of_slot = np.repeat(
    np.arange(levels, dtype=np.uint8), frequencies.astype(int)
  )
  rows = np.empty((-(-size // lanes), lanes), np.uint8)
  at = 0
  for row in rows:
    slot = states & np.uint64((1 << _PRECISION) - 1)
    row[:] = code_of_slot[slot]
    states = frequencies[row] * (states >> np.uint64(_PRECISION))
    states += slot - starts[row]
    empty = np.flatnonzero(states < _LOWEST)
    if at + empty.size > words.size:
      raise ValueError('the stream ends too early')
    states[empty] = states[empty] << np.uint64(16) | words[at : at + empty.size]
    at += empty.size
  if at != words.size or np.any(states != _LOWEST):
    raise ValueError('the stream does not end where its codes do')
  return rows.reshape(-1)[:size]


def _lanes(size: int) -> int:
  """Few enough that the lanes' states add below 0.02 bits to a code."""
  return min(max(size // _CODES_PER_LANE, 1), _MAX_LANES)


def _frequencies(counts: np.ndarray) -> np.ndarray:
  """Returns uint64 frequencies of sum 2^14, none of them 0 that occurs."""
  total = 1 << _PRECISION
  exact = counts * (total / counts.sum())
  frequencies = np.where(counts > 0, np.maximum(np.floor(exact), 1), 0)
  frequencies = frequencies.astype(np.int64)
  # Give or take the rest where it changes the code length least.
  while (rest := total - frequencies.sum()) != 0:
    able = frequencies > (1 if rest < 0 else 0)
    error = np.where(
      able, (exact - frequencies) / np.maximum(exact, 1), -np.inf
    )
    if rest < 0:
      error = np.where(able, -error, -np.inf)
    chosen = np.argsort(-error)[: min(abs(rest), able.sum())]
    frequencies[chosen] += np.sign(rest)
  return frequencies.astype(np.uint64)
