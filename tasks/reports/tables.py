"""Rows of named values as Markdown for people and as CSV for programs."""

from collections.abc import Mapping
from collections.abc import Sequence
import csv
import math
import statistics
from typing import Any


def to_markdown(rows: Sequence[Mapping[str, str]]) -> str:
  """A table of rows with the same columns, also aligned in a terminal."""
  table = [list(rows[0]), *(list(row.values()) for row in rows)]
  widths = [max(map(len, column)) for column in zip(*table, strict=True)]
  lines = [
    [line[0].ljust(widths[0])]
    + [c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True)]
    for line in table
  ]
  rule = ['-' * widths[0], *('-' * (max(w, 2) - 1) + ':' for w in widths[1:])]
  lines.insert(1, rule)
  return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def mean_and_deviation(values: Sequence[float], digits: int) -> str:
  """The mean of values and, if there are several, their deviation."""
  mean = f'{statistics.mean(values):.{digits}f}'
  if len(values) < 2:
    return mean
  return f'{mean} ± {statistics.stdev(values):.{digits}f}'


def write_csv(rows: Sequence[Mapping[str, Any]], path: str) -> None:
  """Writes a table; a value that is `None` or NaN is left empty."""
  with open(path, 'w', newline='') as file:
    writer = csv.DictWriter(file, rows[0])
    writer.writeheader()
    for row in rows:
      writer.writerow({name: _cell(value) for name, value in row.items()})


def _cell(value: Any) -> str:
  if value is None or isinstance(value, float) and math.isnan(value):
    return ''
  # Seven digits tell all float32 values of an accuracy or loss apart.
  return f'{value:.7g}' if isinstance(value, float) else str(value)
