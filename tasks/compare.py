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
import pathlib

from absl import flags

from tasks import cli
from tasks.runs import comparison as comparison_lib
from tasks.runs import errors
from tasks.runs import folder as folder_lib
from tasks.runs import settings as settings_lib
from tasks.runs import tuned as tuned_lib

_OVERRIDES = flags.DEFINE_multi_string(
  'override',
  [],
  'A setting for some runs only, METHOD/PERSONALIZATION:NAME=VALUE, for'
  ' example --override=pfl_dyn/maml:alpha=0.03; can be given several times.',
)
_TUNED = tuned_lib.define_flag()
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
  overrides = {text: _parse_override(text) for text in _OVERRIDES.value}
  tuned = tuned_lib.load(_TUNED.value) if _TUNED.value else None
  unused = set(overrides)
  results = []
  for settings in comparison_lib.settings_from_flags():
    key = tuned_lib.key(settings)
    chosen = [text for text in overrides if overrides[text][0] == key]
    unused.difference_update(chosen)
    changes = dict(overrides[text][1] for text in chosen)
    changed = dataclasses.replace(settings, **changes)
    changed = tuned.apply(changed) if tuned else changed
    own = {
      name: getattr(changed, name)
      for name in comparison_lib.OVERRIDABLE
      if getattr(changed, name) != getattr(settings, name)
    }
    results.append(comparison_lib.Member(changed, own))
  if unused:
    raise errors.UserError(f'--override={min(unused)} is for none of the runs.')
  return results


def _parse_override(text: str) -> tuple[str, tuple[str, object]]:
  """The method with its personalization, and the setting and its value."""
  run, _, setting = text.partition(':')
  name, equals, value = setting.partition('=')
  if not (run.partition('/')[2] and equals):
    raise errors.UserError(
      f'--override={text} must be METHOD/PERSONALIZATION:NAME=VALUE, for'
      ' example pfl_dyn/maml:alpha=0.03.'
    )
  value = settings_lib.parse(name, value)
  comparison_lib.check_overridable(f'--override={text}', name)
  return run, (name, value)


def _targets() -> list[float] | None:
  """The targets given, in order; `None` where the task's are wanted."""
  if _TARGETS.value is None:
    return None
  given = f'--targets={",".join(_TARGETS.value)}'
  try:
    targets = sorted({float(text) for text in _TARGETS.value})
  except ValueError as e:
    raise errors.UserError(f'{given} must be numbers.') from e
  if not all(0 < target <= 1 for target in targets):
    raise errors.UserError(f'{given} must be above 0 and at most 1.')
  return targets


def _describe_settings(members: Sequence[comparison_lib.Member]) -> str:
  """The settings that are given for all runs, and those of some methods."""
  shared = [
    f'{field.name}={flags.FLAGS[field.name].value}'
    for field in dataclasses.fields(settings_lib.Settings)
    if field.name in flags.FLAGS
    and flags.FLAGS[field.name].present
    # It is a place on this machine.
    and field.name != 'data_dir'
  ]
  own = [
    f'{tuned_lib.key(member.settings)}:{name}={value}'
    for member in members
    for name, value in member.own.items()
  ]
  return ' '.join(dict.fromkeys(shared + own))


def _check_flags() -> None:
  _members()
  _targets()


def main() -> None:
  """Trains the runs that are not finished, and writes the results."""
  from tasks.reports import figures
  from tasks.reports import method_report
  from tasks.reports import provenance
  from tasks.reports import savings
  from tasks.reports import tables

  members = _members()
  comparison = comparison_lib.Comparison('compare', members)
  with folder_lib.RunFolder(comparison.path).lock():
    comparison.train()
    for picture in comparison.pictures():
      figures.save_convergence(*picture)
    curves = [
      savings.curve(*run).smoothed(comparison_lib.SMOOTHING.value)
      for run in comparison.tests()
    ]
    local, num_steps = None, _LOCAL_TRAINING.value
    if num_steps is None:
      num_steps = (
        100 if comparison.experiment.task.has_baseline_by_default else 0
      )
    if num_steps:
      local = method_report.Local(
        num_steps,
        comparison.experiment.settings.learning_rate,
        comparison.train_locally(num_steps),
      )
    targets = comparison.targets(_targets())
    origin = method_report.Origin(
      comparison_lib.SMOOTHING.value,
      _TESTS_AT_TARGET.value,
      _describe_settings(members),
      provenance.version(),
      provenance.today(),
    )
    title = comparison.title
    markdown = method_report.to_markdown(curves, targets, origin, local)
    text = f'{title}\n\n{markdown}\n'
    path = os.path.join(comparison.path, 'comparison')
    pathlib.Path(f'{path}.md').write_text(text)
    rows = method_report.to_rows(curves, targets, origin)
    tables.write_csv(rows, f'{path}.csv')
    points = [row for curve in curves for row in curve.to_rows()]
    tables.write_csv(points, os.path.join(comparison.path, 'curves.csv'))
    figures.save_comparison(curves, targets, title, f'{path}.png')
    print(text)
    print(
      f'results in {comparison.path}: comparison.md, .csv, .png and .pdf,'
      ' curves.csv'
    )


if __name__ == '__main__':
  cli.run(main, _check_flags)
