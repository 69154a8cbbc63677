"""The tables of a tuning: the accuracy of each value, and the choice."""

from collections.abc import Mapping
from collections.abc import Sequence
import statistics
from typing import Any

from tasks.reports import tables
from tasks.runs import methods

#: The values that a run has of the grid, by name.
Point = tuple[tuple[str, Any], ...]
#: The final accuracy of each seed, by method (as `pfl_dyn/maml`) and point.
Accuracy = Mapping[tuple[str, Point], Sequence[float]]

_NOTES = (
  'Validation accuracy: personalized, the mean over devices, after the last'
  ' round. ± is the standard deviation over seeds.',
  'Where the first or the last value of a setting is chosen, one beyond may be'
  ' better.',
)


def to_rows(accuracy: Accuracy, grid: Sequence[str]) -> list[dict[str, Any]]:
  """A row for each method and point; `grid` are the names of its settings.

  The point of a method with the highest mean is chosen, of equals the first.
  """
  mean = {run: statistics.mean(found) for run, found in accuracy.items()}
  best = {
    method: max((run for run in mean if run[0] == method), key=mean.__getitem__)
    for method, _ in mean
  }
  return [
    {
      'method': run[0],
      **{name: dict(run[1]).get(name) for name in grid},
      'seeds': len(found),
      'accuracy': mean[run],
      'deviation': statistics.stdev(found) if len(found) > 1 else None,
      'chosen': run == best[run[0]],
    }
    for run, found in accuracy.items()
  ]


def to_markdown(
  accuracy: Accuracy, grid: Sequence[str], notes: Sequence[str] = ()
) -> str:
  """The table for people; `notes` stand after those that explain it."""
  lines = [
    {
      'method': ', '.join(map(methods.title, row['method'].split('/'))),
      **{k: '' if row[k] is None else f'{row[k]:g}' for k in grid},
      'validation accuracy': tables.mean_and_deviation(found, 4),
      'chosen': '←' if row['chosen'] else '',
    }
    for row, found in zip(
      to_rows(accuracy, grid), accuracy.values(), strict=True
    )
  ]
  explained = '\n'.join(f'* {note}' for note in (*_NOTES, *notes))
  return f'{tables.to_markdown(lines)}\n\n{explained}'
