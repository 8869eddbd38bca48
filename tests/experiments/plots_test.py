"""Pictures of little data."""

import matplotlib.image
import matplotlib.pyplot as plt
import numpy as np
import pytest

from experiments import lm_plots, plot_penalties, plots, results


@pytest.fixture
def axes():
  figure, pair = plt.subplots(1, 2)
  yield pair
  plt.close(figure)


def test_a_row_without_an_interval_is_a_point(axes):
  metrics = {'wer': 12.5, 'ci95': [None, None], 'bytes': 2000}
  row = {'size': 's', 'method': 'float', 'seed': 0, 'cell': 's/float'}
  plots.error_against_bytes([{**row, 'bits': 32, 'metrics': metrics}], axes[0])
  line, *_ = axes[0].lines
  assert list(line.get_ydata()) == [12.5]


@pytest.mark.parametrize('frozen', [False, True])
def test_residuals_of_a_training_that_was_frozen_at_once(axes, frozen):
  logged = [
    {
      'step': step,
      'quantizer/frozen': float(frozen),
      'quantizer/primal': 0.5 / step,
      'quantizer/dual': 0.1,
    }
    for step in (1, 2)
  ]
  row = {'logged': logged, 'point': 3, 'seed': 0}
  lm_plots.residuals([row], axes)
  drawn = [list(line.get_ydata()) for line in axes[0].lines]
  assert drawn == ([] if frozen else [[0.5, 0.25]])


def test_a_map_of_bits(axes):
  rows = [
    {'allocation': bits, 'method': 'admm', 'point': 3, 'seed': 0}
    for bits in ({'a': 2, 'b': 4}, {'a': 8, 'b': 1})
  ]
  lm_plots.bit_map(rows, axes[0])
  assert [text.get_text() for text in axes[0].texts] == ['2', '4', '8', '1']


def test_curves_are_those_that_were_watched(axes):
  watched = [{'step': 5, 'dev/perplexity': 9.0}, {'step': 6, 'loss': 1.0}]
  row = {'method': 'admm', 'point': 3, 'seed': 0}
  every = watched, [{'step': 5, 'loss': 2.0}], []
  rows = [{**row, 'logged': logged} for logged in every]
  assert lm_plots.curves(rows, axes[0]) == 1
  (line,) = axes[0].lines
  assert list(line.get_ydata()) == [9.0] and line.get_label() == 'admm, 3'
  assert lm_plots.curves(rows[1:], axes[1]) == 0


def test_the_penalties_have_their_picture(tmp_path, monkeypatch):
  monkeypatch.setattr(results, 'FOLDER', tmp_path)
  plot_penalties.main(['plot_penalties'])
  image = matplotlib.image.imread(tmp_path / 'penalties.png')
  assert image.shape[0] > 100 and np.ptp(image) > 0
