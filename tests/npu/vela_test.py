"""Vela's reports: read correctly, and centroids pay."""

import numpy as np
import pytest

pytest.importorskip('ethosu', reason='needs the export extra')
pytest.importorskip('ai_edge_litert', reason='needs the export extra')

from s8bqat_jax.export import tflite
from s8bqat_jax.npu import vela
from tests.export import cases


def dense(levels):
  weight = {'w': cases.centroids(0, (256, 512), levels)}
  fn = lambda p, x: x @ p['w']
  return tflite.export(cases.lowered(fn, weight, cases.normal(1, 1, 256))).data


def test_fewer_centroids_are_fewer_bytes_and_cycles():
  reports = [vela.report(dense(n), 'ethos-u85-512') for n in (200, 16, 4)]
  bytes_ = [r.weight_bytes for r in reports]
  cycles = [r.cycles for r in reports]
  assert bytes_ == sorted(bytes_, reverse=True) and bytes_[2] < 0.5 * bytes_[0]
  assert cycles == sorted(cycles, reverse=True)
  (op,) = reports[0].ops
  assert op.macs == 256 * 512 and op.on_npu
  assert op.cycles == max(op.compute_cycles, op.memory_cycles)
  assert reports[0].milliseconds == pytest.approx(
    1e3 * reports[0].cycles / reports[0].clock_hz
  )


@pytest.mark.parametrize('target', vela.TARGETS)
def test_the_encoder_step_is_all_on_the_npu(target):
  fn, _ = cases.rnnt_parts()['encoder step']
  report = vela.report(tflite.export(fn).data, target)
  assert report.on_cpu == ()
  assert report.cycles > 0 and len(report.ops) > 10


def test_refusals():
  with pytest.raises(ValueError, match='no target'):
    vela.report(b'', 'ethos-u99')
  with pytest.raises(ValueError, match='refuses'):
    vela.report(np.zeros(64, np.uint8).tobytes(), 'ethos-u85-512')
