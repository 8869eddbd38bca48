"""The accelerator: what its arithmetic computes and what it costs.

int8_matmul     its matrix product, bit for bit
matmul_report   what saturated or overflowed in one
latency         cycles, bytes and milliseconds of an integer function
NpuSpec         a machine as data; INDEX_NPU reads n-bit codes, INT8_NPU bytes
plot            a latency as a picture, operation by operation
ethos.latency   the same for Arm's Ethos-U55, U65 and U85, fitted to Vela
vela.report     what Vela itself says of a .tflite (export extra)
"""

from s8bqat_jax.npu import ethos, vela
from s8bqat_jax.npu.cost import (
  INDEX_NPU,
  INT8_NPU,
  Latency,
  NpuSpec,
  OpCost,
  latency,
)
from s8bqat_jax.npu.matmul import Report, int8_matmul, matmul_report
from s8bqat_jax.npu.picture import plot

__all__ = [
  'INDEX_NPU',
  'INT8_NPU',
  'Latency',
  'NpuSpec',
  'OpCost',
  'Report',
  'ethos',
  'int8_matmul',
  'latency',
  'matmul_report',
  'plot',
  'vela',
]
