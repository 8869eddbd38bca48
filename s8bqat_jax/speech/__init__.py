"""From samples to words and error rates.

| file | idea |
| --- | --- |
| `features` | log-mel frames, of a batch or of a stream |
| `normalize` | corpus mean and deviation; running mean |
| `tokenizers` | characters, words, subwords |
| `decode` | greedy search, of a batch or of a stream |
| `beam` | beam search with N-best, optionally through an automaton |
| `ngram` | Kneser-Ney, lexicon automaton, rescoring of N-best |
| `wer` | word and character errors per utterance |
| `significance` | intervals, MAPSSWE, clustered bootstrap, non-inferiority |
"""

from s8bqat_jax.speech.beam import Automaton, NBest, beam_search
from s8bqat_jax.speech.decode import (
  Decoded,
  Transducer,
  ctc_greedy,
  greedy,
  greedy_chunk,
)
from s8bqat_jax.speech.features import LogMel, log_mel, log_mel_chunk
from s8bqat_jax.speech.normalize import GlobalNorm, global_norm, running_mean
from s8bqat_jax.speech.tokenizers import (
  CharTokenizer,
  SubwordTokenizer,
  Tokenizer,
  WordTokenizer,
  tokenizer_from_config,
)
from s8bqat_jax.speech.wer import ErrorCounts, count_errors

__all__ = [
  'Automaton',
  'CharTokenizer',
  'Decoded',
  'ErrorCounts',
  'GlobalNorm',
  'LogMel',
  'NBest',
  'SubwordTokenizer',
  'Tokenizer',
  'Transducer',
  'WordTokenizer',
  'beam_search',
  'count_errors',
  'ctc_greedy',
  'global_norm',
  'greedy',
  'greedy_chunk',
  'log_mel',
  'log_mel_chunk',
  'running_mean',
  'tokenizer_from_config',
]
