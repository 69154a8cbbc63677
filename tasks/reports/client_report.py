"""The files of an evaluation: tables, figures and a summary."""

from collections.abc import Callable
from collections.abc import Sequence
import os
import tempfile

import numpy as np

from tasks.reports import figures
from tasks.reports import tables
from tasks.runs import per_client

_LINES = dict(zip(per_client.GROUPS, figures.LINES, strict=False))
_MAX_BINS = 25


def save(evaluation: per_client.Evaluation, folder: str) -> str:
  """Writes the files into a folder for the round, all at once.

  Files of the same round are replaced. Gives the summary, and where they are.
  """
  target = os.path.join(folder, f'round_{evaluation.round_num:06d}')
  summary = _summary(evaluation)
  os.makedirs(folder, exist_ok=True)
  with tempfile.TemporaryDirectory(prefix='.', dir=folder) as temporary:
    new = os.path.join(temporary, 'new')
    os.mkdir(new)
    _draw_histogram(evaluation, os.path.join(new, 'histogram.png'))
    if evaluation.few_shot:
      _draw_few_shot(evaluation, os.path.join(new, 'few_shot.png'))
    if evaluation.steps:
      _draw_steps(evaluation, os.path.join(new, 'steps.png'))
    for name in ('clients', 'few_shot', 'steps'):
      if rows := getattr(evaluation, name):
        tables.write_csv(rows, os.path.join(new, f'{name}.csv'))
    with open(os.path.join(new, 'summary.md'), 'w') as file:
      file.write(summary)
    files = ', '.join(sorted(os.listdir(new)))
    if os.path.exists(target):
      os.rename(target, os.path.join(temporary, 'old'))
    os.rename(new, target)
  return f'{summary}\nIn {target}: {files}'


def _summary(evaluation: per_client.Evaluation) -> str:
  """Markdown, which is also for the terminal."""
  rows = []
  for group in _groups(evaluation):
    accuracy = _column(evaluation, 'accuracy', group)
    is_included = np.isfinite(accuracy)
    values = accuracy[is_included]
    names = ('mean', 'std', 'min', 'q10', 'median', 'q90')
    cells = dict.fromkeys(names, np.nan)
    if len(values):
      quantiles = per_client.quantile(values, (0.1, 0.5, 0.9))
      found = (values.mean(), values.std(), values.min(), *quantiles)
      cells = dict(zip(names, found, strict=True))
    for name, column in (('meta-model', 'meta_accuracy'), ('gain', 'gain')):
      values = _column(evaluation, column, group)[is_included]
      cells[name] = values.mean() if len(values) else np.nan
    cells = {
      name: 'n/a' if np.isnan(value) else f'{value:.4f}'
      for name, value in cells.items()
    }
    rows.append({'group': group, 'devices': str(is_included.sum()), **cells})
  return '\n'.join(
    (
      f'# {evaluation.title}',
      '',
      'Personalized test accuracy over devices that took part in training, that'
      ' can but did not yet,',
      'and that are held out of it. The worst tenth of devices is at or below'
      ' q10, the best tenth at or above q90.',
      '',
      tables.to_markdown(rows),
      '',
      *(f'* {note}' for note in evaluation.notes),
      '',
    )
  )


def _groups(evaluation: per_client.Evaluation) -> list[str]:
  found = {row['group'] for row in evaluation.clients}
  return [group for group in per_client.GROUPS if group in found]


def _column(
  evaluation: per_client.Evaluation, name: str, group: str
) -> np.ndarray:
  return np.array(
    [row[name] for row in evaluation.clients if row['group'] == group]
  )


