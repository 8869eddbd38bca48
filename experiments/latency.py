"""Prints what a recognizer's streaming step costs on an accelerator.

  python -m experiments.latency --model=FILE

Our fitted estimate beside Vela's (a compiler's own model of the machine, not a
measurement), for three Ethos-U; and the idealized machine of the papers, which
reads n-bit indices, against the same machine reading bytes. One frame is one
encoder step, and per emitted label one predictor step; the joint runs once per
frame and once per label. --per_op prints our tables, --plot=FOLDER draws them,
one picture per machine and function. Vela's part needs the export extra;
operators that it leaves to the CPU cost nothing there.
"""

from __future__ import annotations

import importlib.util
import pathlib

from absl import app, flags

from experiments import exporting, usage
from s8bqat_jax import npu
from s8bqat_jax.npu import ethos, vela

_MODEL = flags.DEFINE_string(
  'model', None, 'A packed recognizer with 8-bit activations.', required=True
)
_PER_OP = flags.DEFINE_bool('per_op', False, 'Print every operation.')
_PLOT = flags.DEFINE_string('plot', None, 'Folder of pictures.')


def main(argv) -> None:
  usage.start(argv)
  functions = exporting.functions(_MODEL.value)
  with_vela = importlib.util.find_spec('ethosu') is not None
  if not with_vela:
    print('Vela is not installed (the export extra): our estimates only')
  print(f'{"machine":16}{"function":11}{"ours, us":>10}{"Vela, us":>10}')
  for spec in (npu.INDEX_NPU, npu.INT8_NPU):
    for name, fn in functions.items():
      cost = npu.latency(fn, spec)
      print(f'{spec.name:16}{name:11}{1e3 * cost.milliseconds:10.1f}')
      _show(name, cost)
  exported = {}
  if with_vela:
    from s8bqat_jax.export import tflite

    exported = {name: tflite.export(fn).data for name, fn in functions.items()}
  for machine in ethos.machines().values():
    for name, fn in functions.items():
      cost = ethos.latency(fn, machine)
      line = f'{machine.name:16}{name:11}{1e3 * cost.milliseconds:10.1f}'
      if with_vela:
        report = vela.report(exported[name], machine.name)
        line += f'{1e3 * report.milliseconds:10.1f}'
        if report.on_cpu:
          line += f'  (CPU: {", ".join(report.on_cpu)})'
      print(line)
      _show(name, cost)


def _show(name: str, cost: npu.Latency) -> None:
  """What the flags ask for beside the line."""
  if _PER_OP.value:
    print(cost)
  if _PLOT.value:
    folder = pathlib.Path(_PLOT.value)
    folder.mkdir(parents=True, exist_ok=True)
    machine = cost.spec.name.replace(' ', '_')
    npu.plot(cost, folder / f'{machine}_{name}.png', title=name)


if __name__ == '__main__':
  app.run(main)
