"""What leaves the house: quantized tensors and the file that holds them.

  qtensor      QTensor, one quantized tensor; dequantize, decode, check
  packing      codes as bytes: n bits each, five ternary codes to a byte
  entropy      lossless entropy coding of codes (rANS)
  container    the safetensors container with a checksum
  names        nested dicts as a flat dict and back
  records      QTensors as the tensors of a file and back
  packed_file  a whole model in one file: save, load, sizes

Exporters (.tflite, ONNX) read integer functions, not these files.
"""

from s8bqat_jax.artifacts.packed_file import (
  Packed,
  PackedFileError,
  encoded_bytes,
  load,
  packed_bytes,
  save,
)
from s8bqat_jax.artifacts.qtensor import (
  QTensor,
  check,
  decode,
  dequantize,
  grid_values,
  is_qtensor,
  uniform_range,
)

__all__ = [
  'Packed',
  'PackedFileError',
  'QTensor',
  'check',
  'decode',
  'dequantize',
  'encoded_bytes',
  'grid_values',
  'is_qtensor',
  'load',
  'packed_bytes',
  'save',
  'uniform_range',
]
