"""A recipe traced without data."""

import jax
import pytest

pytest.importorskip('espeakng_loader')

from experiments import dry_run, trainer
from s8bqat_jax import data
from tests.experiments import tiny


def test_the_step_is_that_of_training():
  config = tiny.get_config()
  config.perturb = {'speeds': (1.0,), 'gain_db': (-6.0, 6.0)}
  corpus = data.load(config.data.train)
  recognizer = trainer.make_recognizer(config, corpus)
  loader = trainer.make_loader(config, corpus, recognizer)
  (batch,) = loader.batches(0, 1)
  found = dry_run.run(
    config,
    seconds=batch['audio_BxS'].shape[1] / 16_000,
    labels=batch['labels_BxU'].shape[1],
    vocab_size=recognizer.tokenizer.vocab_size,
    devices=jax.devices()[:1],
  )
  size = sum(x.nbytes for x in batch.values())
  assert found['batch_bytes_per_device'] == size
  params = jax.eval_shape(recognizer.init, jax.random.key(0))
  assert found['parameters'] == sum(x.size for x in jax.tree.leaves(params))
  assert found['product_flops'] > 0 and not found['loops_of_unknown_length']