def _bins(accuracies: np.ndarray, num_examples: int) -> np.ndarray:
  """Edges between the accuracies that a device can have, multiples of 1/n.

  Each bin holds the same number of possible accuracies, and the last one ends
  above 1.
  """
  possible = round((1 - accuracies.min()) * num_examples) + 1
  per_bin = -(-possible // _MAX_BINS)
  number = -(-possible // per_bin)
  places = num_examples + 0.5 - per_bin * np.arange(number, -1, -1)
  return places / num_examples


def _draw_histogram(evaluation: per_client.Evaluation, path: str) -> None:
  groups = _groups(evaluation)
  accuracies = [_column(evaluation, 'accuracy', group) for group in groups]
  accuracies = [values[np.isfinite(values)] for values in accuracies]
  meta = np.array([row['meta_accuracy'] for row in evaluation.clients])
  meta = meta[np.isfinite(meta)]
  tested = [row['tested'] for row in evaluation.clients if row['tested'] > 0]
  figure, (axis,) = _panels(evaluation, 1)
  everything = np.concatenate([*accuracies, meta])
  if len(everything):
    bins = _bins(everything, int(np.median(tested)))
    axis.hist(
      accuracies,
      bins,
      stacked=True,
      label=[
        f'{g} ({len(v)})' for g, v in zip(groups, accuracies, strict=True)
      ],
      color=[_LINES[group]['color'] for group in groups],
      edgecolor='white',
      linewidth=0.5,
    )
    if len(meta):
      axis.hist(
        meta,
        bins,
        histtype='step',
        color='black',
        linestyle='--',
        label='all, not personalized',
      )
    axis.set_xlim(bins[0], bins[-1])
  axis.set(xlabel='test accuracy of a device', ylabel='devices')
  axis.xaxis.get_major_locator().set_params(steps=(1, 2, 5, 10))
  axis.yaxis.get_major_locator().set_params(integer=True)
  figures.add_legend(figure)
  figures.save(figure, path)


def _draw_few_shot(evaluation: per_client.Evaluation, path: str) -> None:
  """Draws the numbers of examples side by side, as far as they are apart."""
  rows = evaluation.few_shot
  numbers = sorted({r['examples'] for r in rows if r['examples'] != 'all'})
  labels = [*numbers, 'all']
  axes = _draw_curves(
    evaluation, rows, lambda row: labels.index(row['examples'])
  )
  for axis in axes:
    axis.set_xticks(range(len(labels)), labels)
    axis.set_xlabel('local training examples')
  figures.add_legend(axes[0].figure)
  figures.save(axes[0].figure, path)


def _draw_steps(evaluation: per_client.Evaluation, path: str) -> None:
  axes = _draw_curves(evaluation, evaluation.steps, lambda row: row['steps'])
  for axis in axes:
    axis.axvline(
      evaluation.trained_steps,
      color='0.4',
      linewidth=0.8,
      label='steps in training',
    )
    axis.set_xlabel('MAML steps on all local examples')
    axis.xaxis.get_major_locator().set_params(integer=True)
  figures.add_legend(axes[0].figure)
  figures.save(axes[0].figure, path)


def _draw_curves(
  evaluation: per_client.Evaluation,
  rows: Sequence[per_client.Row],
  place: Callable[[per_client.Row], float],
) -> list[figures.plt.Axes]:
  """Draws a panel for each group, in which the other groups are grey."""
  groups = [
    g for g in _groups(evaluation) if any(r['group'] == g for r in rows)
  ]
  figure, axes = _panels(evaluation, len(groups))
  for axis, own in zip(axes, groups, strict=True):
    others = {'label': 'other groups'}
    for group in groups:
      points = [row for row in rows if row['group'] == group]
      x = [place(row) for row in points]
      mean = [row['mean'] for row in points]
      if group != own:
        axis.plot(x, mean, color='0.7', linewidth=1, zorder=1, **others)
        others = {}
        continue
      axis.plot(x, mean, marker='.', label=f'mean, {group}', **_LINES[group])
      axis.fill_between(
        x,
        [row['q10'] for row in points],
        [row['q90'] for row in points],
        color=_LINES[group]['color'],
        alpha=0.15,
        linewidth=0,
        label='10 % to 90 % of devices',
      )
    axis.set_title(own)
  axes[0].set_ylabel('test accuracy')
  return axes


def _panels(
  evaluation: per_client.Evaluation, number: int
) -> tuple[figures.plt.Figure, list[figures.plt.Axes]]:
  figure, axes = figures.plt.subplots(
    1,
    number,
    figsize=(max(6.5, 1 + 3.2 * number), 4),
    sharey=True,
    squeeze=False,
  )
  title, _, rest = evaluation.title.partition(': ')
  figure.suptitle(f'{title}\n{rest}')
  return figure, list(axes[0])
