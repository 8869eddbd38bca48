"""Trains a recognizer from a config; the same command resumes it.

  python -m experiments.train \
    --config=experiments/configs/demo/digits.py --workdir=runs/digits \
    --config.train.steps=500

On several hosts give each process the same command and --coordinator=HOST:PORT,
--num_processes and --process_id (on TPU and Slurm they are found by
themselves: --coordinator=auto). SIGTERM saves a checkpoint and exits with 0.

The working directory then holds: config.json (what ran), model.safetensors
(the weights, averaged, of the best evaluation on development data, with front
end and tokenizer: all that experiments.evaluate needs), metrics.jsonl,
tensorboard/, checkpoints/, corpora.json (what was heard), skipped.json
(unusable utterances, with reasons) and, if the config has such a stage,
pretrain/.
"""

from __future__ import annotations

import jax
from absl import app, flags
from ml_collections import config_flags

from experiments import trainer, usage

_CONFIG = config_flags.DEFINE_config_file(
  'config', None, 'A file with get_config(), e.g. configs/demo/digits.py.'
)
_WORKDIR = flags.DEFINE_string(
  'workdir', None, 'Where everything is written.', required=True
)
_COORDINATOR = flags.DEFINE_string(
  'coordinator',
  None,
  'HOST:PORT of process 0, or "auto"; one process if unset.',
)
_PROCESSES = flags.DEFINE_integer('num_processes', None, 'How many processes.')
_PROCESS = flags.DEFINE_integer('process_id', None, 'Which one this is.')


def main(argv):
  usage.start(argv)
  usage.check_config(_CONFIG.value, 'tokenizer', 'demo, float or librispeech')
  if _COORDINATOR.value == 'auto':
    jax.distributed.initialize()
  elif _COORDINATOR.value:
    jax.distributed.initialize(
      _COORDINATOR.value, _PROCESSES.value, _PROCESS.value
    )
  outcome = trainer.run(_CONFIG.value, _WORKDIR.value)
  if outcome.reason == 'interrupted':
    print(
      f'interrupted at step {int(outcome.state.step)}; run the same command '
      'again to resume'
    )
  elif jax.process_index() == 0:
    print(f'{outcome.reason}; best on development data: {outcome.best}')


if __name__ == '__main__':
  flags.mark_flag_as_required('config')
  app.run(main)
