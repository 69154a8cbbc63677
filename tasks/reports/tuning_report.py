"""The tables of a tuning: the accuracy of each value, and the choice."""

from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
import statistics
from typing import Any

from tasks.reports import tables
from tasks.runs import names

#: The values that a run has of the grid, by name.
Point = tuple[tuple[str, Any], ...]
#: The final accuracy of each seed, by method (as `pfl_dyn/maml`) and point.
Accuracy = Mapping[tuple[str, Point], Sequence[float]]


def best_points(accuracy: Accuracy) -> dict[str, Point]:
  """The point with the highest mean for each method; of equals the first."""
  means = {run: statistics.mean(found) for run, found in accuracy.items()}
  best: dict[str, Point] = {}
  for method, point in means:
    if method not in best or means[method, point] > means[method, best[method]]:
      best[method] = point
  return best


def to_rows(accuracy: Accuracy, settings: Iterable[str]) -> list[dict]:
  """A row for each method and point; `settings` are the names of the grid."""
  settings, best = list(settings), best_points(accuracy)
  return [
    {
      'method': method,
      **{name: dict(point).get(name) for name in settings},
      'seeds': len(found),
      'accuracy': statistics.mean(found),
      'deviation': statistics.stdev(found) if len(found) > 1 else None,
      'chosen': point == best[method],
    }
    for (method, point), found in accuracy.items()
  ]


def to_markdown(
  accuracy: Accuracy,
  grid: Mapping[str, Sequence[Any]],
  origin: Mapping[str, Any],
) -> str:
  """The table for people, with notes; `origin` says how it was made."""
  rows = []
  for row in to_rows(accuracy, grid):
    method = ', '.join(map(names.name, row['method'].split('/')))
    found = f'{row["accuracy"]:.4f}'
    if row['deviation'] is not None:
      found += f' ± {row["deviation"]:.4f}'
    rows.append(
      {
        'method': method,
        **{k: '' if row[k] is None else f'{row[k]:g}' for k in grid},
        'validation accuracy': found,
        'chosen': '←' * row['chosen'],
      }
    )
  notes = [
    'Validation accuracy: personalized, the mean over devices, after the last'
    ' round. ± is the standard deviation over seeds.'
  ]
  for method, point in best_points(accuracy).items():
    notes += [
      f'{method}: {name}={value:g} is the first or last of its values. One'
      ' beyond may be better.'
      for name, value in point
      if len(grid[name]) > 2 and value in (min(grid[name]), max(grid[name]))
    ]
  notes.append(', '.join(f'{name}: {value}' for name, value in origin.items()))
  notes = '\n'.join(f'* {note}' for note in notes)
  return f'{tables.to_markdown(rows)}\n\n{notes}'
