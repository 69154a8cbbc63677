"""The figures of runs, as PNG for a screen and PDF for a paper."""

from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
import os
from typing import Any

import matplotlib

matplotlib.use('Agg')
import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402

from tasks.reports import savings  # noqa: E402
from tasks.runs import methods  # noqa: E402
from tasks.runs import settings as settings_lib  # noqa: E402

#: Lines that can also be told apart without colours; a marker is a test.
LINES: list[dict[str, Any]] = [
  {'color': f'C{i}', 'linestyle': style, 'marker': marker, 'markersize': 3}
  for i, (style, marker) in enumerate(
    [('-', 'o'), ('--', 's'), ('-.', '^'), (':', 'D')]
    + [((0, (5, 1, 1, 1, 1, 1)), 'v'), ((0, (8, 2)), 'P')]
    + [((0, (3, 1, 1, 1)), 'X'), ((0, (1, 3)), '*')]
  )
]

plt.rcParams.update(
  {
    'axes.axisbelow': True,
    'axes.grid': True,
    'axes.spines.right': False,
    'axes.spines.top': False,
    'axes.titlesize': 'medium',
    'figure.constrained_layout.use': True,
    'figure.titlesize': 'medium',
    'font.size': 9,
    'grid.alpha': 0.3,
    'legend.frameon': False,
    # Text that stays text, which publishers ask for.
    'pdf.fonttype': 42,
    'savefig.dpi': 150,
  }
)


def lines_of(names: Iterable[str]) -> dict[str, dict[str, Any]]:
  """The lines of methods, by name: the same in every figure."""
  places = {name: row.line for name, row in methods.METHODS.items()}
  for name in names:
    places.setdefault(name, len(places))
  return {name: LINES[i % len(LINES)] for name, i in places.items()}


def save(figure: plt.Figure, path: str) -> None:
  """Writes a figure as PNG and beside it as PDF, and closes it."""
  # Without a date the same figure is the same file.
  figure.savefig(
    f'{os.path.splitext(path)[0]}.pdf', metadata={'CreationDate': None}
  )
  figure.savefig(path)
  plt.close(figure)


def add_legend(figure: plt.Figure, title: str | None = None) -> None:
  """Adds a legend of all panels below them, where it hides nothing."""
  entries: dict[str, Any] = {}
  for axis in figure.axes:
    for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
      entries.setdefault(label, handle)
  figure.legend(
    entries.values(),
    entries.keys(),
    loc='outside lower center',
    ncols=4,
    title=title,
  )


def add_band(
  axis: plt.Axes,
  x: Any,
  low: Any,
  high: Any,
  line: Mapping[str, Any],
  label: str | None = None,
) -> None:
  """Fills what lies between two curves, in the colour of a line."""
  color = line['color']
  axis.fill_between(x, low, high, color=color, alpha=0.15, lw=0, label=label)


def save_convergence(
  curves: Sequence[savings.Curve],
  settings: settings_lib.Settings,
  path: str,
  alone: float | None = None,
) -> None:
  """Draws the personalized accuracy of a run against its rounds.

  Args:
    curves: That of the run, and those of others that are drawn too.
    settings: Those of the run.
    path: The PNG, beside which is a PDF.
    alone: The accuracy of devices that train alone, drawn as a level.
  """
  figure, axis = plt.subplots(figsize=(7, 4.5))
  lines = lines_of(curve.method for curve in curves)
  for curve in curves:
    label, line = methods.title(curve.method), lines[curve.method]
    axis.plot(curve.rounds, curve.tests, label=label, **line)
  own = curves[0]
  label = f'{methods.title(own.method)}, 10 % to 90 % of devices'
  add_band(axis, own.rounds, own.low, own.high, lines[own.method], label)
  _add_alone(axis, alone)
  axis.set(ylabel='personalized test accuracy')
  axis.set_xlabel(_rounds_label(own))
  axis.set_xlim(0, max(own.rounds[-1], 1))
  axis.locator_params('x', integer=True)
  figure.suptitle(f'{settings.title}, seed {settings.seed}')
  add_legend(figure)
  save(figure, path)


def _rounds_label(curve: savings.Curve) -> str:
  """Says the models as well, so that they need no axis of their own."""
  rounds, models = curve.rounds[-1], curve.models[-1]
  if not models:
    return 'rounds'
  return f'rounds ({models / rounds:g} models each, down and up)'


def _add_alone(axis: plt.Axes, alone: float | None) -> None:
  if alone is not None:
    axis.axhline(alone, color='0.3', linestyle=':', label='each device alone')


def save_comparison(
  curves: Sequence[savings.Curve],
  targets: Mapping[str, Sequence[float]],
  title: str,
  path: str,
  alone: float | None = None,
) -> None:
  """Draws personalized accuracy by method against rounds and models.

  A line is the mean over the seeds of a method, its band their range. There is
  no panel for the models where all methods transmit as many in a round.

  Args:
    curves: The curves of all runs.
    targets: Accuracies by personalization, drawn as thin lines.
    title: What the runs share; the number of seeds is put after it.
    path: The PNG, beside which is a PDF.
    alone: The accuracy of devices that train alone, drawn as a level.
  """
  personalizations = dict.fromkeys(curve.personalization for curve in curves)
  lines = lines_of(curve.method for curve in curves)
  costs = {round(c.models[-1] / c.rounds[-1], 2) for c in curves}
  names = ['rounds', 'models'] if len(costs) > 1 else ['rounds']
  figure, axes = plt.subplots(
    len(personalizations),
    len(names),
    figsize=(2.5 + 3.3 * len(names), 0.8 + 3.1 * len(personalizations)),
    sharey='row',
    squeeze=False,
  )
  for row, personalization in zip(axes, personalizations, strict=True):
    group = [c for c in curves if c.personalization == personalization]
    for axis, x_name in zip(row, names, strict=True):
      for method in dict.fromkeys(curve.method for curve in group):
        runs = [curve for curve in group if curve.method == method]
        x = np.mean([getattr(run, x_name) for run in runs], axis=0)
        y = np.array([run.accuracy for run in runs])
        label, line = methods.title(method), lines[method]
        axis.plot(x, y.mean(axis=0), label=label, **line)
        add_band(axis, x, y.min(axis=0), y.max(axis=0), line)
      for target in targets[personalization]:
        axis.axhline(
          target, color='0.4', linewidth=0.6, zorder=1, label='target'
        )
      _add_alone(axis, alone)
      axis.set_xlim(left=0)
      axis.set_title(methods.title(personalization))
    row[0].set_ylabel('personalized test accuracy')
  axes[-1, -1].set_xlabel('models transmitted (down and up)')
  label = 'rounds' if len(costs) > 1 else _rounds_label(curves[-1])
  axes[-1, 0].set_xlabel(label)
  seeds = len({curve.seed for curve in curves})
  figure.suptitle(f'{title}, {seeds} seeds' if seeds > 1 else title)
  add_legend(figure, 'mean and range over seeds' if seeds > 1 else None)
  save(figure, path)
