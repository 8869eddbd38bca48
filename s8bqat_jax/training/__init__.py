"""Training: where arrays live, what is kept, and the loop.

mesh         one `data` axis over every device of every process
checkpoints  atomic, the latest few and the best
metrics      JSON lines and TensorBoard
paths        of this machine, or refused
signals      SIGTERM and Ctrl-C save before they end
host_memory  steps on a CPU reuse what earlier ones freed
loop         any step, any batches; interrupted and resumed exactly
"""

from s8bqat_jax.training.checkpoints import Checkpoints
from s8bqat_jax.training.host_memory import reuse_host_memory
from s8bqat_jax.training.loop import LoopConfig, Outcome, train
from s8bqat_jax.training.mesh import make_mesh, replicate, shard_batch
from s8bqat_jax.training.metrics import MetricWriter, read_metrics
from s8bqat_jax.training.signals import on_sigterm, on_stop

__all__ = [
  'Checkpoints',
  'LoopConfig',
  'MetricWriter',
  'Outcome',
  'make_mesh',
  'on_sigterm',
  'on_stop',
  'read_metrics',
  'replicate',
  'reuse_host_memory',
  'shard_batch',
  'train',
]
