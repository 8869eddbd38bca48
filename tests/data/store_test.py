import os
import shutil
import time

import numpy as np
import pytest

from s8bqat_jax.data import store


def _entries(sizes=(3, 0, 5)):
  return [
    store.Entry(np.arange(n, dtype=np.int16) - 2, f'text {n}', f's{n}')
    for n in sizes
  ]


def _check(kept: store.Store, sizes=(3, 0, 5)):
  assert list(kept.texts_N) == [f'text {n}' for n in sizes]
  assert list(kept.speakers_N) == [f's{n}' for n in sizes]
  for i, entry in enumerate(_entries(sizes)):
    got_S = kept.samples_S[kept.offsets_N1[i] : kept.offsets_N1[i + 1]]
    np.testing.assert_array_equal(got_S, entry.pcm_S)


def test_round_trip(tmp_path):
  _check(store.collect(_entries()))
  store.write(tmp_path / 'a' / 'b', _entries())
  _check(store.read(tmp_path / 'a' / 'b'))


def test_nothing_in_it(tmp_path):
  for sizes in ((), (0, 0)):
    _check(store.collect(_entries(sizes)), sizes)
    store.write(tmp_path / str(len(sizes)), _entries(sizes))
    _check(store.read(tmp_path / str(len(sizes))), sizes)


def test_it_is_made_once_and_leaves_nothing_else(tmp_path):
  calls = []

  def make():
    calls.append(1)
    return iter(_entries())

  for _ in range(2):
    _check(store.cached('name', str(tmp_path), make))
  assert len(calls) == 1
  assert os.listdir(tmp_path) == ['name']
  _check(store.cached('name', 'none', make))
  assert len(calls) == 2


def test_a_failure_half_way_leaves_nothing(tmp_path):
  def make():
    yield _entries()[0]
    raise RuntimeError('half way')

  with pytest.raises(RuntimeError, match='half way'):
    store.write(tmp_path / 'x', make())
  assert os.listdir(tmp_path) == []


def test_another_process_may_finish_first(tmp_path):
  def make():
    store.write(tmp_path / 'x', _entries())
    yield from _entries()

  store.write(tmp_path / 'x', make())
  _check(store.read(tmp_path / 'x'))
  assert os.listdir(tmp_path) == ['x']


def test_a_damaged_store_says_what_to_delete(tmp_path):
  store.write(tmp_path / 'x', _entries())
  (tmp_path / 'x' / 'samples.int16').write_bytes(b'12')
  with pytest.raises(ValueError, match='delete .*x, it is made again'):
    store.read(tmp_path / 'x')


