"""Models, in flax.linen; none of them knows a quantizer.

lstm.LSTM   one layer, one fused kernel, a fast backward
rnnt.RNNT   streaming RNN transducer
transformer_lm.TransformerLm   causal language model
"""

from s8bqat_jax.models.lstm import LSTM
from s8bqat_jax.models.rnnt import RNNT
from s8bqat_jax.models.transformer_lm import TransformerLm

__all__ = ['LSTM', 'RNNT', 'TransformerLm']
