"""The pictures of a run, from its metrics."""

import collections
from collections.abc import Mapping
from collections.abc import Sequence

import matplotlib
import numpy as np

from tasks.reports import savings as comparison

matplotlib.use('Agg')
import matplotlib.pyplot as plt  # noqa: E402

_MODELS = ('distributor/models', 'aggregator/models')
_ACCURACY = 'evaluation/by_client/accuracy'


def evaluations(
  rows: Sequence[Mapping[str, float]],
) -> list[dict[str, float]]:
  """The rounds with a personalized test.

  Args:
    rows: The metrics of the rounds.

  Returns:
    For each its `round`, `models` (transmitted so far, down and up), `accuracy`
    (mean over devices), and the 10 % and 90 % quantiles `low` and `high`.
  """
  return [
    {
      'round': row['round'],
      'models': sum(row.get(name, 0.0) for name in _MODELS),
      'accuracy': row[f'{_ACCURACY}/mean'],
      'low': row[f'{_ACCURACY}/q10'],
      'high': row[f'{_ACCURACY}/q90'],
    }
    for row in rows
    if f'{_ACCURACY}/mean' in row
  ]


def save_convergence(
  rows: Sequence[Mapping[str, float]], title: str, path: str
) -> None:
  """Draws personalized accuracy against rounds and against models transmitted.

  Args:
    rows: The metrics of the rounds.
    title: The title.
    path: The PNG file to write.
  """
  points = evaluations(rows)
  figure, axes = plt.subplots(
    1, 2, figsize=(10, 4), sharey=True, layout='constrained'
  )
  labels = {'round': 'rounds', 'models': 'models transmitted (down and up)'}
  for axis, (name, label) in zip(axes, labels.items(), strict=True):
    x = [point[name] for point in points]
    axis.plot(x, [point['accuracy'] for point in points], label='mean')
    axis.fill_between(
      x,
      [point['low'] for point in points],
      [point['high'] for point in points],
      alpha=0.2,
      label='10 % to 90 % of devices',
    )
    axis.set_xlabel(label)
    axis.set_ylim(0, 1)
    axis.set_xlim(left=0)
    axis.grid(alpha=0.3)
  axes[0].set_ylabel('personalized test accuracy')
  axes[0].legend(loc='lower right')
  figure.suptitle(title)
  figure.savefig(path, dpi=120)
  plt.close(figure)


def save_comparison(
  curves: Sequence[comparison.Curve], title: str, path: str
) -> None:
  """Draws personalized accuracy against models transmitted, by method.

  Args:
    curves: The runs, smoothed or not. A line is the mean over the seeds of a
      method, its band their range.
    title: The title.
    path: The PNG file to write.
  """
  groups = collections.defaultdict(lambda: collections.defaultdict(list))
  for curve in curves:
    groups[curve.personalization][curve.method].append(curve)
  figure, axes = plt.subplots(
    1,
    len(groups),
    figsize=(5.5 * len(groups), 4),
    sharey=True,
    squeeze=False,
    layout='constrained',
  )
  for axis, (personalization, methods) in zip(
    axes[0], groups.items(), strict=True
  ):
    for method, runs in methods.items():
      # Runs under way have different lengths; a test is at the same round.
      length = min(len(run.models) for run in runs)
      x = np.mean([run.models[:length] for run in runs], axis=0)
      y = np.array([run.accuracy[:length] for run in runs])
      (line,) = axis.plot(x, y.mean(axis=0), label=method)
      axis.fill_between(
        x, y.min(axis=0), y.max(axis=0), color=line.get_color(), alpha=0.2
      )
    axis.set_title(personalization)
    axis.set_xlabel('models transmitted (down and up)')
    axis.set_xlim(left=0)
    axis.grid(alpha=0.3)
    axis.legend(loc='lower right', title='mean and range over seeds')
  # The beginning is steep, and the differences are at the end.
  ends = [curve.accuracy[-1] for curve in curves]
  starts = [curve.accuracy[: len(curve.accuracy) // 4 + 1] for curve in curves]
  low = min(ends + [float(np.median(start)) for start in starts])
  axes[0, 0].set_ylim(low - 0.1 * (1 - low), None)
  axes[0, 0].set_ylabel('personalized test accuracy')
  figure.suptitle(title, fontsize='medium')
  figure.savefig(path, dpi=120)
  plt.close(figure)
