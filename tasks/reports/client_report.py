"""Writes an evaluation device by device: tables, figures and a summary."""

from collections.abc import Sequence
import os
from typing import Any

import numpy as np

from tasks.reports import figures
from tasks.reports import tables
from tasks.runs import per_client

# The lines of groups, in colours that no method has.
_LINES: dict[str, dict[str, Any]] = {
  'took part': {'color': '#44aa99', 'linestyle': '-', 'marker': 'o'},
  'not yet': {'color': '#999933', 'linestyle': '--', 'marker': 's'},
  'held out': {'color': '#882255', 'linestyle': '-.', 'marker': '^'},
}
_BINS = np.linspace(0, 1, 21).tolist()
_NOTES = """\
The personalized test accuracy over the devices that took part in training, that
can but did not yet, and that are held out of it. The worst tenth of devices is
at or below q10, the best tenth at or above q90.

* A device counts if it has data to train and to test on and its result is
  finite.
* n/a: prototypes replace the last layer, so it is not trained. The meta-model
  has no accuracy of its own then, and there is no gain.
* With prototypes a test example is wrong if the device has no training example
  of its class.
* A point of the few-shot curve is the mean over the devices with at least that
  number of training examples. Each trains on that many of them, chosen at
  random, and keeps those of the point before.
"""


def save(evaluation: per_client.Evaluation, folder: str) -> str:
  """Writes the files into a folder for the round, in the place of older ones.

  Gives the summary, and where the files are.
  """
  target = os.path.join(folder, f'round_{evaluation.round_num:06d}')
  os.makedirs(target, exist_ok=True)
  tables.write_csv(evaluation.clients, os.path.join(target, 'clients.csv'))
  _draw_histogram(evaluation, os.path.join(target, 'histogram.png'))
  for name, of, label in (
    ('few_shot', 'examples', 'local training examples'),
    ('steps', 'steps', 'MAML steps on all local examples'),
  ):
    if rows := getattr(evaluation, name):
      path = os.path.join(target, name)
      tables.write_csv(rows, f'{path}.csv')
      _draw_curves(evaluation, rows, of, label, f'{path}.png')
  summary = _summary(evaluation)
  with open(os.path.join(target, 'summary.md'), 'w') as file:
    file.write(summary)
  return f'{summary}\nIn {target}: {", ".join(sorted(os.listdir(target)))}'


def _summary(evaluation: per_client.Evaluation) -> str:
  """Markdown, which is also for the terminal."""
  rows, sentences = [], []
  for group in per_client.GROUPS:
    accuracy, meta, gain, alone = (
      _column(evaluation, name, group)
      for name in ('accuracy', 'meta_accuracy', 'gain', 'alone')
    )
    counts = np.isfinite(accuracy)
    if not counts.any():
      continue
    values = np.sort(accuracy[counts])
    low, median, high = per_client.quantile(values, (0.1, 0.5, 0.9))
    numbers = {
      'mean': values.mean(),
      'std': values.std(),
      'min': values.min(),
      'q10': low,
      'median': median,
      'q90': high,
      'meta-model': meta[counts].mean(),
      'gain': gain[counts].mean(),
    }
    row = {'group': group, 'devices': f'{counts.sum()} of {len(counts)}'}
    for name, value in numbers.items():
      row[name] = 'n/a' if np.isnan(value) else f'{value:.4f}'
    rows.append(row)
    # How many are worse off, and how the worst are.
    parts = []
    for name, others in (('alone', alone), ('the meta-model', meta)):
      both = counts & np.isfinite(others)
      if both.any():
        parts.append(
          f'{np.sum(accuracy[both] < others[both])} of {both.sum()} devices are'
          f' worse than {name} ({others[both].mean():.4f})'
        )
    worst = values[: max(1, len(values) // 10)].mean()
    parts.append(f'the worst tenth has {worst:.4f} on average')
    sentences.append(f'{group}: {"; ".join(parts)}.\n')
  table = tables.to_markdown(rows) if rows else 'No device counts.'
  return f'# {evaluation.title}\n\n{table}\n\n{"".join(sentences)}\n{_NOTES}'


def _column(
  evaluation: per_client.Evaluation, name: str, group: str
) -> np.ndarray:
  rows = [row for row in evaluation.clients if row['group'] == group]
  return np.array([row[name] for row in rows])


def _draw_histogram(evaluation: per_client.Evaluation, path: str) -> None:
  present = {row['group'] for row in evaluation.clients}
  groups = [group for group in per_client.GROUPS if group in present]
  # A value on an edge, but for rounding, is above it.
  *shown, meta = (
    np.minimum(values[np.isfinite(values)] + 1e-6, 1)
    for values in (
      *(_column(evaluation, 'accuracy', group) for group in groups),
      np.array([row['meta_accuracy'] for row in evaluation.clients]),
    )
  )
  figure, (axis,) = _panels(evaluation, 1)
  axis.hist(
    shown,
    _BINS,
    stacked=True,
    label=[f'{g} ({len(v)})' for g, v in zip(groups, shown, strict=True)],
    color=[_LINES[group]['color'] for group in groups],
    edgecolor='white',
    linewidth=0.5,
  )
  if len(meta):
    axis.hist(
      meta,
      _BINS,
      histtype='step',
      color='black',
      linestyle='--',
      label='all, not personalized',
    )
  axis.set(xlabel='test accuracy of a device', ylabel='devices', xlim=(0, 1))
  axis.locator_params('y', integer=True)
  figures.add_legend(figure)
  figures.save(figure, path)


def _draw_curves(
  evaluation: per_client.Evaluation,
  rows: Sequence[per_client.Row],
  of: str,
  label: str,
  path: str,
) -> None:
  """Draws a panel for each group, in which the other groups are grey.

  The places on the axis are the values of the column `of`, side by side.
  """
  places = list(dict.fromkeys(row[of] for row in rows))
  groups = list(dict.fromkeys(row['group'] for row in rows))
  figure, axes = _panels(evaluation, len(groups))
  for axis, own in zip(axes, groups, strict=True):
    for group in groups:
      points = [row for row in rows if row['group'] == group]
      x = [places.index(row[of]) for row in points]
      mean, low, high, alone = (
        [row.get(name, np.nan) for row in points]
        for name in ('mean', 'q10', 'q90', 'alone')
      )
      if group != own:
        axis.plot(x, mean, '0.7', linewidth=1, zorder=1, label='other groups')
        continue
      line = _LINES[group]
      axis.plot(x, mean, label=f'mean, {group}', markersize=3, **line)
      figures.add_band(axis, x, low, high, line, '10 % to 90 % of devices')
      if np.isfinite(alone).any():
        words = 'trained alone on the same examples'
        axis.plot(x, alone, color='0.3', linestyle=':', label=words)
    if of == 'steps':
      axis.axvline(
        evaluation.trained_steps, color='0.4', lw=0.8, label='steps in training'
      )
    axis.set_xticks(range(len(places)), places)
    axis.set(title=own, xlabel=label)
  axes[0].set_ylabel('test accuracy')
  figures.add_legend(figure)
  figures.save(figure, path)


def _panels(
  evaluation: per_client.Evaluation, number: int
) -> tuple[figures.plt.Figure, list[figures.plt.Axes]]:
  size = (max(6.5, 1 + 3.2 * number), 4)
  figure, axes = figures.plt.subplots(
    1, number, figsize=size, sharey=True, squeeze=False
  )
  title, _, rest = evaluation.title.partition(': ')
  figure.suptitle(f'{title}\n{rest}')
  return figure, list(axes[0])
