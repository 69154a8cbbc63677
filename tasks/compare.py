"""Compares methods on one task: `python -m tasks.compare --help`.

The methods start from the same model and train with the same participants on
the same partition, for several seeds. Each is a run of `tasks.train` in a
folder of its own; the same command again goes on, and trains nothing twice.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import os
import statistics
from typing import Any

from tasks import catalog
from tasks import cli
from tasks import comparison as comparison_lib
from tasks.runs import errors
from tasks.runs import folder as folder_lib
from tasks.runs import settings as settings_lib

_USAGE = """
Compares methods on one task, each with several seeds. The same command again
goes on, and trains nothing twice.

method:
  --override=NAME…  A setting for some runs only,
    METHOD/PERSONALIZATION:NAME=VALUE, such as pfl_dyn/maml:alpha=0.03; can be
    given several times.
  --tuned=NAME  The file tuned.json of tasks.tune. Its task, its partition and
    its choice for each method are taken where no flag gives the setting.

tests:
  --targets=X,X,…  Target accuracies, between 0 and 1. By default those that the
    task has fixed beforehand; without any, only the final accuracies are
    compared.
  --tests_at_target=N  A target is reached in the first round from which this
    number of tests in a row is at or above it; at least 1. [3]
  --local_training=N  Tests training alone besides: this number of steps, at
    least 0, of the size --learning_rate, on all training examples of a device,
    from the initial model. A step takes a pass over the data of all devices: by
    default 100 steps for the task digits and 0, for none, for others.

Examples:
  python -m tasks.compare
  python -m tasks.compare --methods=per_fed_avg,pfl_dyn --seeds=0,1,2,3,4
  python -m tasks.compare --task=cifar10 --override=pfl_dyn/maml:alpha=0.03
"""


def prepare(argv: Sequence[str]) -> cli.Job:
  """Checks the flags; gives what trains, and writes the results."""
  args = comparison_lib.parse(_USAGE, argv)
  overrides: dict[str, dict[str, Any]] = {}
  for text in args.override:
    run, _, assignment = text.partition(':')
    name, values = comparison_lib.read_values(f'--override={text}', assignment)
    overrides.setdefault(run, {})[name] = values[0]

  def change(given: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Overrides go before what was tuned."""
    own = overrides.get(settings_lib.resolve(**given).key, {})
    changed = settings_lib.with_tuned(args.tuned, {**given, **own})
    return [{k: changed[k] for k in settings_lib.FLAGS if k in changed}]

  comparison = comparison_lib.Comparison('compare', args, change)
  runs = comparison.runs.values()
  if unused := overrides.keys() - {settings.key for settings in runs}:
    raise errors.UserError(
      f'--override={min(unused)} is none of the runs: METHOD/PERSONALIZATION'
      ' must be, for example, pfl_dyn/maml.'
    )
  s = comparison.settings
  if args.local_training is None:
    args.local_training = catalog.TASKS[s.task].local_steps
  targets = {
    name: catalog.targets(s.task, s.partition, name)
    if args.targets is None
    else tuple(sorted(set(args.targets)))
    for name in {settings.personalization_in_tests for settings in runs}
  }
  return lambda: _compare(args, comparison, targets)


def _compare(
  args: cli.Args,
  comparison: comparison_lib.Comparison,
  targets: Mapping[str, Sequence[float]],
) -> None:
  from tasks.reports import figures
  from tasks.reports import method_report
  from tasks.reports import tables
  from tasks.runs import training

  s = comparison.settings
  with folder_lib.RunFolder(comparison.path).lock():
    curves = comparison.train()
    notes = [
      *method_report.NOTES,
      f'A target takes {args.tests_at_target} tests in a row; there is one'
      f' every {s.rounds_per_evaluation} rounds.',
    ]
    alone = None
    if args.local_training:
      accuracy = [
        training.train_locally(
          settings,
          args.local_training,
          os.path.join(comparison.path, f'alone_seed{seed}.json'),
        )
        for seed, settings in {
          s.seed: s for s in comparison.runs.values()
        }.items()
      ]
      notes.append(
        'Training alone, without communication:'
        f' {tables.mean_and_deviation(accuracy, 3)} after'
        f' {args.local_training} steps of size {s.learning_rate:g} on all'
        ' training examples of a device, from the initial model.'
      )
      alone = statistics.mean(accuracy)
    rows = method_report.to_rows(curves, targets, args.tests_at_target)
    table = method_report.to_markdown(rows)
    comparison.report('comparison', rows, table, notes)
    curve_rows = method_report.curve_rows(curves)
    tables.write_csv(curve_rows, os.path.join(comparison.path, 'curves.csv'))
    picture = os.path.join(comparison.path, 'comparison.png')
    figures.save_comparison(curves, targets, s.data_title, picture, alone)


if __name__ == '__main__':
  cli.run(prepare)
