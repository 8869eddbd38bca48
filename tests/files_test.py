"""Files are there whole or not at all."""

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
