"""The files of an evaluation: tables, pictures and a summary."""

from collections.abc import Callable
from collections.abc import Sequence
import csv
import os
import tempfile
from typing import Any

import matplotlib

matplotlib.use('Agg')
import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402

from tasks.reports import devices as evaluation_lib  # noqa: E402

_COLORS = dict(zip(evaluation_lib.GROUPS, ('C0', 'C1', 'C2'), strict=True))


def save(evaluation: evaluation_lib.Evaluation, folder: str) -> str:
  """Writes the files into a folder for the round, all at once.

  Args:
    evaluation: What was found.
    folder: The folder. What it has of the same round is replaced.

  Returns:
    The summary, and where the files are.
  """
  target = os.path.join(folder, f'round_{evaluation.round_num:06d}')
  summary = _summary(evaluation)
  os.makedirs(folder, exist_ok=True)
  with tempfile.TemporaryDirectory(prefix='.', dir=folder) as temporary:
    new = os.path.join(temporary, 'new')
    os.mkdir(new)
    _write_rows(evaluation.devices, os.path.join(new, 'devices.csv'))
    _draw_histogram(evaluation, os.path.join(new, 'histogram.png'))
    for name, rows in (
      ('few_shot', evaluation.few_shot),
      ('steps', evaluation.steps),
    ):
      if rows:
        _write_rows(rows, os.path.join(new, f'{name}.csv'))
    if evaluation.few_shot:
      _draw_few_shot(evaluation, os.path.join(new, 'few_shot.png'))
    if evaluation.steps:
      _draw_steps(evaluation, os.path.join(new, 'steps.png'))
    with open(os.path.join(new, 'summary.md'), 'w') as file:
      file.write(summary)
    files = ', '.join(sorted(os.listdir(new)))
    if os.path.exists(target):
      os.rename(target, os.path.join(temporary, 'old'))
    os.rename(new, target)
  return f'{summary}\nIn {target}: {files}'


def _summary(evaluation: evaluation_lib.Evaluation) -> str:
  """Markdown, which is also for the terminal."""
  table = [
    [
      *('group', 'devices', 'mean', 'std', 'min', '10 %', 'median', '90 %'),
      *('meta-model', 'gain'),
    ]
  ]
  for group in _groups(evaluation):
    accuracy = _column(evaluation, 'accuracy', group)
    counts = np.isfinite(accuracy)
    values = accuracy[counts]
    figures = [np.nan] * 6
    if len(values):
      figures = [
        *(values.mean(), values.std(), values.min()),
        *evaluation_lib.quantile(values, (0.1, 0.5, 0.9)),
      ]
    for name in ('meta_accuracy', 'gain'):
      column = _column(evaluation, name, group)[counts]
      figures.append(column.mean() if len(column) else np.nan)
    cells = ['n/a' if np.isnan(f) else f'{f:.4f}' for f in figures]
    table.append([group, str(len(values)), *cells])
  widths = [max(map(len, column)) for column in zip(*table, strict=True)]
  rule = ['-' * widths[0], *('-' * (width - 1) + ':' for width in widths[1:])]
  lines = [table[0], rule, *table[1:]]
  aligned = [
    [
      cell.rjust(width) if i else cell.ljust(width)
      for i, (cell, width) in enumerate(zip(line, widths, strict=True))
    ]
    for line in lines
  ]
  return '\n'.join(
    (
      f'# {evaluation.title}',
      '',
      'Personalized test accuracy over devices that took part in training, that'
      ' can but did not yet,',
      'and that are held out of it:',
      '',
      *('| ' + ' | '.join(line) + ' |' for line in aligned),
      '',
      *(f'* {note}' for note in evaluation.notes),
      '',
    )
  )


def _groups(evaluation: evaluation_lib.Evaluation) -> list[str]:
  found = {row['group'] for row in evaluation.devices}
  return [group for group in evaluation_lib.GROUPS if group in found]


def _column(
  evaluation: evaluation_lib.Evaluation, name: str, group: str
) -> np.ndarray:
  return np.array(
    [row[name] for row in evaluation.devices if row['group'] == group]
  )


def _write_rows(rows: Sequence[dict[str, Any]], path: str) -> None:
  """Writes a table; what is not there is empty."""
  with open(path, 'w', newline='') as file:
    writer = csv.DictWriter(file, rows[0])
    writer.writeheader()
    for row in rows:
      writer.writerow({name: _cell(value) for name, value in row.items()})


