"""Every member keeps the contract on a tree of all three kinds at once.

One tree, a plain one of the other two, because a check is mostly compilation.
That the kinds also work as the whole tree is tested with the member of
check_test and in step_test.
"""

import importlib

import pytest

from s8bqat_jax import quantizers
from s8bqat_jax.quantizers import Rule
from tests.quantizers import kinds, quick

PULL = quantizers.pressure_schedule(4.0, 10, 0.01)
RUN = {'total_steps': 10, 'learning_rate': 0.01}


# Lloyd-Max takes long to compile; what members do with centroids is the same.
CENTROIDS = quantizers.centroids(3, fit=quick.even)

# In their views the weights are those that ship.
STRAIGHT = {
  'straight_through': quantizers.straight_through(CENTROIDS),
  'uniform, 8 bits': quantizers.uniform(8),
  'uniform, a step per channel': quantizers.uniform(
    2, scale=quantizers.mse_scale, channel_axis=-1, refit_every=2
  ),
  'uniform, coarse': quantizers.uniform(
    8, scale=quantizers.entropy_scale(2.5), refit_every=0
  ),
  'learnable, one bit': quantizers.learnable(1),
  'learnable, ternary': quantizers.learnable('ternary', channel_axis=-1),
  'learnable, 4 bits': quantizers.learnable(4),
  'by_path': quantizers.by_path(
    [('linen/.*', quantizers.uniform(8)), ('.*', quantizers.learnable(1))]
  ),
}
FLOAT = {
  'ptq': quantizers.ptq(quantizers.learnable(4)),
  'centroids': CENTROIDS,
  'mracos, flow': quantizers.mracos(3, pressure=PULL, fit=quick.even),
  'mracos, loss': quantizers.mracos(
    3, pressure=PULL, coupling='loss', power=0.0, fit=quick.even
  ),
  'acosr': quantizers.acosr(3, pressure=PULL),
  'hard_compressor': quantizers.hard_compressor(
    CENTROIDS, 2, peak_learning_rate=1.0
  ),
  'loss_at_codes': quantizers.loss_at_codes(CENTROIDS, 2),
  's8bqat': quantizers.s8bqat(3, every=2, fit=quick.even, **RUN),
  'with_final_phase': quantizers.with_final_phase(
    quantizers.hard_compressor(CENTROIDS, 2, 1.0), 10
  ),
  'gq': quantizers.gq(3, total_steps=10),
  'admm, a table for the model': quantizers.admm(
    [Rule('.*', 'ternary', 'model')], rho=1.0, table='uniform', every=2
  ),
  'admm, powers of two': quantizers.admm(
    [Rule('.*kernel', 3)], rho=1.0, table='powers_of_two', every=1
  ),
  'admm, in the loss': quantizers.admm(
    3, rho=1.0, table='lloyd_max', every=1, coupling='loss'
  ),
  'chain': quantizers.chain(
    quantizers.mracos([Rule('nnx/.*', 3)], pressure=PULL, fit=quick.even),
    quantizers.learnable([Rule('linen/.*', 1)]),
  ),
}


def _params():
  whole = {kind: kinds.make(kind) for kind in ('linen', 'nnx')}
  # One weight and one bias of each.
  del whole['linen']['params']['head']
  del whole['nnx']['head']
  return whole


@pytest.mark.filterwarnings('ignore:hard_compressor')
@pytest.mark.parametrize('member', STRAIGHT | FLOAT)
def test_member_keeps_the_contract(member, monkeypatch):
  for module in ('gq', 'admm_tables'):
    module = importlib.import_module(f's8bqat_jax.quantizers.{module}')
    monkeypatch.setattr(module, 'fit_lloyd_max', quick.even)
  quantizers.check_quantizer(
    (STRAIGHT | FLOAT)[member],
    _params(),
    ships_what_it_sees=member in STRAIGHT,
  )
