"""Codes as bytes: n bits each, or five ternary codes to a byte.

Codes are one stream of bits, least significant first: code i fills the bits
n i to n i + n - 1, and bit j is bit j mod 8 of byte j // 8. So 8 codes fill n
bytes exactly. Three levels would waste a quarter of two bits; five of them make
3^5 = 243 combinations, one byte, the first code the least significant digit.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Array = Any  # NumPy or JAX

_TRITS = 5
_POWERS = np.array([3**i for i in range(_TRITS)], np.uint8)
# The five codes in each byte; 13 of 256 bytes stand for none.
_CODES = (np.arange(3**_TRITS)[:, None] // _POWERS % 3).astype(np.uint8)


def packed_size(size: int, levels: int) -> int:
  """Returns how many bytes `size` codes of `levels` levels pack into.

  Args:
    size: how many codes.
    levels: 2..256.

  Returns:
    Bytes, rounded up.
  """
  if levels == 3:
    return -(-size // _TRITS)
  return -(-size * (levels - 1).bit_length() // 8)


def pack(codes: Array, levels: int) -> Array:
  """Packs codes into bytes.

  Args:
    codes: uint8 of any shape, each below `levels`; NumPy or JAX.
    levels: 2..256.

  Returns:
    uint8 [packed_size], of the same library; spare bits are zero.
  """
  xp = jnp if isinstance(codes, jax.Array) else np
  flat = codes.reshape(-1)
  if not flat.size:
    return flat
  if levels == 3:
    digits = xp.pad(flat, (0, -flat.size % _TRITS)).reshape(-1, _TRITS)
    return (digits * xp.asarray(_POWERS)).sum(1, dtype=np.uint8)
  bits = (levels - 1).bit_length()
  if bits == 8:
    return flat
  if xp is jnp:
    ones = jnp.unpackbits(flat[:, None], axis=1, count=bits, bitorder='little')
    return jnp.packbits(ones.reshape(-1), bitorder='little')
  words = np.zeros(-(-flat.size // 8), '<u8')
  for i in range(8):
    part = flat[i::8].astype('<u8')
    words[: part.size] |= part << np.uint64(i * bits)
  packed = words.view(np.uint8).reshape(-1, 8)[:, :bits].reshape(-1)
  return packed[: packed_size(flat.size, levels)]


def unpack(packed: Array, levels: int, size: int) -> Array:
  """Inverts `pack`.

  Args:
    packed: uint8 [packed_size(size, levels)].
    levels: 2..256.
    size: how many codes.

  Returns:
    uint8 [size], of the same library.

  Raises:
    ValueError: if `packed` has another length or, in NumPy, a byte that no
      five ternary codes give.
  """
  if packed.shape != (packed_size(size, levels),):
    raise ValueError(
      f'{size} codes of {levels} levels take shape '
      f'({packed_size(size, levels)},), got {packed.shape}'
    )
  if not size:
    return packed
  xp = jnp if isinstance(packed, jax.Array) else np
  if levels == 3:
    if xp is jnp:
      return jnp.asarray(_CODES)[packed].reshape(-1)[:size]
    if packed.max() >= len(_CODES):
      raise ValueError(
        f'byte {packed.max()} stands for no five ternary codes; the highest '
        f'that does is {len(_CODES) - 1}'
      )
    return _CODES.take(packed, axis=0).reshape(-1)[:size]
  bits = (levels - 1).bit_length()
  if bits == 8:
    return packed
  if xp is jnp:
    ones = jnp.unpackbits(packed, count=size * bits, bitorder='little')
    ones = ones.reshape(size, bits)
    return jnp.packbits(ones, axis=1, bitorder='little')[:, 0]
  padded = np.zeros(-(-size // 8) * bits, np.uint8)
  padded[: packed.size] = packed
  eights = np.zeros((-(-size // 8), 8), np.uint8)
  eights[:, :bits] = padded.reshape(-1, bits)
  words = eights.reshape(-1).view('<u8')
  codes = np.empty((len(words), 8), np.uint8)
  for i in range(8):
    codes[:, i] = (words >> np.uint64(i * bits)) & np.uint64((1 << bits) - 1)
  return codes.reshape(-1)[:size]
