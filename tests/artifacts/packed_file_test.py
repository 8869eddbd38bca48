import hashlib
import json
import random
import re

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from s8bqat_jax.artifacts import container, packed_file, qtensor
from tests.artifacts import qtensors


def _codes(shape, levels=16, seed=0):
  rng = np.random.default_rng(seed)
  return qtensor.QTensor(
    codes=rng.binomial(levels - 1, 0.5, shape).astype(np.uint8),
    scale=np.float32(0.01),
    codebook=np.sort(rng.permutation(256)[:levels] - 128).astype(np.int8),
    levels=levels,
  )


def _ternary(shape):
  rng = np.random.default_rng(1)
  codes = rng.integers(-1, 2, shape).astype(np.int8)
  return qtensor.QTensor(codes, np.float32(0.3), None, 3)


def _tree():
  return {
    'encoder': {
      'lstm': {'kernel': _codes((24, 10)), 'bias': np.ones(10, np.float32)},
      'norm': {'scale': np.full(5, 1.5, ml_dtypes.bfloat16)},
      'blocks': {0: {'w': _ternary((6, 7))}, 1: {'w': _codes((3,), 2)}},
      'empty': {},
    },
    'steps': np.asarray(7),
    'none yet': np.zeros((0, 4), np.float16),
  }


def _assert_same(a, b):
  if isinstance(a, dict):
    assert a.keys() == b.keys()
    for key in a:
      _assert_same(a[key], b[key])
  elif qtensor.is_qtensor(a):
    qtensors.assert_same(a, b)
  else:
    a, b = np.asarray(a), np.asarray(b)
    assert (a.dtype, a.shape) == (b.dtype, b.shape)
    assert a.tobytes() == b.tobytes()


@pytest.mark.parametrize('entropy_code', [False, True])
def test_a_model_comes_back_exactly(tmp_path, entropy_code):
  path = tmp_path / 'model.safetensors'
  config = {'layers': 2, 'name': 'ü "quoted"', 'nested': {'rate': 0.1}}
  tokenizer = {'kind': 'characters', 'characters': ['a', 'é', '"', '/']}
  size = packed_file.save(
    path,
    _tree(),
    config=config,
    tokenizer=tokenizer,
    entropy_code=entropy_code,
  )
  assert size == path.stat().st_size
  packed = packed_file.load(path)
  _assert_same(packed.tree, _tree())
  assert (packed.config, packed.tokenizer) == (config, tokenizer)
  assert list(tmp_path.iterdir()) == [path]


def test_jax_arrays_and_frozen_defaults(tmp_path):
  tree = jax.tree.map(jnp.asarray, {'q': _codes((4, 4)), 'b': np.ones(3)})
  packed_file.save(tmp_path / 'm', tree)
  packed = packed_file.load(tmp_path / 'm')
  _assert_same(packed.tree, tree)
  assert (packed.config, packed.tokenizer) == ({}, None)
  np.testing.assert_array_equal(
    qtensor.dequantize(packed.tree['q']), qtensor.dequantize(tree['q'])
  )


_keys = st.one_of(
  st.text(max_size=6),
  st.integers(-5, 200),
  st.sampled_from(['', '/', '#codes', 'a/b', '%2F', ':1', '1', '__metadata__']),
)
_leaves = st.one_of(
  qtensors.qtensors(),
  st.sampled_from(
    [
      np.arange(3, dtype=np.float64),
      np.array(True),
      np.float32([[np.nan, -0.0, np.inf]]),
      np.ones((2, 2), ml_dtypes.float8_e4m3fn),
    ]
  ),
)
_trees = st.dictionaries(
  _keys,
  st.recursive(
    _leaves,
    lambda inner: st.dictionaries(_keys, inner, max_size=3),
    max_leaves=6,
  ),
  max_size=3,
)


@settings(max_examples=150, deadline=None)
@given(_trees, st.booleans())
def test_any_nested_dict_comes_back(tree, entropy_code):
  data = packed_file.serialize(tree, entropy_code=entropy_code)
  _assert_same(packed_file.deserialize(data).tree, tree)


