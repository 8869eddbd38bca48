"""Files that are damaged, foreign or nonsense: always a clear refusal."""

import hashlib
import random
import re

import flax.struct
import jax
import numpy as np
import pytest
import safetensors.numpy
from flax import nnx

from s8bqat_jax.artifacts import container, packed_file, qtensor
from tests.artifacts import qtensors


def test_refusals_name_the_file_and_the_reason(tmp_path):
  path = tmp_path / 'model.safetensors'
  data = packed_file.serialize(qtensors.tree())
  foreign = safetensors.numpy.save({'a': np.ones(3, np.float32)})
  cases = {
    b'': 'not a whole safetensors file',
    b'PK\x03\x04 a zip archive, for example': 'not a whole safetensors file',
    (9).to_bytes(8, 'little') + b'{"a": nul': 'header is not JSON',
    (40_000).to_bytes(8, 'little') + b'[' * 40_000: 'header is not JSON',
    foreign: 'not written by s8bqat_jax',
    data[:-1]: 'cut short or changed',
    data[:100]: 'not a whole safetensors file',
    data + b'\0': 'cut short or changed',
  }
  for content, reason in cases.items():
    path.write_bytes(content)
    with pytest.raises(packed_file.PackedFileError, match=reason) as error:
      packed_file.load(path)
    assert str(error.value).startswith(f'{path}: ')
  other = container.dump({}, {'format': 'something else'})
  with pytest.raises(packed_file.PackedFileError, match='something else'):
    packed_file.deserialize(other)


def _mutate(data, rng):
  """Returns `data` damaged in one of the ways files are."""
  out = bytearray(data)
  at = rng.randrange(len(out))
  kind = rng.randrange(7)
  if kind == 0:
    out[at] ^= 1 << rng.randrange(8)
  elif kind == 1:
    out[at : at + 8] = rng.randbytes(8)
  elif kind == 2:
    del out[at:]
  elif kind == 3:
    del out[at : at + rng.randrange(1, 9)]
  elif kind == 4:
    out[at:at] = rng.randbytes(rng.randrange(1, 9))
  elif kind == 5:
    to = rng.randrange(len(out))
    out[at], out[to] = out[to], out[at]
  else:
    out[at : at + 64] = bytes(64)
  return bytes(out)


@pytest.mark.parametrize('entropy_code', [False, True])
def test_five_thousand_mutations_each_are_all_refused(entropy_code):
  rng = random.Random(0)
  data = packed_file.serialize(qtensors.tree(), entropy_code=entropy_code)
  refused = 0
  for _ in range(5000):
    mutated = _mutate(data, rng)
    if mutated == data:
      continue
    with pytest.raises(packed_file.PackedFileError):
      packed_file.deserialize(mutated)
    refused += 1
  assert refused > 4500


def _reseal(data):
  """Gives a file whose header was damaged a valid checksum."""
  end = 8 + int.from_bytes(data[:8], 'little')
  zeros = b'0' * 64
  text = re.sub(rb'"sha256":"[^"]*"', b'"sha256":"%s"' % zeros, data[8:end])
  whole = len(text).to_bytes(8, 'little') + text + data[end:]
  digest = hashlib.sha256(whole).hexdigest().encode()
  return whole.replace(zeros, digest, 1)


def test_a_valid_checksum_does_not_excuse_nonsense():
  """Whatever the header says, loading ends in a tree or in a clear refusal."""
  rng = random.Random(1)
  data = packed_file.serialize(qtensors.tree(), entropy_code=True)
  qtensors.assert_same_tree(
    packed_file.deserialize(_reseal(data)).tree, qtensors.tree()
  )
  loaded = refused = 0
  for _ in range(1500):
    at = rng.randrange(8, len(data))
    mutated = bytearray(data)
    mutated[at] = rng.choice(b'0123456789",:{}[]-eE\\abc\xff')
    try:
      packed_file.deserialize(_reseal(bytes(mutated)))
      loaded += 1
    except packed_file.PackedFileError:
      refused += 1
  assert loaded and refused > 500


@pytest.mark.parametrize(
  'old, new, reason',
  [
    (b'"shape":[3]', b'"shape":[3.]', 'not JSON'),
    (b'"shape":[3]', b'"shape":[3.5]', 'described wrongly'),
    (b'"shape":[3]', b'"shape":["3"]', 'described wrongly'),
    (b'"shape":[3]', b'"shape":[true,3]', 'described wrongly'),
    (b'"shape":[3]', b'"shape":[-1,-3]', 'described wrongly'),
    (b'[0,12]', b'[-12,0]', 'described wrongly'),
    (b'[12,24]', b'[0,12]', 'overlap'),
    (b'"b":{', b'"a":{', 'twice'),
  ],
)
def test_a_header_is_read_as_the_format_says(old, new, reason):
  ab = {name: np.arange(3, dtype=np.float32) + ord(name) for name in 'ab'}
  data = packed_file.serialize(ab)
  at = 8 + int.from_bytes(data[:8], 'little')
  text = data[8:at].replace(old, new, 1)
  assert text != data[8:at]
  resealed = _reseal(len(text).to_bytes(8, 'little') + text + data[at:])
  with pytest.raises(packed_file.PackedFileError, match=reason):
    packed_file.deserialize(resealed)


def test_a_ternary_byte_above_242_is_refused():
  codes = np.array([[1, 0, -1, 1, 0]], np.int8)
  tree = {'a': qtensor.QTensor(codes, np.float32(1), None, 3)}
  data = packed_file.serialize(tree)
  assert (
    packed_file.deserialize(data).tree['a'].codes.tolist() == codes.tolist()
  )
  # Digits 2, 1, 0, 2, 1 and then 250, under a checksum of its own.
  byte = bytes([2 + 3 + 0 + 27 * 2 + 81])
  assert data.count(byte, 8 + int.from_bytes(data[:8], 'little')) == 1
  at = data.rindex(byte)
  with pytest.raises(packed_file.PackedFileError, match='byte 250'):
    packed_file.deserialize(_reseal(data[:at] + b'\xfa' + data[at + 1 :]))


def test_codes_in_the_layout_of_old_files_are_refused():
  """Streams of `rans` had another layout: they must not be read as today's."""
  tree = {'a': qtensors.codes((200, 20))}
  data = packed_file.serialize(tree, entropy_code=True)
  at = 8 + int.from_bytes(data[:8], 'little')
  text = data[8:at].replace(b' rans2 ', b' rans ')
  assert len(text) < at - 8
  # As long as before: tensors start at a multiple of 8.
  text += b' ' * (at - 8 - len(text))
  old = _reseal(len(text).to_bytes(8, 'little') + text + data[at:])
  with pytest.raises(packed_file.PackedFileError, match="coding 'rans'"):
    packed_file.deserialize(old)


def test_leaves_without_numbers_or_names_are_refused():
  with pytest.raises(ValueError, match="tensor 'rng/key': expected an array"):
    packed_file.serialize({'rng': {'key': jax.random.key(0)}})

  @flax.struct.dataclass
  class Layer:
    kernel: np.ndarray

  # Only boxes vanish; the name of a field would be lost.
  with pytest.raises(ValueError, match="tensor 'a': .* got Layer"):
    packed_file.serialize({'a': Layer(np.ones(3, np.float32))})
  boxed = {'a': nnx.Param(np.ones(3, np.float32))}
  tree = packed_file.deserialize(packed_file.serialize(boxed)).tree
  np.testing.assert_array_equal(tree['a'], np.ones(3))
