"""The figures of runs, as PNG for a screen and PDF for a paper."""

from collections.abc import Mapping
from collections.abc import Sequence
import functools
import os
from typing import Any

import matplotlib

matplotlib.use('Agg')
from matplotlib import ticker  # noqa: E402
import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402

from tasks.reports import savings  # noqa: E402
from tasks.runs import folder as folder_lib  # noqa: E402
from tasks.runs import methods  # noqa: E402

#: The metrics of every round.
Rows = Sequence[Mapping[str, float]]

MODELS_LABEL = 'models transmitted (down and up)'

#: Lines that can also be told apart without colours.
LINES: list[dict[str, Any]] = [
  {'color': f'C{i}', 'linestyle': style}
  for i, style in enumerate(
    ['-', '--', '-.', ':', (0, (5, 1, 1, 1, 1, 1))]
    + [(0, (8, 2)), (0, (3, 1, 1, 1)), (0, (1, 3))]
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

# The metrics that are norms, and their names in the figure.
_NORMS = {
  'finalizer/update_norm': 'update of the model',
  'finalizer/server_correction_norm': "server's correction",
}
_LOSS = 'client_work/train/loss'


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


def save_convergence(
  rows: Rows,
  title: str,
  path: str,
  baselines: Mapping[str, Rows] | None = None,
  alone: float | None = None,
) -> None:
  """Draws a run: accuracy, and beside it the training loss and the norms.

  Args:
    rows: The metrics of every round.
    title: It begins with the name of the method and a comma.
    path: The PNG, beside which is a PDF.
    baselines: The metrics of other runs by name, whose accuracy is drawn too.
    alone: The accuracy of devices that train alone, drawn as a level.
  """
  tests = _tests(rows)
  figure, axes = plt.subplot_mosaic(
    [['accuracy', 'loss'], ['accuracy', 'norm']],
    figsize=(9, 4),
    width_ratios=(3, 2),
  )
  axis = axes['accuracy']
  label = f'{title.partition(",")[0]}, mean over devices'
  axis.plot(tests['round'], tests['accuracy'], label=label)
  axis.fill_between(
    tests['round'],
    tests['low'],
    tests['high'],
    alpha=0.2,
    linewidth=0,
    label='10 % to 90 % of devices',
  )
  others = (baselines or {}).items()
  for (name, other), line in zip(others, LINES[1:], strict=False):
    points = _tests(other)
    axis.plot(points['round'], points['accuracy'], label=name, **line)
  if alone is not None:
    axis.axhline(alone, color='0.4', lw=1, label='each device alone')
  axis.set(xlabel='round', ylabel='personalized test accuracy')
  axis.set_ylim(tests['low'].min() - 0.03, 1.01)
  axis.legend(loc='lower right')
  _add_models_axis(axis, tests)
  axes['loss'].set(ylabel='training loss', yscale='log')
  axes['norm'].set(ylabel='norm', yscale='log', xlabel='round')
  _draw_metric(axes['loss'], rows, _LOSS, None, LINES[0])
  for (metric, label), line in zip(_NORMS.items(), LINES, strict=False):
    _draw_metric(axes['norm'], rows, metric, label, line)
  if axes['norm'].lines:
    axes['norm'].legend()
  for axis in axes.values():
    axis.set_xlim(0, max(rows[-1]['round'], 1))
    axis.locator_params('x', integer=True)
  figure.suptitle(title)
  save(figure, path)


def _tests(rows: Rows) -> dict[str, np.ndarray]:
  """The columns of `folder.evaluations`."""
  tests = folder_lib.evaluations(rows)
  return {name: np.array([test[name] for test in tests]) for name in tests[0]}


def _add_models_axis(axis: plt.Axes, tests: Mapping[str, np.ndarray]) -> None:
  """An axis of the models transmitted above that of the rounds."""
  # The line goes on after the last test, so that no tick is set back to it.
  rounds = np.append(tests['round'], 2 * tests['round'][-1])
  models = np.append(tests['models'], 2 * tests['models'][-1])
  if models[-1] > 0:
    top = axis.secondary_xaxis(
      'top',
      functions=(
        functools.partial(np.interp, xp=rounds, fp=models),
        functools.partial(np.interp, xp=models, fp=rounds),
      ),
    )
    top.set_xlabel(MODELS_LABEL)


def _draw_metric(
  axis: plt.Axes,
  rows: Rows,
  metric: str,
  label: str | None,
  line: Mapping[str, Any],
) -> None:
  """Draws a metric over the rounds where it is positive, for a log axis."""
  points = [(row['round'], row[metric]) for row in rows if row.get(metric)]
  if points:
    axis.plot(*zip(*points, strict=True), label=label, linewidth=1, **line)
    low, high = axis.get_ylim()
    subs = (1,) if high > 100 * low else (1, 2, 5)
    axis.yaxis.set_major_locator(ticker.LogLocator(subs=subs))
    axis.yaxis.set_major_formatter('{x:g}')
    axis.yaxis.set_minor_locator(ticker.NullLocator())


def save_comparison(
  curves: Sequence[savings.Curve],
  targets: Mapping[str, Sequence[float]],
  title: str,
  path: str,
) -> None:
  """Draws personalized accuracy by method against rounds and models.

  A line is the mean over the seeds of a method, its band their range. Targets,
  by personalization, are thin lines.
  """
  lines = {name: LINES[row.line] for name, row in methods.METHODS.items()}
  for curve in curves:
    lines.setdefault(curve.method, LINES[len(lines) % len(LINES)])
  personalizations = dict.fromkeys(curve.personalization for curve in curves)
  figure, axes = plt.subplots(
    len(personalizations),
    2,
    figsize=(9, 0.8 + 3.1 * len(personalizations)),
    sharey='row',
    squeeze=False,
  )
  for row, personalization in zip(axes, personalizations, strict=True):
    group = [c for c in curves if c.personalization == personalization]
    for axis, x_name in zip(row, ('rounds', 'models'), strict=True):
      for method in dict.fromkeys(curve.method for curve in group):
        runs = [curve for curve in group if curve.method == method]
        x = np.mean([getattr(run, x_name) for run in runs], axis=0)
        y = np.array([run.accuracy for run in runs])
        line, label = lines[method], methods.title(method)
        axis.plot(x, y.mean(axis=0), label=label, **line)
        axis.fill_between(
          x,
          y.min(axis=0),
          y.max(axis=0),
          color=line['color'],
          alpha=0.15,
          linewidth=0,
        )
      for target in targets[personalization]:
        axis.axhline(
          target, color='0.4', linewidth=0.6, zorder=1, label='target'
        )
      axis.set_xlim(left=0)
      axis.set_title(methods.title(personalization))
    row[0].set_ylabel('personalized test accuracy')
  axes[-1, 0].set_xlabel('rounds')
  axes[-1, 1].set_xlabel(MODELS_LABEL)
  figure.suptitle(title)
  num_seeds = len({curve.seed for curve in curves})
  add_legend(figure, 'mean and range over seeds' if num_seeds > 1 else None)
  save(figure, path)