def test_no_room_names_the_folder_and_the_way_out(tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(OSError, match='cache='):
    store.write(tmp_path / 'file' / 'x', _entries())
  with pytest.raises(OSError, match='cannot make .* choose another with cache'):
    store.cached('x', str(tmp_path / 'file'), _entries)
  assert store.cached_json('x', str(tmp_path / 'file'), lambda: 3) == 3


def test_a_full_disk_names_the_way_out(tmp_path):
  def make():
    yield _entries()[0]
    raise OSError(28, 'No space left on device')

  with pytest.raises(OSError, match='make room there.*cache=DIR') as e:
    store.write(tmp_path / 'x', make())
  assert e.value.errno == 28
  assert os.listdir(tmp_path) == []


def _fill(folder, names):
  for name in names:
    store.cached(name, str(folder), lambda: _entries((500_000,)))  # 1 MB
    time.sleep(0.01)  # clocks of file systems tick


def test_a_full_cache_drops_what_was_used_longest_ago(tmp_path, monkeypatch):
  monkeypatch.setenv('S8BQAT_CACHE_GB', '0.0031')
  (tmp_path / 'mine').mkdir()  # none of ours
  (tmp_path / 'mine' / 'index.json').write_text('x' * 4_000_000)
  (tmp_path / 'found.json').write_text('x' * 4_000_000)
  _fill(tmp_path, 'abc')
  old = store.cached('b', str(tmp_path), lambda: pytest.fail('made again'))
  _fill(tmp_path, 'ad')  # a was there
  assert {f.name for f in tmp_path.iterdir()} == {*'abd', 'mine', 'found.json'}
  _fill(tmp_path, 'ef')
  assert {f.name for f in tmp_path.iterdir()} == {*'def', 'mine', 'found.json'}
  _check(old, (500_000,))  # open, so still readable


def test_a_store_larger_than_the_cache_is_made_all_the_same(
  tmp_path, monkeypatch
):
  monkeypatch.setenv('S8BQAT_CACHE_GB', '0')
  _fill(tmp_path, 'ab')
  assert os.listdir(tmp_path) == ['b']
  _check(store.cached('b', str(tmp_path), lambda: []), (500_000,))


@pytest.mark.parametrize('text', ['much', '-1', 'nan', ''])
def test_a_limit_that_is_none_says_what_to_give(tmp_path, monkeypatch, text):
  monkeypatch.setenv('S8BQAT_CACHE_GB', text)
  with pytest.raises(ValueError, match='S8BQAT_CACHE_GB is .*for example 40'):
    _fill(tmp_path, 'a')


def test_a_store_that_vanishes_is_made_again(tmp_path):
  _fill(tmp_path, 'a')
  shutil.rmtree(tmp_path / 'a')
  _check(store.cached('a', str(tmp_path), _entries))


def test_default_folder(monkeypatch, tmp_path):
  monkeypatch.setenv('S8BQAT_CACHE', str(tmp_path / 'own'))
  assert store.default_folder() == tmp_path / 'own'
  monkeypatch.delenv('S8BQAT_CACHE')
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  assert store.default_folder() == tmp_path / 's8bqat_jax'


def test_cached_json(tmp_path):
  values = iter([[1.5, 2], 'again'])
  for _ in range(2):
    got = store.cached_json('n', str(tmp_path), lambda: next(values))
    assert got == [1.5, 2]
  assert os.listdir(tmp_path) == ['n.json']
  (tmp_path / 'n.json').write_text('')  # what a power cut leaves
  for _ in range(2):
    got = store.cached_json('n', str(tmp_path), lambda: next(values))
    assert got == 'again'


@pytest.mark.parametrize('umask', [0o022, 0o027, 0o002])
def test_whom_the_umask_lets_in_reads_it(tmp_path, umask):
  before = os.umask(umask)
  try:
    store.write(tmp_path / 'x', _entries())
  finally:
    os.umask(before)
  assert (tmp_path / 'x').stat().st_mode & 0o777 == 0o777 & ~umask
  for file in (tmp_path / 'x').iterdir():
    assert file.stat().st_mode & 0o777 == 0o666 & ~umask


def test_what_a_killed_process_left_goes_after_a_day(tmp_path):
  def unfinished(name):
    """What is there while `name` is made, and after a kill."""

    def make():
      yield _entries()[0]
      copies = [f for f in tmp_path.iterdir() if f.is_dir()]
      (partial,) = (f for f in copies if name in f.name)
      shutil.copytree(partial, tmp_path / f'{partial.name}-left')
      raise RuntimeError('killed')

    with pytest.raises(RuntimeError):
      store.write(tmp_path / name, make())
    (left,) = tmp_path.glob(f'.*{name}*-left')
    return left

  def age(paths, hours):
    for path in paths:
      when = time.time() - 3600 * hours
      os.utime(path, (when, when))

  dead, growing, young = (unfinished(n) for n in ('dead', 'growing', 'young'))
  age([*dead.rglob('*'), dead], 25)
  age([*growing.rglob('*'), growing], 25)
  age(growing.rglob('samples.int16'), 1)
  age([*young.rglob('*'), young], 23)
  store.write(tmp_path / 'old', _entries())
  own = tmp_path / '.own-folder'
  shutil.copytree(tmp_path / 'old', own)
  age([*(tmp_path / 'old').rglob('*'), tmp_path / 'old'], 25)
  age([*own.rglob('*'), own], 25)
  store.write(tmp_path / 'new', _entries())
  left = {f.name for f in tmp_path.iterdir()}
  assert left == {growing.name, young.name, own.name, 'old', 'new'}
