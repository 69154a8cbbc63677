"""Compares methods on one task: `python -m tasks.compare --help`.

The methods start from the same model and train with the same participants on
the same partition, for several seeds. Each is a run of `tasks.train` in a
folder of its own; the same command again goes on, and trains nothing twice.

The defaults of the settings depend on the task and the method;
`tasks.train --show_settings` prints them.
"""

from collections.abc import Sequence
import dataclasses
import os
from typing import Any

from absl import flags

from tasks import cli
from tasks import comparison as comparison_lib
from tasks.runs import errors
from tasks.runs import folder as folder_lib
from tasks.runs import tuned

_OVERRIDES = flags.DEFINE_multi_string(
  'override',
  [],
  'A setting for some runs only, METHOD/PERSONALIZATION:NAME=VALUE, for'
  ' example --override=pfl_dyn/maml:alpha=0.03; can be given several times.',
)
_TUNED = tuned.define_flag()
_TARGETS = flags.DEFINE_list(
  'targets',
  None,
  'Target accuracies, between 0 and 1. By default those that the task has'
  ' fixed beforehand; without any, only the final accuracies are compared.',
)
_TESTS_AT_TARGET = flags.DEFINE_integer(
  'tests_at_target',
  3,
  'A target is reached in the first round from which this number of tests in a'
  ' row is at or above it.',
  lower_bound=1,
)
_LOCAL_TRAINING = flags.DEFINE_integer(
  'local_training',
  None,
  'Tests local training alone besides: this number of steps, of the size'
  ' --learning_rate, on all training examples of a device, from the initial'
  ' model. A step takes a pass over the data of all devices: by default 100'
  ' steps for the task digits and 0, for none, for others.',
  lower_bound=0,
  upper_bound=1000,
)
flags.adopt_module_key_flags(comparison_lib)


def _members() -> list[comparison_lib.Member]:
  """Every run; overrides go before what was tuned."""
  overrides: dict[str, dict[str, Any]] = {}
  for text in _OVERRIDES.value:
    run, _, assignment = text.partition(':')
    name, (value, *_) = comparison_lib.parse(f'--override={text}', assignment)
    overrides.setdefault(run, {})[name] = value
  results: list[comparison_lib.Member] = []
  for settings in comparison_lib.settings_from_flags():
    changes = overrides.get(tuned.key(settings), {})
    changed = dataclasses.replace(settings, **changes)
    changed = tuned.apply(_TUNED.value, changed)
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


def _given_targets() -> list[float]:
  """The targets of the flag, in order."""
  try:
    return sorted({float(text) for text in _TARGETS.value or []})
  except ValueError as e:
    raise errors.UserError(
      f'--targets={",".join(_TARGETS.value)} must be numbers, such as 0.8,0.9.'
    ) from e


def _check_flags() -> None:
  _members()
  _given_targets()


def main() -> None:
  """Trains the runs that are not finished, and writes the results."""
  from tasks.reports import figures
  from tasks.reports import method_report
  from tasks.reports import tables

  comparison = comparison_lib.Comparison('compare', _members())
  s, task = comparison.experiment.settings, comparison.experiment.task
  num_steps = _LOCAL_TRAINING.value
  if num_steps is None:
    num_steps = 100 if task.has_baseline_by_default else 0
  with folder_lib.RunFolder(comparison.path).lock():
    curves = comparison.train()
    tests = _TESTS_AT_TARGET.value
    notes = [
      f'A target takes {tests} tests in a row; there is one every'
      f' {s.rounds_per_evaluation} rounds.'
    ]
    if num_steps:
      accuracy = comparison.train_locally(num_steps)
      notes.append(
        'Local training alone, without communication:'
        f' {tables.mean_and_deviation(accuracy, 3)} after {num_steps} steps of'
        f' size {s.learning_rate:g} on all training examples of a device, from'
        ' the initial model.'
      )
    names = {curve.personalization for curve in curves}
    targets: dict[str, Sequence[float]] = dict.fromkeys(names, _given_targets())
    if _TARGETS.value is None:
      targets = {k: task.targets.get((s.partition, k), ()) for k in names}
    rows = method_report.to_rows(curves, targets, tests)
    comparison.report(
      'comparison',
      rows,
      lambda origin: method_report.to_markdown(rows, [*notes, origin]),
    )
    curve_rows = method_report.curve_rows(curves)
    tables.write_csv(curve_rows, os.path.join(comparison.path, 'curves.csv'))
    picture = os.path.join(comparison.path, 'comparison.png')
    figures.save_comparison(curves, targets, comparison.title, picture)


if __name__ == '__main__':
  cli.run(main, _check_flags)
