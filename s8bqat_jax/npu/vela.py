"""What Arm's Vela compiler reports for a .tflite: the latency witness.

Vela compiles for an Ethos-U and estimates cycles per operation from its own
model of the machine: no silicon is involved. Needs the export extra.
"""

from __future__ import annotations

import csv
import functools
import importlib.util
import multiprocessing
import os
import pathlib
import tempfile
from concurrent import futures
from concurrent.futures import process
from typing import NamedTuple

Row = dict[str, str]


class Target(NamedTuple):
  """A machine as Vela names it.

  Attributes:
    accelerator: --accelerator-config.
    system: --system-config, memories and clocks; of Vela's own file.
    memory: --memory-mode.
  """

  accelerator: str
  system: str
  memory: str


# Vela's defaults for each machine.
TARGETS = {
  'ethos-u55-128': Target(
    'ethos-u55-128', 'Ethos_U55_High_End_Embedded', 'Shared_Sram'
  ),
  'ethos-u65-512': Target(
    'ethos-u65-512', 'Ethos_U65_High_End', 'Dedicated_Sram'
  ),
  'ethos-u85-512': Target(
    'ethos-u85-512', 'Ethos_U85_SYS_DRAM_Mid', 'Dedicated_Sram_384KB'
  ),
}


class VelaOp(NamedTuple):
  """One operation after Vela's own optimizations.

  Attributes:
    operator: of the .tflite, as Vela names it.
    on_npu: False where it is left to the CPU, which Vela does not cost.
    cycles: of the operation.
    compute_cycles: of the multipliers and lanes alone.
    memory_cycles: of the busiest memory.
    macs: multiply-accumulates.
    name: of its result in the .tflite.
  """

  operator: str
  on_npu: bool
  cycles: float
  compute_cycles: float
  memory_cycles: float
  macs: int
  name: str


class VelaReport(NamedTuple):
  """A compilation.

  Attributes:
    target: key of TARGETS.
    clock_hz: cycles per second.
    cycles: of one inference.
    weight_bytes: as Vela encodes them.
    ops: in order.
  """

  target: str
  clock_hz: float
  cycles: float
  weight_bytes: int
  ops: tuple[VelaOp, ...]

  @property
  def milliseconds(self) -> float:
    return self.cycles / self.clock_hz * 1e3

  @property
  def on_cpu(self) -> tuple[str, ...]:
    """Operators that Vela leaves to the CPU, without a cost."""
    return tuple(o.operator for o in self.ops if not o.on_npu)


def report(data: bytes, target: str) -> VelaReport:
  """Compiles a .tflite and returns Vela's estimate.

  Args:
    data: the .tflite.
    target: key of TARGETS.

  Raises:
    ImportError: the export extra is not installed.
    ValueError: an unknown target, or Vela refuses the file or crashes.
  """
  if importlib.util.find_spec('ethosu') is None:
    raise ImportError(
      'compiling for an Ethos-U needs the export extra: '
      'pip install "s8bqat_jax[export]"'
    )
  if target not in TARGETS:
    raise ValueError(f'no target {target!r}; targets: {", ".join(TARGETS)}')
  # A process of its own: the compiler is native code and may crash.
  worker = _worker()
  try:
    summary, layers = worker.submit(_compile, data, TARGETS[target]).result()
  except process.BrokenProcessPool as e:
    _worker.cache_clear()
    raise ValueError(f'Vela crashes on the file for {target}') from e
  ops = tuple(
    VelaOp(
      row['Original Operator'],
      row['Target'] == 'NPU',
      float(row['Op Cycles']),
      float(row['NPU']),
      max(float(v) for k, v in row.items() if k.endswith(' AC')),
      int(float(row['MAC Count'])),
      row['Name'],
    )
    for row in layers
  )
  return VelaReport(
    target,
    float(summary['core_clock']),
    float(summary['cycles_total']),
    int(float(summary['total_npu_encoded_weights'])),
    ops,
  )


@functools.cache
def _worker() -> futures.ProcessPoolExecutor:
  spawn = multiprocessing.get_context('spawn')
  return futures.ProcessPoolExecutor(1, spawn, _silence)


def _silence() -> None:
  """Vela's native part writes to the process's streams."""
  nowhere = os.open(os.devnull, os.O_WRONLY)
  os.dup2(nowhere, 1)
  os.dup2(nowhere, 2)


def _compile(data: bytes, t: Target) -> tuple[Row, list[Row]]:
  """Returns the rows of Vela's two tables."""
  from ethosu.vela import vela

  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder) / 'model.tflite'
    path.write_bytes(data)
    try:
      failed = vela.main(
        [
          str(path), '--output-dir', folder, '--verbose-performance',
          '--accelerator-config', t.accelerator, '--config', 'Arm/vela.ini',
          '--system-config', t.system, '--memory-mode', t.memory,
        ]
      )  # fmt: skip
    except (Exception, SystemExit) as e:
      raise ValueError(f'Vela refuses the file: {e}') from None
    if failed:
      raise ValueError('Vela refuses the file')
    (summary,) = _rows(next(pathlib.Path(folder).glob('*_summary_*.csv')))
    return summary, _rows(next(pathlib.Path(folder).glob('*_per-layer.csv')))


def _rows(path: pathlib.Path) -> list[Row]:
  with path.open() as f:
    return list(csv.DictReader(f))
