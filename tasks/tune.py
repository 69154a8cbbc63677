"""Tunes methods on validation examples: `python -m tasks.tune --help`.

Every method has the same grid, the same rounds and the same seeds. The test
examples are not read. The choice is for `tasks.compare` and `tasks.train`, with
--tuned.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import itertools
import json
import os
import pathlib
from typing import Any

from tasks import cli
from tasks import comparison as comparison_lib
from tasks.runs import errors
from tasks.runs import folder as folder_lib
from tasks.runs import settings as settings_lib

_USAGE = f"""
Tunes methods on validation examples. The choice is for --tuned of
tasks.compare and tasks.train.

what:
  --validation_share=X  The share of each client's training examples on which
    the methods are tested, above 0 and at most 0.5. It is rounded to 1/2, 1/3,
    1/4, … [0.2]

method:
  --grid=NAME…  A setting and its values, NAME=VALUE,VALUE, such as
    alpha=0.01,0.1; can be given several times, for all combinations. A setting
    without effect on a method is left out for it. The settings are
    {', '.join(comparison_lib.OVERRIDABLE)}.

Examples:
  python -m tasks.tune --grid=alpha=0.03,0.1,0.3 --methods=pfl_dyn
  python -m tasks.tune --grid=learning_rate=0.1,0.2 --grid=alpha=0.1,0.3
  python -m tasks.tune --task=fashion_mnist_small --grid=alpha=0.01,0.1
"""


def prepare(argv: Sequence[str]) -> cli.Job:
  """Checks the flags; gives what trains, and writes the choice."""
  args = comparison_lib.parse(_USAGE, argv)
  grid: dict[str, list[Any]] = {}
  for text in args.grid:
    name, values = comparison_lib.read_values(f'--grid={text}', text)
    if name in grid or getattr(args, name) is not None:
      raise errors.UserError(f'--grid={text} gives {name} a second time.')
    grid[name] = list(dict.fromkeys(values))
  if not grid:
    raise errors.UserError('Give the values to choose from: --grid=NAME=V1,V2.')

  def points(given: Mapping[str, Any]) -> list[dict[str, Any]]:
    used = vars(settings_lib.resolve(**given))
    own = {k: v for k, v in grid.items() if used[k] is not None}
    return [
      {**given, **dict(zip(own, values, strict=True))}
      for values in itertools.product(*own.values())
    ]

  comparison = comparison_lib.Comparison('tune', args, points)
  for name in grid:
    if all(vars(s)[name] is None for s in comparison.runs.values()):
      raise errors.UserError(f'--grid: {name} has no effect on any method.')
  return lambda: _tune(comparison, grid)


def _tune(
  comparison: comparison_lib.Comparison, grid: Mapping[str, Sequence[Any]]
) -> None:
  from tasks.reports import tuning_report

  with folder_lib.RunFolder(comparison.path).lock():
    rows = tuning_report.to_rows(comparison.train(), list(grid))
    notes = [*tuning_report.NOTES, *tuning_report.edges(rows, grid)]
    table = tuning_report.to_markdown(rows, list(grid))
    comparison.report('tuned', rows, table, notes)
    s = comparison.settings
    chosen = {
      row['method']: {k: row[k] for k in grid if row[k] is not None}
      for row in rows
      if row['chosen']
    }
    choice = {'task': s.task, 'partition': s.partition, 'chosen': chosen}
    path = os.path.join(comparison.path, 'tuned.json')
    pathlib.Path(path).write_text(json.dumps(choice, indent=1))


if __name__ == '__main__':
  cli.run(prepare)