def _cell(value: Any) -> str:
  if isinstance(value, str):
    return value
  return '' if np.isnan(value) else f'{value:.7g}'


def _draw_histogram(evaluation: evaluation_lib.Evaluation, path: str) -> None:
  figure, axis = _figure(evaluation)
  groups = _groups(evaluation)
  accuracies = [_column(evaluation, 'accuracy', group) for group in groups]
  # So that in float32, too, 0.9 is in the bin from 0.9 on.
  accuracies = [v[np.isfinite(v)] + 1e-6 for v in accuracies]
  meta = np.array([row['meta_accuracy'] for row in evaluation.devices])
  meta = meta[np.isfinite(meta)] + 1e-6
  lowest = min(np.concatenate([*accuracies, meta]), default=0)
  start = min(np.floor(10 * lowest) / 10, 0.9)
  bins = np.arange(start, 1 + 2e-6, 0.01 if start == 0.9 else 0.05)
  bins[-1] = 1 + 2e-6
  axis.hist(
    accuracies,
    bins,
    stacked=True,
    label=[f'{g} ({len(v)})' for g, v in zip(groups, accuracies, strict=True)],
    color=[_COLORS[group] for group in groups],
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
  axis.set_xlabel('test accuracy of a device')
  axis.set_ylabel('devices')
  axis.yaxis.get_major_locator().set_params(integer=True)
  figure.legend(loc='outside lower center', ncols=4)
  _save(figure, path)


def _draw_few_shot(evaluation: evaluation_lib.Evaluation, path: str) -> None:
  """Draws `all` at the mean number of examples of the group."""
  figure, axis = _figure(evaluation)

  def place(row: dict[str, Any]) -> float:
    if row['examples'] != 'all':
      return row['examples']
    return _column(evaluation, 'train_examples', row['group']).mean()

  _draw_curves(axis, evaluation.few_shot, place)
  places = sorted({place(row) for row in evaluation.few_shot})
  axis.set_xscale('symlog', linthresh=1)
  axis.set_xticks([], minor=True)
  numbers = {row['examples'] for row in evaluation.few_shot} - {'all'}
  axis.set_xticks(sorted(numbers), sorted(numbers))
  axis.set_xlim(0 if 0 in numbers else 0.9, 1.1 * places[-1])
  axis.set_xlabel('local examples of a device (the last point: all it has)')
  _save(figure, path)


def _draw_steps(evaluation: evaluation_lib.Evaluation, path: str) -> None:
  figure, axis = _figure(evaluation)
  _draw_curves(axis, evaluation.steps, lambda row: row['steps'])
  axis.axvline(
    evaluation.trained_steps, color='gray', linestyle=':', label='as trained'
  )
  axis.set_xlabel('MAML steps on all local examples')
  axis.xaxis.get_major_locator().set_params(integer=True)
  axis.set_xlim(left=0)
  axis.legend(loc='lower right')
  _save(figure, path)


def _draw_curves(
  axis: plt.Axes,
  rows: Sequence[dict[str, Any]],
  place: Callable[[dict[str, Any]], float],
) -> None:
  for group, color in _COLORS.items():
    points = [row for row in rows if row['group'] == group]
    if points:
      x = [place(row) for row in points]
      axis.plot(x, [p['mean'] for p in points], 'o-', color=color, label=group)
      axis.fill_between(
        x,
        [p['q10'] for p in points],
        [p['q90'] for p in points],
        color=color,
        alpha=0.12,
        linewidth=0,
      )
  axis.set_ylabel('mean test accuracy (shade: 10 % to 90 % of devices)')
  axis.set_ylim(0, 1.02)
  axis.grid(alpha=0.3)
  axis.legend(loc='lower right')


def _figure(
  evaluation: evaluation_lib.Evaluation,
) -> tuple[plt.Figure, plt.Axes]:
  figure, axis = plt.subplots(figsize=(7, 4.5), layout='constrained')
  title, _, rest = evaluation.title.partition(': ')
  axis.set_title(f'{title}\n{rest}', fontsize=9)
  return figure, axis


def _save(figure: plt.Figure, path: str) -> None:
  figure.savefig(path, dpi=120)
  plt.close(figure)
