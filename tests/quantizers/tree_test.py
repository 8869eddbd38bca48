"""Names and leaves of trees of every kind."""

import collections
import functools

import flax.core
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, PartitionSpec

from s8bqat_jax.artifacts import qtensor
from s8bqat_jax.quantizers import tree as trees
from tests.quantizers import kinds


def _qtensor():
  codes = jnp.array([[-1, 0], [1, 0]], jnp.int8)
  return qtensor.QTensor(codes, jnp.float32(0.5), None, 3)


@pytest.mark.parametrize('kind', kinds.KINDS)
def test_names_are_the_same_for_every_kind_of_tree(kind):
  assert list(trees.named(kinds.make(kind))) == kinds.NAMES


def test_names_of_boxes_sequences_and_frozen_dicts():
  boxed = nn.Partitioned(jnp.ones((2, 3)), names=('in', 'out'))
  pair = collections.namedtuple('Pair', ['left', 'right'])
  tree = flax.core.freeze(
    {'params': {'a': [boxed, jnp.ones(2)], 'b': pair(jnp.ones(1), jnp.ones(1))}}
  )
  assert list(trees.named(tree)) == ['a/0', 'a/1', 'b/left', 'b/right']


def test_a_field_or_key_called_value_keeps_its_name_inside_a_path():
  assert list(trees.named({'value': {'kernel': jnp.ones(1)}})) == [
    'value/kernel'
  ]
  assert list(trees.named({'a': {'value': jnp.ones(1)}})) == ['a/value']


def test_no_leaves_and_a_single_leaf():
  assert trees.named({}) == {}
  assert list(trees.named(jnp.ones(2))) == ['']


def test_a_name_that_stands_for_two_leaves_is_an_error():
  with pytest.raises(ValueError, match="'a/b'"):
    trees.named({'a': {'b': jnp.ones(1)}, 'a/b': jnp.ones(1)})


def test_tied_weights_are_one_leaf():
  class Nnx(nnx.Module):
    def __init__(self, rngs):
      self.embed = nnx.Embed(5, 4, rngs=rngs)
      self.out = self.embed

  class Linen(nn.Module):
    @nn.compact
    def __call__(self, x):
      embed = nn.Embed(5, 4, name='embed')
      return embed.attend(embed(x))

  state = nnx.state(Nnx(nnx.Rngs(0)), nnx.Param)
  params = Linen().init(jax.random.key(0), jnp.zeros((1,), jnp.int32))
  assert list(trees.named(state)) == ['embed/embedding']
  assert list(trees.named(params)) == ['embed/embedding']


@pytest.mark.parametrize('kind', kinds.KINDS)
def test_replace_keeps_the_structure_and_takes_qtensors(kind):
  params = kinds.make(kind)
  replaced = trees.replace(params, {'dense/kernel': _qtensor()})
  leaves = trees.named(replaced)
  assert list(leaves) == kinds.NAMES
  assert qtensor.is_qtensor(leaves['dense/kernel'])
  np.testing.assert_array_equal(
    leaves['head/kernel'], trees.named(params)['head/kernel']
  )
  decoded = qtensor.decode(replaced)
  assert jax.tree.structure(decoded) == jax.tree.structure(params)


@pytest.mark.parametrize('kind', kinds.KINDS)
def test_keep_masks_the_others_and_keeps_full_names(kind):
  params = kinds.make(kind)
  masked = trees.keep(params, {'head/kernel'})
  assert list(trees.named(masked)) == ['head/kernel']
  back = trees.replace(params, trees.named(masked))
  jax.tree.map(np.testing.assert_array_equal, back, params)


def test_weights_are_floating_leaves_with_two_axes_or_more():
  assert list(
    trees.weights(
      {
        'a': jnp.ones((1, 1)),
        'b': jnp.ones((2, 3, 4), jnp.bfloat16),
        'c': np.ones((2, 0)),
        'd': jnp.ones(3),
        'e': jnp.ones((2, 2), jnp.int32),
        'f': jax.random.split(jax.random.key(0), (2, 2)),
      }
    )
  ) == ['a', 'b', 'c']


def test_biases_and_gains_are_no_weights_however_many_axes_they_have():
  class Block(nn.Module):
    @nn.compact
    def __call__(self, x, _):
      x = nn.MultiHeadDotProductAttention(num_heads=2)(nn.LayerNorm()(x))
      return nn.Dense(4)(x), None

  layers = nn.scan(
    Block, variable_axes={'params': 0}, split_rngs={'params': True}, length=3
  )
  params = layers().init(jax.random.key(0), jnp.ones((1, 5, 4)), None)
  assert all(x.ndim > 1 for x in jax.tree.leaves(params))
  found = trees.weights(params)
  assert len(found) == 5 and all(n.endswith('/kernel') for n in found)


@pytest.mark.parametrize('axis_type', [AxisType.Auto, AxisType.Explicit])
def test_state_inherits_the_layout_of_its_weight(axis_type):
  mesh = jax.make_mesh((8,), ('x',), axis_types=(axis_type,))
  layout = jax.NamedSharding(mesh, PartitionSpec(None, 'x'))
  w = jax.device_put(jnp.ones((4, 8)), layout)

  def state(w):
    own = {'dual': jnp.zeros(w.shape), 'scale': jnp.ones(())}
    return trees.inherit_sharding({'tables': (), 'w': own}, {'w': w})

  for made in (state(w), jax.jit(state)(w)):
    assert made['w']['dual'].sharding.is_equivalent_to(layout, 2)
    np.testing.assert_array_equal(made['w']['dual'], np.zeros((4, 8)))


def test_state_of_uncommitted_weights_stays_where_it_is():
  make = functools.partial(jnp.full, (2, 2), jnp.nan)
  w = make()
  state = trees.inherit_sharding({'w': {'dual': jnp.zeros((2, 2))}}, {'w': w})
  assert state['w']['dual'].sharding == w.sharding
  assert not np.any(np.isnan(state['w']['dual']))
