"""Sub-8-bit quantization-aware training for speech recognition in JAX/Flax.

The rooms of the house; each depends on rooms further down only:

  training     loop, checkpoints, devices
  sensitivity  how many bits each tensor gets
  quantizers   what training sees: one record of pure functions per method
  npu          the accelerator: int8 matmul simulator and cost models
  export       .tflite and ONNX files of integer programs
  integer      integer inference as a function transformation
  artifacts    what leaves the house: QTensor, packing, the packed file
  losses       the transducer loss and CTC
  models       flax.linen models, which know no quantizer
  data         corpora, synthesis, batching, text
  speech       features, tokenizers, decoding, error rates, significance
  files        whole or not at all
"""

__version__ = '0.1.0'
