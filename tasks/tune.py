"""Tunes methods on validation examples: `python -m tasks.tune --help`.

Every method has the same grid, the same rounds and the same seeds. The test
examples are not read. The choice is for `tasks.compare` and `tasks.train`, with
--tuned.
"""

import collections
import dataclasses
import itertools
import json
import os
import pathlib
from typing import Any

from absl import flags

from tasks import cli
from tasks import comparison as comparison_lib
from tasks.runs import errors
from tasks.runs import folder as folder_lib
from tasks.runs import tuned

_GRID = flags.DEFINE_multi_string(
  'grid',
  [],
  'A setting and its values, NAME=VALUE,VALUE, for example'
  ' --grid=alpha=0.01,0.1; can be given several times, for all combinations. A'
  ' setting without effect on a method is left out for it. The settings are'
  f' {", ".join(comparison_lib.OVERRIDABLE)}.',
)
flags.adopt_module_key_flags(comparison_lib)
flags.FLAGS.set_default('validation_share', 0.2)


def _grid() -> dict[str, list[Any]]:
  """The values of each setting of the grid."""
  grid: dict[str, list[Any]] = {}
  for text in _GRID.value:
    name, values = comparison_lib.parse(f'--grid={text}', text)
    if name in grid or flags.FLAGS[name].value is not None:
      raise errors.UserError(f'--grid={text} gives {name} a second time.')
    grid[name] = list(dict.fromkeys(values))
  if not grid:
    raise errors.UserError('Give the values to choose from: --grid=NAME=V1,V2.')
  if not flags.FLAGS.validation_share:
    raise errors.UserError(
      '--validation_share=0 must be above 0: the test examples are not for'
      ' tuning.'
    )
  return grid


def _members() -> list[comparison_lib.Member]:
  """Every run, with its point of the grid."""
  grid = _grid()
  results: list[comparison_lib.Member] = []
  for settings in comparison_lib.settings_from_flags():
    own = {k: v for k, v in grid.items() if settings.has_effect(k)}
    for values in itertools.product(*own.values()):
      point = dict(zip(own, values, strict=True))
      results.append((dataclasses.replace(settings, **point), point))
  for name in grid:
    if not any(name in point for _, point in results):
      raise errors.UserError(f'--grid: {name} has no effect on any method.')
  return results


def main() -> None:
  """Trains what is not finished, and writes the table and the choice."""
  from tasks.reports import tuning_report

  members, grid = _members(), list(_grid())
  comparison = comparison_lib.Comparison('tune', members)
  with folder_lib.RunFolder(comparison.path).lock():
    accuracy = collections.defaultdict(list)
    for (settings, point), curve in zip(
      members, comparison.train(), strict=True
    ):
      run = tuned.key(settings), tuple(point.items())
      accuracy[run].append(float(curve.accuracy[-1]))
    rows = tuning_report.to_rows(accuracy, grid)
    comparison.report(
      'tuned',
      rows,
      lambda origin: tuning_report.to_markdown(accuracy, grid, [origin]),
    )
    s = comparison.experiment.settings
    choice = {
      'task': s.task,
      'partition': s.partition,
      'chosen': {
        row['method']: {k: row[k] for k in grid if row[k] is not None}
        for row in rows
        if row['chosen']
      },
    }
    path = os.path.join(comparison.path, 'tuned.json')
    pathlib.Path(path).write_text(json.dumps(choice, indent=1))


if __name__ == '__main__':
  cli.run(main, _members)
