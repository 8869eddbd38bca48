"""What a packed recognizer costs an accelerator, per second of audio.

  frames x encoder + (frames + symbols) x joint + symbols x prediction network

of integer programs for one stream. With a chunk of eight frames at a time the
encoder's input weights are fetched once for all eight. Machines are the papers'
idealized one, which reads n-bit indices, the same one reading bytes, and three
Ethos-U by our fit to Vela, whose coder shrinks the weights that it reads.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import Any

from experiments import integer_recognizer, results
from experiments.recognizer import Recognizer
from s8bqat_jax import data, npu

CHUNKS = (1, 8)
_IDEAL = {'index': npu.INDEX_NPU, 'int8': npu.INT8_NPU}


def machines() -> dict[str, Callable[[Any], npu.Latency]]:
  """Returns what each machine takes for one call of an integer function."""
  found: dict[str, Callable[[Any], npu.Latency]] = {}
  for name, spec in _IDEAL.items():
    found[name] = functools.partial(npu.latency, spec=spec)
  for name, machine in npu.ethos.machines().items():
    # 'u55_128' for ethos-u55-128.
    short = name.removeprefix('ethos-').replace('-', '_')
    found[short] = functools.partial(npu.ethos.latency, machine=machine)
  return found


def fingerprint() -> str:
  """Returns a hash of all machines: other constants are other costs."""
  specs = {**_IDEAL, **npu.ethos.machines()}
  return results.config_hash({name: repr(spec) for name, spec in specs.items()})


def symbols_per_second(recognizer: Recognizer, corpus: data.Corpus) -> float:
  """Returns how many labels a second of a corpus holds.

  Args:
    recognizer: whose tokenizer makes the labels.
    corpus: what the tokenizer cannot spell is left out, time and all.
  """
  labels, seconds = 0, 0.0
  for text, duration in zip(corpus.texts_N, corpus.durations_N, strict=True):
    with contextlib.suppress(ValueError):
      labels += len(recognizer.tokenizer.encode(text))
      seconds += float(duration)
  return labels / seconds if seconds else 0.0


def per_second(
  recognizer: Recognizer,
  tree: Any,
  ranges: integer_recognizer.Ranges,
  symbols: float,
) -> dict[str, float]:
  """Returns traffic and latency for a second of audio.

  Args:
    recognizer: in float.
    tree: its weights, QTensors among them.
    ranges: of its activations.
    symbols: labels per second of audio.

  Returns:
    For each machine m and chunk c: `<m>_traffic_<c>`, bytes of weights fetched,
    and `<m>_latency_ms_<c>`.
  """
  programs = integer_recognizer.Programs(recognizer, tree, ranges)
  model = recognizer.model
  frames = recognizer.log_mel.sample_rate / recognizer.samples_per_frame
  joint = programs.joint((1, model.joint_width), (1, model.joint_width))
  predict = programs.predict_step(1)
  costs_of = machines()
  # Neither of these depends on the chunk.
  of_joint, of_predict = (
    {name: cost_of(fn) for name, cost_of in costs_of.items()}
    for fn in (joint, predict)
  )
  found = {}
  for chunk in CHUNKS:
    encode = programs.encode_chunk(1, chunk * model.subsampling)
    for name, cost_of in costs_of.items():
      calls = (
        (frames / chunk, cost_of(encode)),
        (frames + symbols, of_joint[name]),
        (symbols, of_predict[name]),
      )
      traffic = sum(n * cost.weight_bytes for n, cost in calls)
      latency = sum(n * cost.milliseconds for n, cost in calls)
      found[f'{name}_traffic_{chunk}'] = traffic
      found[f'{name}_latency_ms_{chunk}'] = latency
  return found
