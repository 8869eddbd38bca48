"""Statistics of a matrix, on hypotheses made by hand."""

from experiments import cells, matrix
from experiments.scoring import Hypothesis


def _part(*speakers):
  return [Hypothesis(f'{s}-{i}', s, 'a', 'a') for s in speakers for i in (0, 1)]


def test_parts_that_share_speakers_are_one_cluster():
  apart = {'0': _part('a', 'b'), '1': _part('c'), '2': _part('d')}
  assert matrix._clusters(apart) == {'0': '0', '1': '1', '2': '2'}
  shared = {**apart, '3': _part('b', 'a')}
  found = matrix._clusters(shared)
  assert found['0'] == found['3'] and len(set(found.values())) == 3
  # One that shares speakers with two makes them one.
  found = matrix._clusters({**apart, '3': _part('a', 'd')})
  assert found['0'] == found['2'] == found['3'] != found['1']


def test_a_cell_is_held_against_its_controls():
  held = lambda text: set(map(str, matrix._bases(cells.parse(text))))
  floats = {'90k/float', '90k/float continued'}
  controls = {
    '90k/straight-through:3',
    '90k/uniform qat:3',
    '90k/coarse int8:3',
    '90k/gq:3',
    '90k/uniform qat:8',
  }
  assert held('90k/s8bqat:3') == floats | controls
  # Bits of parts are no variant: others are made with the same.
  wider = {f'{c}?joint=5' for c in controls if not c.endswith(':8')}
  assert held('90k/s8bqat:3?joint=5') == floats | wider | {'90k/uniform qat:8'}
  assert held('90k/s8bqat:3?pull=8&joint=5') == floats | {
    '90k/s8bqat:3?joint=5'
  }
  assert held('90k/acosr:3') == floats | {'90k/s8bqat:3'}
  # Another learning rate of a control is no variant of ours.
  assert held('90k/uniform qat:8?lr=0.004') == floats
