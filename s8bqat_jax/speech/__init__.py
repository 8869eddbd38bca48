"""From samples to words and error rates.

| file | idea |
| --- | --- |
| `features` | log-mel frames, of a batch or of a stream |
| `normalize` | corpus mean and deviation; running mean |
| `tokenizers` | characters, words, subwords |
"""

from s8bqat_jax.speech.features import LogMel, log_mel, log_mel_chunk
from s8bqat_jax.speech.normalize import GlobalNorm, global_norm, running_mean
from s8bqat_jax.speech.tokenizers import (
  CharTokenizer,
  SubwordTokenizer,
  Tokenizer,
  WordTokenizer,
  tokenizer_from_config,
)

__all__ = [
  'CharTokenizer',
  'GlobalNorm',
  'LogMel',
  'SubwordTokenizer',
  'Tokenizer',
  'WordTokenizer',
  'global_norm',
  'log_mel',
  'log_mel_chunk',
  'running_mean',
  'tokenizer_from_config',
]
