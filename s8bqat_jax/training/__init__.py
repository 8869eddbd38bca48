"""Training: where arrays live, what is kept, and the loop.

mesh         one `data` axis over every device of every process
checkpoints  atomic, the latest few and the best
metrics      JSON lines and TensorBoard
loop         any step, any batches; interrupted and resumed exactly
"""

from s8bqat_jax.training.checkpoints import Checkpoints
from s8bqat_jax.training.loop import LoopConfig, Outcome, train
from s8bqat_jax.training.mesh import make_mesh, replicate, shard_batch
from s8bqat_jax.training.metrics import MetricWriter, read_metrics

__all__ = [
  'Checkpoints',
  'LoopConfig',
  'MetricWriter',
  'Outcome',
  'make_mesh',
  'read_metrics',
  'replicate',
  'shard_batch',
  'train',
]
