"""A language small enough to train models of in a test, and its config."""

import pathlib

import numpy as np

from experiments.configs import lm


def config(folder: pathlib.Path, train: int, held_out: int):
  """Writes the language's text and returns a config of tiny models of it.

  Args:
    folder: where to.
    train: sentences to train on.
    held_out: sentences of `valid.txt`, for development and evaluation.
  """
  for name, seed, count in (('train', 0, train), ('valid', 1, held_out)):
    (folder / f'{name}.txt').write_text(sentences(seed, count))
  config = lm.default()
  config.vocabulary = 'word'
  config.data.train = f'text:{folder}/train.txt'
  config.data.dev = f'text:{folder}/valid.txt?part=dev'
  config.data.eval = f'text:{folder}/valid.txt?part=eval'
  config.data.update(
    {'batch_size': 4, 'length': 16, 'score_length': 16, 'score_context': 8}
  )
  config.model.update({'width': 8, 'layers': 1, 'heads': 2, 'ffn_width': 16})
  config.train.update({'steps': 40, 'warmup_steps': 4, 'learning_rate': 1e-2})
  return config


def sentences(seed, count):
  """Returns text in which each word allows two successors.

  Args:
    seed: of the text.
    count: of sentences, twenty an article.
  """
  rng = np.random.default_rng(seed)
  words = [f'w{i}' for i in range(20)]
  lines = []
  for article in range(count // 20):
    lines.append(f' = Title {words[article % 20]} = ')
    for _ in range(20):
      at = rng.integers(20)
      line = []
      for _ in range(rng.integers(3, 9)):
        line.append(words[at])
        at = (at * 3 + rng.integers(2)) % 20
      lines.append(' '.join(line))
  return '\n'.join(lines) + '\n'
