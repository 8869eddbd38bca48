"""Folders are local: a remote one is refused, not made up on this disk."""

import pathlib

import pytest

from s8bqat_jax import training
from s8bqat_jax.training import paths


@pytest.mark.parametrize(
  'remote',
  [
    'gs://bucket/run',
    's3://bucket/run',
    pathlib.Path('gs://bucket/run') / 'checkpoints',
  ],
)
@pytest.mark.parametrize(
  'open_it',
  [
    paths.local,
    training.Checkpoints,
    training.MetricWriter,
    training.read_metrics,
  ],
)
def test_remote_paths_are_refused(tmp_path, monkeypatch, remote, open_it):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(ValueError, match='remote.*are not supported.*mount'):
    open_it(remote)
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('path', ['a', '/a/b', './a:b', 'C:/a', 'a/gs:/b'])
def test_local_paths_stay_what_they_are(path):
  assert paths.local(path) == paths.local(pathlib.Path(path))
  assert paths.local(path) == pathlib.Path(path)
