"""Tunes methods on validation examples: `python -m tasks.tune --help`.

Every method has the same grid, the same rounds and the same seeds. The test
examples are not read. The choice is for `tasks.compare` and `tasks.train`, with
--tuned.
"""

import argparse
import collections
from collections.abc import Sequence
import dataclasses
import itertools
import json
import os
import pathlib
from typing import Any

from tasks import cli
from tasks import comparison as comparison_lib
from tasks.runs import errors
from tasks.runs import folder as folder_lib
from tasks.runs import tuned


def _parser() -> cli.Parser:
  parser = comparison_lib.parser(
    'tune',
    'Tunes methods on validation examples. The choice is for --tuned of'
    '\ntasks.compare and tasks.train.',
    [
      '--grid=alpha=0.03,0.1,0.3 --methods=pfl_dyn --personalizations=maml',
      '--grid=learning_rate=0.1,0.2 --grid=maml_learning_rate=0.5,1,2',
      '--task=fashion_mnist_small --grid=alpha=0.01,0.1 --rounds=100',
    ],
  )
  parser.add(
    'method',
    'grid',
    'A setting and its values, NAME=VALUE,VALUE, such as alpha=0.01,0.1; can be'
    ' given several times, for all combinations. A setting without effect on a'
    ' method is left out for it. The settings are'
    f' {", ".join(comparison_lib.OVERRIDABLE)}.',
    [],
    repeated=True,
  )
  parser.set_defaults(validation_share=0.2)
  return parser


def _grid(args: argparse.Namespace) -> dict[str, list[Any]]:
  """The values of each setting of the grid."""
  grid: dict[str, list[Any]] = {}
  for text in args.grid:
    name, values = comparison_lib.parse(f'--grid={text}', text)
    if name in grid or getattr(args, name) is not None:
      raise errors.UserError(f'--grid={text} gives {name} a second time.')
    grid[name] = list(dict.fromkeys(values))
  if not grid:
    raise errors.UserError('Give the values to choose from: --grid=NAME=V1,V2.')
  if not args.validation_share:
    raise errors.UserError(
      '--validation_share=0 must be above 0: the test examples are not for'
      ' tuning.'
    )
  return grid


def _members(
  args: argparse.Namespace, grid: dict[str, list[Any]]
) -> list[comparison_lib.Member]:
  """Every run, with its point of the grid."""
  results: list[comparison_lib.Member] = []
  for settings in comparison_lib.settings_of(args):
    own = {k: v for k, v in grid.items() if settings.has_effect(k)}
    for values in itertools.product(*own.values()):
      point = dict(zip(own, values, strict=True))
      results.append((dataclasses.replace(settings, **point), point))
  for name in grid:
    if not any(name in point for _, point in results):
      raise errors.UserError(f'--grid: {name} has no effect on any method.')
  return results


def prepare(argv: Sequence[str]) -> cli.Job:
  """Checks the flags; gives what trains, and writes the choice."""
  args = _parser().parse(argv, comparison_lib.help_defaults)
  grid = _grid(args)
  members = _members(args, grid)
  comparison = comparison_lib.Comparison('tune', args, members)
  return lambda: _tune(comparison, members, grid)


def _tune(
  comparison: comparison_lib.Comparison,
  members: Sequence[comparison_lib.Member],
  grid: dict[str, list[Any]],
) -> None:
  from tasks.reports import tuning_report

  with folder_lib.RunFolder(comparison.path).lock():
    accuracy = collections.defaultdict(list)
    for (settings, point), curve in zip(
      members, comparison.train(), strict=True
    ):
      run = tuned.key(settings), tuple(point.items())
      accuracy[run].append(float(curve.accuracy[-1]))
    names = list(grid)
    rows = tuning_report.to_rows(accuracy, names)
    chosen = {
      row['method']: {k: row[k] for k in grid if row[k] is not None}
      for row in rows
      if row['chosen']
    }
    edges = [
      f'{method}: {name}={value:g} is at the edge of the grid. Try a value'
      ' beyond it.'
      for method, point in chosen.items()
      for name, value in point.items()
      if len(grid[name]) > 1 and value in (min(grid[name]), max(grid[name]))
    ]
    comparison.report(
      'tuned',
      rows,
      lambda origin: tuning_report.to_markdown(
        accuracy, names, [*edges, origin]
      ),
    )
    s = comparison.runs[0].settings
    choice = {'task': s.task, 'partition': s.partition, 'chosen': chosen}
    path = os.path.join(comparison.path, 'tuned.json')
    pathlib.Path(path).write_text(json.dumps(choice, indent=1))


if __name__ == '__main__':
  cli.run(prepare)
