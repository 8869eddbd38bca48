"""Files are there whole or not at all."""

import subprocess
import sys
import threading
from concurrent import futures

import pytest

from s8bqat_jax import files


def test_a_file_takes_the_place_of_another(tmp_path):
  path = tmp_path / 'notes.json'
  for text in ('one', 'größer'):
    files.write_text(path, text)
    assert path.read_text(encoding='utf-8') == text
  assert list(tmp_path.iterdir()) == [path]


def test_text_is_read_with_or_without_a_mark(tmp_path):
  path = tmp_path / 'a.txt'
  for mark in (b'', b'\xef\xbb\xbf'):
    path.write_bytes(mark + 'größer\r\nzwei\n'.encode())
    assert files.read_text(path) == 'größer\nzwei\n'
  for encoding in ('latin-1', 'utf-16'):
    path.write_text('größer', encoding=encoding)
    with pytest.raises(ValueError, match='a.txt: not UTF-8 text: .*save it as'):
      files.read_text(path)


def test_what_fails_leaves_what_was_there(tmp_path):
  path = tmp_path / 'picture.png'
  path.write_bytes(b'old')
  with pytest.raises(OSError, match='full'), files.replacing(path) as partial:
    assert partial.suffix == '.png' and partial.parent == tmp_path
    partial.write_bytes(b'half')
    raise OSError('disk full')
  assert path.read_bytes() == b'old'
  assert list(tmp_path.iterdir()) == [path]


def test_a_writer_that_wrote_nothing_is_an_error(tmp_path):
  with pytest.raises(FileNotFoundError), files.replacing(tmp_path / 'a'):
    pass


def test_readers_never_see_half(tmp_path):
  path = tmp_path / 'values'
  texts = ['a' * 100_000, 'b' * 100_000]
  files.write_text(path, texts[0])
  stop = threading.Event()

  def read():
    seen = {path.read_text()}
    while not stop.is_set():
      seen.add(path.read_text())
    return seen

  with futures.ThreadPoolExecutor(1) as pool:
    reader = pool.submit(read)
    for i in range(50):
      files.write_text(path, texts[i % 2])
    stop.set()
    assert reader.result() <= set(texts)


@pytest.mark.skipif(
  not sys.platform.startswith('linux'), reason='limits the size of files'
)
def test_a_full_disk_says_what_there_was_no_room_for(tmp_path):
  # In a process of its own, which it is a limit of.
  program = """
import os, resource, signal, sys
from s8bqat_jax import files, training
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
writer = training.MetricWriter(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
for write in (
  lambda: files.write_text(sys.argv[1] + '/notes.txt', 'x' * 10_000),
  lambda: [writer.write(i, {'loss': 1.0}) for i in range(1000)],
):
  try:
    write()
  except OSError as e:
    print(e, flush=True)
os._exit(0)  # TensorBoard's writer has no room either
"""
  done = subprocess.run(
    [sys.executable, '-c', program, str(tmp_path)],
    capture_output=True,
    text=True,
    timeout=120,
  )
  first, second = done.stdout.splitlines()
  assert f'{tmp_path / "notes.txt"}' in first, done.stderr
  assert f'{tmp_path / "metrics.jsonl"}' in second
  assert not (tmp_path / 'notes.txt').exists()
