"""Names of values: stable under what must not matter."""

import jax
import jax.numpy as jnp
import numpy as np

from s8bqat_jax.integer import _jax_internals as internals
from s8bqat_jax.integer import keys


def names(fn, *shapes, const=()):
  args = [jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes]
  graph, _ = internals.trace(fn, *args)
  ins = [
    keys.Key(const[i], True) if i < len(const) else keys.Key(f'in:{i}')
    for i in range(len(shapes))
  ]
  return [k.name for k in keys.assign(graph, ins)[1]]


def test_weights_name_what_follows():
  fn = lambda w, b, x: jax.nn.sigmoid(x @ w + b)
  shapes = ((3, 4), (4,), (5, 3))
  assert names(fn, *shapes, const=('w', 'b')) == ['b:add.logistic']


def test_length_reshape_and_jit_do_not_matter():
  plain = lambda w, x: jnp.tanh(x @ w)
  other = jax.jit(lambda w, x: jnp.tanh((x[2:][None] @ w)[0]))
  a = names(plain, (3, 4), (5, 3), const=('w',))
  assert (
    a == names(other, (3, 4), (9, 3), const=('w',)) == ['w:dot_general.tanh']
  )


def test_parts_of_the_last_axis_differ():
  split = lambda x: tuple(jnp.split(x, 2, axis=-1))
  assert names(split, (5, 4)) == ['in:0[0]', 'in:0[2]']
  assert names(lambda x: x[1:3], (5, 4)) == ['in:0']
  halves = lambda w, x: (x @ w[:2], x @ w[2:])
  assert names(halves, (4, 3), (5, 2), const=('w',)) == [
    'w:dot_general',
    'w[2,0]:dot_general',
  ]


def test_scan_names_its_carry_by_its_body():
  def batch(w, c, x):
    body = lambda c, x: (jnp.tanh(c + x @ w),) * 2
    return jax.lax.scan(body, c, x)[1]

  (name,) = names(batch, (3, 3), (3,), (7, 3), const=('w',))
  assert name == 'add(~,w:dot_general).tanh'


def test_other_constants_make_other_names():
  small, large = np.ones((4, 2)), 100 * np.ones((4, 2))
  for one, other in (
    (lambda x: x + 0.1, lambda x: x + 1000.0),
    (lambda x: x**3, lambda x: x**9),
    (lambda x: jnp.clip(x, -1, 1), lambda x: jnp.clip(x, -100, 100)),
    (lambda x: x @ small, lambda x: x @ large),
    (lambda x: x @ (small * 2.0).T.T, lambda x: x @ (small * 3.0).T.T),
  ):
    first, second, again, late = names(
      lambda x: (one(x), other(x), one(x), jnp.tanh(other(x))),  # noqa: B023
      (5, 4),
    )
    assert first == again != second
    assert late == f'{second}.tanh'
    assert first == names(one, (5, 4))[0]  # as if it were alone
  # A sequence and one step of it: the same names.
  both = lambda x: (x + 0.1, x + 1000.0)
  assert names(both, (7, 4)) == names(both, (1, 4))
  shifted = lambda x: (x + jnp.arange(x.shape[0])[:, None], x + 1.0)
  assert names(shifted, (7, 4)) == names(shifted, (1, 4))


def test_long_names_end_in_a_digest():
  def deep(x):
    y = x
    for _ in range(40):
      y = jnp.tanh(y) * x
    return y, y * x

  a, b = names(deep, (2,))
  assert a != b and max(len(a), len(b)) <= keys.MAX_LENGTH + 20


def test_long_names_still_say_their_weight():
  path = '/'.join(['a_block_of_a_deep_model'] * 8)

  def sliced(w, x):
    return x @ w[1:], jnp.tanh(x @ w[1:])

  found = names(sliced, (4, 3), (5, 3), const=(path,))
  assert [keys.weight_of(name) for name in found] == [path, path]
  assert found[0] != found[1]
