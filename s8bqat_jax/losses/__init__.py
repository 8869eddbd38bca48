"""Sequence losses: functions of arrays that know no model and no corpus.

| function | needs |
| --- | --- |
| `rnnt_loss` | a joint function; memory of a few label states |
| `rnnt_loss_from_logits` | the whole [B, T, U + 1, V] tensor of logits |
| `ctc_loss` | [B, T, V] logits |
"""

from s8bqat_jax.losses.ctc import ctc_loss
from s8bqat_jax.losses.rnnt import rnnt_loss, rnnt_loss_from_logits

__all__ = ['ctc_loss', 'rnnt_loss', 'rnnt_loss_from_logits']
