"""A Latency as a picture."""

from __future__ import annotations

import os

from s8bqat_jax.npu.cost import Latency, OpCost

# Bars that one can still tell apart; the cheaper operations share one more.
_MOST = 40
_LABEL = 44
_COLORS = {'compute': '#4c72b0', 'memory': '#dd8452', 'overhead': '#bbbbbb'}
_BYTES = {'weights': '#55a868', 'activations': '#8172b3'}


def plot(latency: Latency, path: os.PathLike | str, title: str = '') -> None:
  """Draws cycles per operation by what bounds them, and bytes beside.

  In the program's order, without what costs nothing. Activations are those that
  leave the chip (of a fitted machine: what the program reads and returns).

  Args:
    latency: of `npu.latency` or `ethos.latency`.
    path: of the picture; its ending is the format.
    title: what was costed; the machine and the totals are written beside it.

  Raises:
    ImportError: matplotlib is not installed.
    ValueError: no operation of the program costs anything.
  """
  from matplotlib.figure import Figure

  costly = [o for o in latency.ops if o.cycles >= 1 or o.weight_bytes]
  if not costly:
    raise ValueError('no operation of the program costs anything to plot')
  shown, rest = _dearest(costly)
  bars = [_Bar(_label(o), [o], latency) for o in shown]
  if rest:
    bars.append(_Bar(f'{len(rest)} other operations', rest, latency))
  # A canvas of its own: no backend is chosen for the caller.
  figure = Figure(figsize=(12, 1.8 + 0.22 * len(bars)), layout='constrained')
  left, right = figure.subplots(
    1, 2, sharey=True, gridspec_kw={'width_ratios': (3, 2)}
  )
  places = range(len(bars))
  for axes, colors, parts in (
    (left, _COLORS, [b.cycles for b in bars]),
    (right, _BYTES, [b.bytes for b in bars]),
  ):
    start = [0.0] * len(bars)
    for name, color in colors.items():
      widths = [p[name] for p in parts]
      if any(w >= 1 for w in widths):
        axes.barh(places, widths, left=start, color=color, label=name)
      start = [a + b for a, b in zip(start, widths)]
    for place, end in zip(places, start):
      if end:
        axes.text(end, place, f' {end:,.0f}', va='center', fontsize=7)
    axes.set_xlim(0, 1.2 * max(start) or 1)
    axes.xaxis.set_major_formatter('{x:,.0f}')
    axes.spines[['top', 'right']].set_visible(False)
    if any(start):
      axes.legend(
        loc='lower right', bbox_to_anchor=(1, 1), ncols=3, frameon=False
      )
    else:
      axes.set_xticks([])
  left.set_yticks(places, [b.label for b in bars], fontsize=7)
  left.set_ylim(len(bars) - 0.4, -0.6)
  left.set_xlabel('cycles, by what bounds the operation')
  right.set_xlabel('bytes fetched')
  right.tick_params(axis='y', left=False)
  figure.suptitle(
    f'{title + ", " if title else ""}{latency.spec.name}: '
    f'{1e3 * latency.milliseconds:,.1f} us, {latency.cycles:,.0f} cycles, '
    f'{latency.weight_bytes:,} bytes of weights',
    fontsize=11,
  )
  figure.savefig(path, dpi=110)


class _Bar:
  """One line of the picture.

  Args:
    label: beside it.
    ops: that it stands for.
    latency: of the program.
  """

  def __init__(self, label: str, ops: list[OpCost], latency: Latency):
    self.label = label
    self.cycles = dict.fromkeys(_COLORS, 0.0)
    for o in ops:
      overhead = latency.spec.overhead_cycles * o.repeats
      self.cycles[o.bound] += o.cycles - overhead
      self.cycles['overhead'] += overhead
    self.bytes = {
      'weights': sum(o.weight_bytes for o in ops),
      'activations': sum(o.activation_bytes for o in ops),
    }


def _dearest(ops: list[OpCost]) -> tuple[list[OpCost], list[OpCost]]:
  """The dearest operations in the program's order, and the others."""
  order = sorted(range(len(ops)), key=lambda i: -ops[i].cycles)
  kept = set(order if len(ops) <= _MOST + 1 else order[:_MOST])
  return (
    [o for i, o in enumerate(ops) if i in kept],
    [o for i, o in enumerate(ops) if i not in kept],
  )


def _label(o: OpCost) -> str:
  """Both ends of a long site tell more than its beginning."""
  site = o.site
  if len(site) > _LABEL:
    site = f'{site[: _LABEL // 2]}..{site[-_LABEL // 2 :]}'
  return f'{o.op.removeprefix("q_")}  {site}'
