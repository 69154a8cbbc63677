"""The tables of a tuning: the accuracy of each value, and the choice."""

from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import statistics
from typing import Any

from tasks.reports import savings
from tasks.reports import tables
from tasks.runs import methods

NOTES = (
  'Validation accuracy: personalized, the mean over devices, after the last'
  ' round. ± is the standard deviation over seeds.',
  'Where the first or the last value of a setting is chosen, one beyond may be'
  ' better.',
)


def to_rows(
  curves: Sequence[savings.Curve], names: Sequence[str]
) -> list[dict[str, Any]]:
  """A row for each method and point of the grid, whose settings are `names`.

  The point of a method with the highest mean over seeds is chosen, of equals
  the first.
  """
  accuracy: dict[tuple[Any, ...], list[float]] = {}
  for curve in curves:
    point = (curve.settings[name] for name in names)
    run = (f'{curve.method}/{curve.personalization}', *point)
    accuracy.setdefault(run, []).append(float(curve.accuracy[-1]))
  mean = {run: statistics.mean(found) for run, found in accuracy.items()}
  best = {
    max((run for run in mean if run[0] == method), key=mean.__getitem__)
    for method, *_ in mean
  }
  return [
    {
      'method': run[0],
      **dict(zip(names, run[1:], strict=True)),
      'seeds': len(found),
      'accuracy': mean[run],
      'deviation': statistics.stdev(found) if len(found) > 1 else None,
      'chosen': run in best,
    }
    for run, found in accuracy.items()
  ]


def edges(
  rows: Sequence[Mapping[str, Any]], grid: Mapping[str, Sequence[Any]]
) -> Iterator[str]:
  """A note for each chosen value that is the smallest or the largest."""
  for row in rows:
    for name, values in grid.items():
      ends = (min(values), max(values))
      if row['chosen'] and len(values) > 1 and row[name] in ends:
        yield (
          f'{row["method"]}: {name}={row[name]:g} is at the edge of the grid.'
          ' Try a value beyond it.'
        )


def to_markdown(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> str:
  """The table for people."""
  return tables.to_markdown(
    [
      {
        'method': ', '.join(map(methods.title, row['method'].split('/'))),
        **{k: '' if row[k] is None else f'{row[k]:g}' for k in names},
        'validation accuracy': f'{row["accuracy"]:.4f}'
        + (f' ± {row["deviation"]:.4f}' if row['seeds'] > 1 else ''),
        'chosen': '←' if row['chosen'] else '',
      }
      for row in rows
    ]
  )
