"""Corpora, synthesis and batching.

  load(spec)     the corpus that a data spec names (`spec.py` lists schemes)
  make_loader    batches of a corpus: planned, padded, read ahead, resumable
  Perturbation   how much speed, loudness and noise vary in training
  perturbed      a batch's audio with its loudness and noise, inside the step
  spec_augment   masks over features, inside the jitted step
  Plan           which utterances each global step reads, a pure function

Adding a kind of corpus: one module with `OPTIONS` and `load`, and its line in
`spec.SCHEMES`.
"""

from s8bqat_jax.data.batching import Bucket as Bucket
from s8bqat_jax.data.batching import Plan as Plan
from s8bqat_jax.data.batching import make_buckets as make_buckets
from s8bqat_jax.data.batching import make_plan as make_plan
from s8bqat_jax.data.corpus import BadUtteranceError as BadUtteranceError
from s8bqat_jax.data.corpus import Corpus as Corpus
from s8bqat_jax.data.corpus import Table as Table
from s8bqat_jax.data.corpus import Utterance as Utterance
from s8bqat_jax.data.corpus import concat as concat
from s8bqat_jax.data.corpus import subset as subset
from s8bqat_jax.data.loader import Batch as Batch
from s8bqat_jax.data.loader import Loader as Loader
from s8bqat_jax.data.loader import make_loader as make_loader
from s8bqat_jax.data.masking import SpecAugment as SpecAugment
from s8bqat_jax.data.masking import spec_augment as spec_augment
from s8bqat_jax.data.perturb import Perturbation as Perturbation
from s8bqat_jax.data.spec import load as load
from s8bqat_jax.data.waveform import perturbed as perturbed
