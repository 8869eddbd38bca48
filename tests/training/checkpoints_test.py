"""Checkpoints: round trip, retention, and errors that say what to do."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from s8bqat_jax import training
from s8bqat_jax.quantizers import step as quantizer_step


def _state(width=3, **kwargs):
  params = {'a': {'kernel': jnp.arange(4.0 * width).reshape(4, width)}}
  step = quantizer_step.make_step(
    lambda views, batch, key: (jnp.zeros(()), {}),
    optax.adam(1e-3),
    learning_rate=1e-3,
    **kwargs,
  )
  return step.init(params, seed=5)


@pytest.fixture
def checkpoints(tmp_path):
  opened = training.Checkpoints(tmp_path)
  yield opened
  opened.close()


def test_round_trip(checkpoints):
  state = _state(average_decay=0.9)
  checkpoints.save(7, state, {'best': {'score': 0.5}})
  like = jax.tree.map(jnp.zeros_like, state)
  restored, notes = checkpoints.restore(like)
  assert notes == {'best': {'score': 0.5}}
  assert jax.tree.structure(restored) == jax.tree.structure(state)
  for a, b in zip(jax.tree.leaves(restored), jax.tree.leaves(state)):
    assert a.dtype == b.dtype
    np.testing.assert_array_equal(a, b)


def test_retention(checkpoints):
  for step in (1, 2, 3, 4):
    checkpoints.save(step, _state())
  checkpoints.save(2, _state(), which='best')
  checkpoints.save(3, _state(), which='best')
  latest = sorted(p.name for p in (checkpoints.directory / 'latest').iterdir())
  assert latest == ['3', '4']
  assert checkpoints.latest_step('best') == 3


def test_nothing_stored(checkpoints):
  with pytest.raises(FileNotFoundError, match='no checkpoint under'):
    checkpoints.restore(_state())


@pytest.mark.parametrize(
  'other, message',
  [
    (_state(width=2), r'kernel: expected float32\[4, 2\], stored f.*\[4, 3\]'),
    (_state(average_decay=0.9), 'average.a.kernel: expected .*stored nothing'),
  ],
)
def test_incompatible(checkpoints, other, message):
  checkpoints.save(1, _state())
  with pytest.raises(ValueError, match=f'(?s)does not fit.*{message}'):
    checkpoints.restore(other)


def test_stored_but_unexpected(checkpoints):
  checkpoints.save(1, _state(average_decay=0.9))
  with pytest.raises(ValueError, match='expected nothing, stored'):
    checkpoints.restore(_state())


def test_a_failed_write_names_the_directory_and_keeps_the_last(
  checkpoints, monkeypatch
):
  checkpoints.save(1, _state())
  manager = checkpoints._managers['latest']

  def no_space(*args, **kwargs):
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(manager, 'save', no_space)
  with pytest.raises(OSError, match='step 2.*No space left.*step 1'):
    checkpoints.save(2, _state())
  assert checkpoints.latest_step() == 1


def test_what_is_no_matter_of_the_disk_says_what_it_is(
  checkpoints, monkeypatch
):
  checkpoints.save(1, _state())
  with pytest.raises(TypeError, match='not JSON serializable') as error:
    checkpoints.save(2, _state(), {'best': object()})
  assert any('step 2' in note for note in error.value.__notes__)

  # As TensorStore reports a full disk.
  def no_space(*args, **kwargs):
    raise ValueError(
      "RESOURCE_EXHAUSTED: No space left on device [os_error_code='28']"
    )

  monkeypatch.setattr(checkpoints._managers['latest'], 'save', no_space)
  with pytest.raises(OSError, match='step 2.*No space left.*free some space'):
    checkpoints.save(2, _state())


def test_two_leaves_of_one_name_are_refused(checkpoints):
  state = {'a.b': jnp.zeros(1), 'a': {'b': jnp.ones(2)}}
  with pytest.raises(ValueError, match="two leaves.*'a.b'"):
    checkpoints.save(1, state)
  assert checkpoints.latest_step() is None


def test_what_is_learned_of_a_stored_state_is_kept(tmp_path):
  """A step is never written twice, but its notes are amended."""
  state = {'w': jnp.ones(3)}
  for notes in ({'due': True}, {'due': False}):
    with contextlib.closing(training.Checkpoints(tmp_path)) as checkpoints:
      checkpoints.save(4, state, notes)
      assert checkpoints.restore(state)[1] == notes
  with contextlib.closing(training.Checkpoints(tmp_path)) as checkpoints:
    checkpoints.save(5, state, {'due': True})
    assert checkpoints.restore(state)[1] == {'due': True}
    assert checkpoints.restore(state, step=4)[1] == {'due': False}


def test_other_types_do_not_fit(checkpoints):
  checkpoints.save(1, {'a': jnp.array([0.7, -3.2]), 'k': jnp.array([300])})
  for name, dtype in (('a', jnp.int32), ('k', jnp.int8)):
    other = {'a': jnp.zeros(2), 'k': jnp.zeros(1, jnp.int32)}
    other[name] = other[name].astype(dtype)
    with pytest.raises(ValueError, match=f'{name}: expected int.*, stored'):
      checkpoints.restore(other)


def test_a_key_is_refused_when_it_is_saved(checkpoints):
  with pytest.raises(ValueError, match="'noise' of the state is a PRNG key"):
    checkpoints.save(1, {'noise': jax.random.key(0)})
  assert checkpoints.latest_step() is None
