"""Tunes methods on validation examples: `python -m tasks.tune --help`.

Every method has the same grid, the same rounds and the same seeds. The test
examples are not read. The choice is for `tasks.compare` and `tasks.train`, with
--tuned.
"""

import collections
import dataclasses
import itertools
import os
import pathlib
from typing import Any

from absl import flags

from tasks import cli
from tasks.runs import comparison as comparison_lib
from tasks.runs import errors
from tasks.runs import folder as folder_lib
from tasks.runs import settings as settings_lib
from tasks.runs import tuned as tuned_lib

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
  grid = {}
  for text in _GRID.value:
    name, equals, values = text.partition('=')
    if not (equals and values):
      raise errors.UserError(
        f'--grid={text} must be NAME=VALUE,VALUE, for example alpha=0.01,0.1.'
      )
    values = [settings_lib.parse(name, value) for value in values.split(',')]
    comparison_lib.check_overridable(f'--grid={text}', name)
    if name in grid or flags.FLAGS[name].value is not None:
      raise errors.UserError(f'--grid={text} gives {name} a second time.')
    grid[name] = list(dict.fromkeys(values))
  if not grid:
    raise errors.UserError('Give the values to choose from: --grid=NAME=V1,V2.')
  return grid


def _members() -> list[comparison_lib.Member]:
  """Every run, with its point of the grid."""
  grid, results = _grid(), []
  for settings in comparison_lib.settings_from_flags():
    if not settings.validation_share:
      raise errors.UserError(
        '--validation_share=0.0 must be above 0: the test examples are not for'
        ' tuning.'
      )
    own = {k: v for k, v in grid.items() if settings.has_effect(k)}
    for values in itertools.product(*own.values()):
      point = dict(zip(own, values, strict=True))
      changed = dataclasses.replace(settings, **point)
      results.append(comparison_lib.Member(changed, point))
  for name in grid:
    if not any(member.settings.has_effect(name) for member in results):
      raise errors.UserError(f'--grid: {name} has no effect on any method.')
  return results


def main() -> None:
  """Trains what is not finished, and writes the table and the choice."""
  from tasks.reports import figures
  from tasks.reports import provenance
  from tasks.reports import savings
  from tasks.reports import tables
  from tasks.reports import tuning_report

  members = _members()
  comparison = comparison_lib.Comparison('tune', members)
  with folder_lib.RunFolder(comparison.path).lock():
    comparison.train()
    for picture in comparison.pictures():
      figures.save_convergence(*picture)
    accuracy = collections.defaultdict(list)
    for (settings, tests), (_, point) in zip(
      comparison.tests(), members, strict=True
    ):
      curve = savings.curve(settings, tests)
      accuracy[tuned_lib.key(settings), tuple(point.items())].append(
        float(curve.smoothed(comparison_lib.SMOOTHING.value).accuracy[-1])
      )
    origin = {
      'rounds': comparison.rounds,
      'seeds': ' '.join(dict.fromkeys(str(s.seed) for s, _ in members)),
      'validation_share': comparison.experiment.settings.validation_share,
      'smoothing': comparison_lib.SMOOTHING.value,
      'version': provenance.version(),
      'date': provenance.today(),
    }
    path = os.path.join(comparison.path, 'tuned')
    rows = tuning_report.to_rows(accuracy, _grid())
    tables.write_csv([row | origin for row in rows], f'{path}.csv')
    markdown = tuning_report.to_markdown(accuracy, _grid(), origin)
    text = f'{comparison.title}\n\n{markdown}\n'
    pathlib.Path(f'{path}.md').write_text(text)
    s = comparison.experiment.settings
    best = tuning_report.best_points(accuracy)
    chosen = {method: dict(point) for method, point in best.items()}
    tuned_lib.Tuned(s.task, s.partition, chosen, origin).save(f'{path}.json')
    print(text)
    print(f'results in {comparison.path}: tuned.md, tuned.csv and tuned.json')


if __name__ == '__main__':
  cli.run(main, _members)
