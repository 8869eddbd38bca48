"""How language models are named on the command line."""

import pytest

from experiments import rescore


def test_files_go_by_folder_and_name_or_as_they_are_called():
  assert rescore.named_files(['runs/a/shipped.safetensors', 'large=b/x']) == {
    'a/shipped': 'runs/a/shipped.safetensors',
    'large': 'b/x',
  }


def test_two_files_of_one_name_are_refused():
  with pytest.raises(ValueError, match='NAME=FILE'):
    rescore.named_files(['x/a/shipped.safetensors', 'y/a/shipped.safetensors'])
