import concurrent.futures
import hashlib
import subprocess
import sys

import numpy as np
import pytest

from s8bqat_jax.data import espeak_engine

pytest.importorskip('espeakng_loader')


def _jobs():
  rng = np.random.default_rng(0)
  for k, variant in enumerate(espeak_engine.variants()):
    yield {
      'text': ' '.join(rng.choice(['one', 'six', 'three', 'oh'], 3)),
      'accent': espeak_engine.ACCENTS[k % len(espeak_engine.ACCENTS)],
      'variant': variant,
      'rate': int(rng.integers(130, 220)),
      'pitch': int(rng.integers(20, 80)),
    }


def _digest(samples) -> str:
  return hashlib.sha256(samples.tobytes()).hexdigest()


@pytest.fixture(scope='module')
def in_order():
  engine = espeak_engine.Engine()
  return [engine.synthesize(**job) for job in _jobs()]


def test_every_voice_speaks(in_order):
  for job, samples in zip(_jobs(), in_order):
    assert samples.dtype == np.int16
    assert 0.3 < len(samples) / espeak_engine.RATE < 5, job
    assert np.abs(samples).max() > 500, job
  assert len({_digest(s) for s in in_order}) == len(in_order)


def test_what_was_said_before_changes_nothing(in_order):
  jobs = list(_jobs())
  engine = espeak_engine.Engine()
  order = np.random.default_rng(1).permutation(len(jobs))
  for i in order:
    np.testing.assert_array_equal(engine.synthesize(**jobs[i]), in_order[i])


def test_threads_do_not_disturb_each_other(in_order):
  jobs = list(_jobs())
  engines = [espeak_engine.Engine() for _ in range(4)]

  def work(start):
    return [engines[start].synthesize(**job) for job in jobs[start::4]]

  with concurrent.futures.ThreadPoolExecutor(4) as pool:
    for start, made in enumerate(pool.map(work, range(4))):
      for want, got in zip(in_order[start::4], made):
        np.testing.assert_array_equal(want, got)


def test_another_process_says_the_same(in_order):
  code = (
    'import hashlib\n'
    'from s8bqat_jax.data import espeak_engine\n'
    f'job = {list(_jobs())[17]!r}\n'
    'samples = espeak_engine.Engine().synthesize(**job)\n'
    'print(hashlib.sha256(samples.tobytes()).hexdigest())'
  )
  done = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True, check=True
  )
  assert done.stdout.strip() == _digest(in_order[17])


def test_parameters_matter():
  engine = espeak_engine.Engine()

  def say(**options):
    return engine.synthesize('seven two', 'en-us', 'm1', **options)

  assert len(say(rate=220)) < len(say(rate=130))
  assert len(say(word_gap=20)) > len(say(word_gap=0))
  assert _digest(say(pitch=20)) != _digest(say(pitch=80))
  assert _digest(say(pitch_range=0)) != _digest(say(pitch_range=99))


def test_accents_differ():
  engine = espeak_engine.Engine()
  said = {
    _digest(engine.synthesize('water the bath', accent, 'm1'))
    for accent in espeak_engine.ACCENTS
  }
  assert len(said) == len(espeak_engine.ACCENTS)


def test_an_unknown_voice_is_an_error():
  with pytest.raises(ValueError, match="no voice 'xx-yy"):
    espeak_engine.Engine().synthesize('a', 'xx-yy', 'm1')


def test_a_system_that_keeps_libraries_is_an_error(monkeypatch):
  monkeypatch.setattr(espeak_engine._ctypes, 'dlclose', lambda handle: None)
  with pytest.raises(RuntimeError, match='would not be reproducible'):
    espeak_engine.Engine()


def test_nothing_to_say():
  assert len(espeak_engine.Engine().synthesize('', 'en', 'm1')) < 5000


def test_without_the_extra_the_error_names_it(monkeypatch):
  monkeypatch.setitem(sys.modules, 'espeakng_loader', None)
  with pytest.raises(ImportError, match=r's8bqat_jax\[demo\]'):
    espeak_engine.Engine()
