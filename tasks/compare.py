"""Compares methods on one task: `python -m tasks.compare --help`.

The methods start from the same model and train with the same participants on
the same partition, for several seeds. Each is a run of `tasks.train` in a
folder of its own; the same command again goes on, and trains nothing twice.
"""

import argparse
from collections.abc import Sequence
import dataclasses
import os
import statistics
from typing import Any

from tasks import catalog
from tasks import cli
from tasks import comparison as comparison_lib
from tasks.runs import errors
from tasks.runs import folder as folder_lib
from tasks.runs import tuned


def _parser() -> cli.Parser:
  parser = comparison_lib.parser(
    'compare',
    'Compares methods on one task, each with several seeds. The same command'
    ' again\ngoes on, and trains nothing twice.',
    [
      '',
      '--methods=per_fed_avg,pfl_dyn --personalizations=maml --seeds=0,1,2,3,4',
      '--task=cifar10 --override=pfl_dyn/maml:alpha=0.03',
    ],
  )
  parser.add(
    'method',
    'override',
    'A setting for some runs only, METHOD/PERSONALIZATION:NAME=VALUE, such as'
    ' pfl_dyn/maml:alpha=0.03; can be given several times.',
    [],
    repeated=True,
  )
  tuned.add_flag(parser)
  parser.add(
    'tests',
    'targets',
    'Target accuracies, between 0 and 1. By default those that the task has'
    ' fixed beforehand; without any, only the final accuracies are compared.',
    None,
    list,
  )
  parser.add(
    'tests',
    'tests_at_target',
    'A target is reached in the first round from which this number of tests in'
    ' a row is at or above it.',
    3,
    int,
    1,
  )
  parser.add(
    'tests',
    'local_training',
    'Tests training alone besides: this number of steps, of the size'
    ' --learning_rate, on all training examples of a device, from the initial'
    ' model. A step takes a pass over the data of all devices: by default 100'
    ' steps for the task digits and 0, for none, for others.',
    None,
    int,
    0,
  )
  return parser


def _members(args: argparse.Namespace) -> list[comparison_lib.Member]:
  """Every run; overrides go before what was tuned."""
  overrides: dict[str, dict[str, Any]] = {}
  for text in args.override:
    run, _, assignment = text.partition(':')
    name, (value, *_) = comparison_lib.parse(f'--override={text}', assignment)
    overrides.setdefault(run, {})[name] = value
  results: list[comparison_lib.Member] = []
  for settings in comparison_lib.settings_of(args):
    changes = overrides.get(tuned.key(settings), {})
    changed = dataclasses.replace(settings, **changes)
    changed = tuned.apply(args.tuned, changed)
    own = {
      name: getattr(changed, name)
      for name in comparison_lib.OVERRIDABLE
      if getattr(changed, name) != getattr(settings, name)
    }
    results.append((changed, own))
  unused = overrides.keys() - {tuned.key(settings) for settings, _ in results}
  if unused:
    raise errors.UserError(
      f'--override={min(unused)} is none of the runs: METHOD/PERSONALIZATION'
      ' must be, for example, pfl_dyn/maml.'
    )
  return results


def prepare(argv: Sequence[str]) -> cli.Job:
  """Checks the flags; gives what trains, and writes the results."""
  args = _parser().parse(argv, comparison_lib.help_defaults)
  comparison = comparison_lib.Comparison('compare', args, _members(args))
  s = comparison.runs[0].settings
  row = catalog.TASKS[s.task]
  if args.local_training is None:
    args.local_training = row.local_steps
  names = {run.settings.personalization_in_tests for run in comparison.runs}
  targets = {k: row.targets.get((str(s.partition), k), ()) for k in names}
  if args.targets is not None:
    try:
      values = tuple(sorted({float(text) for text in args.targets}))
    except ValueError as e:
      raise errors.UserError(
        f'--targets={",".join(args.targets)} must be numbers, such as 0.8,0.9.'
      ) from e
    targets = dict.fromkeys(names, values)
  return lambda: _compare(args, comparison, targets)


def _compare(
  args: argparse.Namespace,
  comparison: comparison_lib.Comparison,
  targets: dict[str, tuple[float, ...]],
) -> None:
  from tasks.reports import figures
  from tasks.reports import method_report
  from tasks.reports import tables

  s = comparison.runs[0].settings
  with folder_lib.RunFolder(comparison.path).lock():
    curves = comparison.train()
    notes = [
      f'A target takes {args.tests_at_target} tests in a row; there is one'
      f' every {s.rounds_per_evaluation} rounds.'
    ]
    alone = None
    if args.local_training:
      accuracy = comparison.train_locally(args.local_training)
      notes.append(
        'Training alone, without communication:'
        f' {tables.mean_and_deviation(accuracy, 3)} after'
        f' {args.local_training} steps of size {s.learning_rate:g} on all'
        ' training examples of a device, from the initial model.'
      )
      alone = statistics.mean(accuracy)
    rows = method_report.to_rows(curves, targets, args.tests_at_target)
    comparison.report(
      'comparison',
      rows,
      lambda origin: method_report.to_markdown(rows, [*notes, origin]),
    )
    curve_rows = method_report.curve_rows(curves)
    tables.write_csv(curve_rows, os.path.join(comparison.path, 'curves.csv'))
    picture = os.path.join(comparison.path, 'comparison.png')
    title = comparison.title
    figures.save_comparison(curves, targets, title, picture, alone)


if __name__ == '__main__':
  cli.run(prepare)
