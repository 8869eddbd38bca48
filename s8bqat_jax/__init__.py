"""Sub-8-bit quantization-aware training for speech recognition in JAX/Flax.

The rooms of the house (dependencies point downwards only):

  quantizers   what training sees: one record of pure functions per method
  sensitivity  how many bits each tensor gets
  integer      integer inference as a function transformation
  npu          the accelerator: int8 matmul simulator and cost model
  artifacts    what leaves the house: QTensor, packing, the packed file
  losses       the transducer loss
  models       flax.linen models, which know no quantizer
  speech       features, tokenizers, decoding, error rates, significance
  data         corpora, synthesis, batching
  training     step, loop, checkpoints
"""

__version__ = '0.1.0'
