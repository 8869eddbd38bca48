import json

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

from s8bqat_jax.artifacts import packed_file, qtensor
from tests.artifacts import qtensors


@pytest.mark.parametrize('entropy_code', [False, True])
def test_a_model_comes_back_exactly(tmp_path, entropy_code):
  path = tmp_path / 'model.safetensors'
  config = {'layers': 2, 'name': 'ü "quoted"', 'nested': {'rate': 0.1}}
  tokenizer = {'kind': 'characters', 'characters': ['a', 'é', '"', '/']}
  size = packed_file.save(
    path,
    qtensors.tree(),
    config=config,
    tokenizer=tokenizer,
    entropy_code=entropy_code,
  )
  assert size == path.stat().st_size
  packed = packed_file.load(path)
  qtensors.assert_same_tree(packed.tree, qtensors.tree())
  assert (packed.config, packed.tokenizer) == (config, tokenizer)
  assert list(tmp_path.iterdir()) == [path]


def test_jax_arrays_and_frozen_defaults(tmp_path):
  tree = jax.tree.map(
    jnp.asarray, {'q': qtensors.codes((4, 4)), 'b': np.ones(3)}
  )
  packed_file.save(tmp_path / 'm', tree)
  packed = packed_file.load(tmp_path / 'm')
  qtensors.assert_same_tree(packed.tree, tree)
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


@settings(max_examples=150)
@given(_trees, st.booleans())
def test_any_nested_dict_comes_back(tree, entropy_code):
  data = packed_file.serialize(tree, entropy_code=entropy_code)
  qtensors.assert_same_tree(packed_file.deserialize(data).tree, tree)


def test_the_safetensors_library_reads_the_same_tensors(tmp_path):
  path = tmp_path / 'model.safetensors'
  tree = qtensors.tree()
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
  embedding = qtensors.codes((500, 20))
  alone = packed_file.serialize({'embed': embedding})
  copy = jax.tree.map(np.copy, embedding)
  both = packed_file.serialize({'embed': embedding, 'head': {'w': copy}})
  assert len(both) < len(alone) + 100
  tree = packed_file.deserialize(both).tree
  assert tree['embed'] is tree['head']['w']
  qtensors.assert_same(tree['embed'], embedding)


def test_same_bytes_but_other_meaning_is_not_tied():
  a, b = qtensors.codes((8,)), qtensors.codes((2, 4))
  b = qtensor.QTensor(a.codes.reshape(2, 4), a.scale, a.codebook, 16)
  tree = packed_file.deserialize(packed_file.serialize({'a': a, 'b': b})).tree
  assert tree['a'].shape == (8,) and tree['b'].shape == (2, 4)


@pytest.mark.parametrize('levels', [2, 3, 4, 8, 16, 32, 64, 128, 256])
def test_overhead_is_below_one_percent(levels):
  """A tenth of a tree of 60 matrices and ten million weights."""
  tree = {
    f'encoder/layer_{i}': {'kernel': qtensors.codes((500, 333), levels, seed=i)}
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
  packed_file.save(path, qtensors.tree())
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
  packed_file.save(link, qtensors.tree())
  assert link.is_symlink() and target.is_file()
  qtensors.assert_same_tree(packed_file.load(link).tree, qtensors.tree())
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
    packed_file.save(path, qtensors.tree())
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
  packed_file.save(tmp_path / 'm', qtensors.tree())
  assert done == ['fsync', 'replace', 'fsync']  # the file, then its folder


def test_boxed_leaves_are_packed_as_what_they_hold(tmp_path):
  params = nnx.State({'dense': {'kernel': nnx.Param(qtensors.codes((4, 6)))}})
  packed_file.save(tmp_path / 'boxed', params)
  tree = packed_file.load(tmp_path / 'boxed').tree
  packed_file.save(
    tmp_path / 'plain', {'dense': {'kernel': qtensors.codes((4, 6))}}
  )
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