def test_the_safetensors_library_reads_the_same_tensors(tmp_path):
  path = tmp_path / 'model.safetensors'
  tree = _tree()
  packed_file.save(path, tree, config={'a': 1})
  theirs = safetensors.numpy.load_file(path)
  np.testing.assert_array_equal(
    theirs['encoder/lstm/bias'], tree['encoder']['lstm']['bias']
  )
  np.testing.assert_array_equal(
    theirs['#codebook:int8'],
    np.concatenate(
      [
        tree['encoder']['lstm']['kernel'].codebook,
        tree['encoder']['blocks'][1]['w'].codebook,
      ]
    ),
  )
  assert theirs['#scale:float32'].tolist() == pytest.approx([0.01, 0.3, 0.01])
  assert theirs['encoder/lstm/kernel#codes'].shape == (24 * 10 // 2,)
  assert theirs['encoder/blocks/:0/w#codes'].shape == (-(-6 * 7 // 5),)
  assert theirs['encoder/norm/scale'].dtype == ml_dtypes.bfloat16
  with safetensors.safe_open(path, 'np') as file:
    assert json.loads(file.metadata()['config']) == {'a': 1}


def test_tied_weights_are_stored_once_and_shared_again():
  embedding = _codes((500, 20))
  alone = packed_file.serialize({'embed': embedding})
  copy = jax.tree.map(np.copy, embedding)
  both = packed_file.serialize({'embed': embedding, 'head': {'w': copy}})
  assert len(both) < len(alone) + 100
  tree = packed_file.deserialize(both).tree
  assert tree['embed'] is tree['head']['w']
  qtensors.assert_same(tree['embed'], embedding)


def test_same_bytes_but_other_meaning_is_not_tied():
  a, b = _codes((8,)), _codes((2, 4))
  b = qtensor.QTensor(a.codes.reshape(2, 4), a.scale, a.codebook, 16)
  tree = packed_file.deserialize(packed_file.serialize({'a': a, 'b': b})).tree
  assert tree['a'].shape == (8,) and tree['b'].shape == (2, 4)


@pytest.mark.parametrize('levels', [2, 3, 4, 8, 16, 32, 64, 128, 256])
def test_overhead_is_below_one_percent(levels):
  """A tenth of a tree of 60 matrices and ten million weights."""
  tree = {
    f'encoder/layer_{i}': {'kernel': _codes((500, 333), levels, seed=i)}
    for i in range(6)
  }
  bits = 8 / 5 if levels == 3 else (levels - 1).bit_length()
  ideal = 6 * 500 * 333 * bits / 8
  once = 450  # what is not per matrix
  assert packed_file.packed_bytes(tree) < 1.01 * ideal + once


def test_entropy_coding_is_smaller_where_codes_are_uneven():
  rng = np.random.default_rng(0)
  uneven = qtensor.QTensor(
    np.clip(np.round(2 * rng.standard_normal(100_000)), -8, 7).astype(np.int8),
    np.float32(1),
    None,
    16,
  )
  tree = {'w': uneven}
  assert packed_file.encoded_bytes(tree) < 0.8 * packed_file.packed_bytes(tree)
  # Codes that do not compress stay as they are.
  even = rng.integers(-8, 8, 10_000).astype(np.int8)
  tree = {'w': qtensor.QTensor(even, np.float32(1), None, 16)}
  assert packed_file.encoded_bytes(tree) == packed_file.packed_bytes(tree)


@pytest.mark.parametrize(
  'tree, message',
  [
    (np.ones(3), 'nested dicts, got ndarray'),
    ({'a': [np.ones(3)]}, "tensor 'a': expected an array.*got list"),
    ({'a': {'b': 3.0}}, "tensor 'a/b': expected an array.*got float"),
    (
      {'a': {(1, 2): np.ones(3)}},
      r'keys must be strings or integers.*\(1, 2\)',
    ),
    ({'a': np.ones(3, np.complex64)}, "tensor 'a'.*dtype complex64"),
    (
      {'a': qtensor.QTensor(np.ones(2, np.int8), np.float32(-1), None, 4)},
      "tensor 'a': every scale must be finite and above zero",
    ),
  ],
)
def test_what_cannot_be_stored_is_named(tmp_path, tree, message):
  with pytest.raises(ValueError, match=message):
    packed_file.save(tmp_path / 'm', tree)
  assert not list(tmp_path.iterdir())


def test_a_config_that_is_not_json_is_an_error():
  with pytest.raises(ValueError, match='config must be JSON-able'):
    packed_file.serialize({}, config={'a': np.nan})
  with pytest.raises(ValueError, match='tokenizer must be JSON-able'):
    packed_file.serialize({}, tokenizer={'a': {1, 2}})


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
  path = tmp_path / 'm'
  packed_file.save(path, _tree())
  before = path.read_bytes()

  def full(*args):
    raise OSError('disk full')

  monkeypatch.setattr(packed_file.os, 'replace', full)
  with pytest.raises(OSError, match='disk full'):
    packed_file.save(path, {'a': np.ones(3)})
  assert path.read_bytes() == before
  assert list(tmp_path.iterdir()) == [path]


def test_a_link_stays_a_link_and_its_target_is_replaced(tmp_path):
  target, link = tmp_path / 'folder' / 'm', tmp_path / 'link'
  target.parent.mkdir()
  link.symlink_to(target)
  packed_file.save(link, _tree())
  assert link.is_symlink() and target.is_file()
  _assert_same(packed_file.load(link).tree, _tree())
  assert list(target.parent.iterdir()) == [target]


@pytest.mark.parametrize('kind', ['missing', 'folder', 'circle'])
def test_what_cannot_be_written_is_named_as_it_was_given(tmp_path, kind):
  path = tmp_path / 'm'
  if kind == 'missing':
    path = tmp_path / 'nowhere' / 'm'
  elif kind == 'folder':
    path.mkdir()
  else:
    path.symlink_to(path)
  with pytest.raises(OSError, match='cannot write the packed file') as error:
    packed_file.save(path, _tree())
  assert error.value.filename == str(path)
  assert not list(tmp_path.rglob('*.partial'))


def test_content_is_on_disk_before_its_name_is(tmp_path, monkeypatch):
  done = []
  for name in ('fsync', 'replace'):
    function = getattr(packed_file.os, name)
    monkeypatch.setattr(
      packed_file.os,
      name,
      lambda *args, f=function, n=name: (done.append(n), f(*args)),
    )
  packed_file.save(tmp_path / 'm', _tree())
  assert done == ['fsync', 'replace', 'fsync']  # the file, then its folder


# What is not a whole file of ours.


def test_refusals_name_the_file_and_the_reason(tmp_path):
  path = tmp_path / 'model.safetensors'
  data = packed_file.serialize(_tree())
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
  data = packed_file.serialize(_tree(), entropy_code=entropy_code)
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
  data = packed_file.serialize(_tree(), entropy_code=True)
  _assert_same(packed_file.deserialize(_reseal(data)).tree, _tree())
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


def test_boxed_leaves_are_packed_as_what_they_hold(tmp_path):
  params = nnx.State({'dense': {'kernel': nnx.Param(_codes((4, 6)))}})
  packed_file.save(tmp_path / 'boxed', params)
  tree = packed_file.load(tmp_path / 'boxed').tree
  packed_file.save(tmp_path / 'plain', {'dense': {'kernel': _codes((4, 6))}})
  plain = packed_file.load(tmp_path / 'plain').tree
  assert jax.tree.structure(tree) == jax.tree.structure(plain)
  np.testing.assert_array_equal(
    tree['dense']['kernel'].codes, plain['dense']['kernel'].codes
  )


def test_a_list_is_not_a_box(tmp_path):
  with pytest.raises(ValueError, match="'a': expected an array.*got list"):
    packed_file.save(tmp_path / 'list', {'a': [np.ones(3)]})


@pytest.mark.parametrize('config', [{1: 'a'}, {'shape': (2, 3)}])
def test_a_config_that_json_would_change_is_refused(config):
  with pytest.raises(ValueError, match='config would not come back'):
    packed_file.serialize({'a': np.ones(2)}, config=config)


def test_none_is_not_an_empty_dict():
  with pytest.raises(ValueError, match="'a': expected an array.*NoneType"):
    packed_file.serialize({'a': None})
  assert packed_file.deserialize(packed_file.serialize({'a': {}})).tree == {
    'a': {}
  }
