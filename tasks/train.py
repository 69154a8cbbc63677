"""Trains one method on one task: `python -m tasks.train --help`.

Run the same command again to resume. Only do that in a folder of your own, or
of somebody whose programs you would run.
"""

import argparse
from collections.abc import Mapping
from collections.abc import Sequence
import os
import shlex
import statistics
import sys

from tasks import catalog
from tasks import cli
from tasks.runs import errors
from tasks.runs import folder as folder_lib
from tasks.runs import methods
from tasks.runs import settings as settings_lib
from tasks.runs import tuned

_LAST_TESTS = 5


def _parser() -> cli.Parser:
  parser = cli.Parser(
    'train',
    'Trains one method on one task. The same command again resumes the run.',
    [
      '',
      '--task=fashion_mnist_small --method=pfl_dyn --personalization=maml',
      '--run=runs/NAME --rounds=200',
    ],
  )
  settings_lib.add_flags(parser)
  tuned.add_flag(parser)
  parser.add(
    'training',
    'rounds',
    'The number of rounds. A finished run goes on if the number is larger.',
    kind=int,
    at_least=1,
  )
  settings_lib.add_workers(parser)
  parser.add(
    'training',
    'baseline',
    'Trains the method without its correction too, in the folder `baseline` of'
    ' the run, and each device alone; then compares them. By default only for'
    ' the task digits, where that takes a minute.',
    kind=bool,
  )
  parser.add(
    'output',
    'output_dir',
    'The folder of the run, for its results and its checkpoints. By default a'
    ' folder in runs/ with a name made of the settings.',
  )
  parser.add(
    'output',
    'run',
    'Goes on with the run in this folder and its settings, whatever they are.',
  )
  parser.add(
    'output',
    'rounds_per_checkpoint',
    'The number of rounds from one checkpoint to the next.',
    10,
    int,
    at_least=1,
  )
  parser.add(
    'output',
    'from_round',
    'Goes back to the checkpoint of this round, and removes what came later. By'
    ' default a run goes on from its last checkpoint. The last two are kept.',
    kind=int,
    at_least=0,
  )
  parser.add(
    'output',
    'show_settings',
    'Prints all settings of the run and trains nothing.',
    False,
    bool,
  )
  return parser


def prepare(argv: Sequence[str]) -> cli.Job:
  """Checks the flags; gives what trains, draws the picture and compares."""
  args = _parser().parse(argv, settings_lib.help_defaults)
  if args.run and (args.output_dir or args.tuned):
    raise errors.UserError(
      '--run names a folder with its settings: leave out --output_dir and'
      ' --tuned.'
    )
  if args.run is None:
    given = settings_lib.Settings(**settings_lib.given(args))
    settings = tuned.apply(args.tuned, given).resolve()
    path = args.output_dir or folder_lib.path_of(settings)
  else:
    path, settings = args.run, folder_lib.RunFolder(args.run).read()
    others = settings_lib.given(_parser().parse([]))
    for name, value in settings_lib.given(args).items():
      if value not in (others[name], getattr(settings, name)):
        raise errors.UserError(
          f'--{name}={value} is not the setting of the run in {path}, which is'
          f' {getattr(settings, name)}. Leave it out.'
        )
  if args.baseline and settings.correction == 'none':
    raise errors.UserError(
      f'--baseline has no effect with --method={settings.method}, which has no'
      ' correction. Leave it out.'
    )
  rounds = args.rounds or settings.defaults()['rounds']
  if args.show_settings:
    print('\n'.join([f'--rounds={rounds}', *settings.to_flags()]))
    sys.exit(0)
  if args.baseline is None:
    row = catalog.TASKS[settings.task]
    args.baseline = row.has_baseline and settings.correction != 'none'
  return lambda: _train(args, settings, folder_lib.RunFolder(path), rounds)


def _train(
  args: argparse.Namespace,
  settings: settings_lib.Settings,
  folder: folder_lib.RunFolder,
  rounds: int,
) -> None:
  from tasks.reports import figures
  from tasks.reports import run_report
  from tasks.runs import experiment as experiment_lib
  from tasks.runs import training

  def train(
    settings: settings_lib.Settings,
    folder: folder_lib.RunFolder,
    from_round: int | None,
  ) -> list[dict[str, float]]:
    method = methods.title(settings.method_names[0])
    print(f'{method}, {rounds} rounds, in {folder.path}', file=sys.stderr)
    rows = training.run(
      experiment_lib.Experiment(settings),
      folder,
      rounds,
      args.rounds_per_checkpoint,
      from_round,
      args.workers,
    )
    figures.save_convergence(rows, settings.title, folder.picture)
    print(f'{settings.title}\n{run_report.summary(settings, rows)}', flush=True)
    return rows

  rows = train(settings, folder, args.from_round)
  if args.baseline:
    other = settings.uncorrected().resolve()
    baseline = folder_lib.RunFolder(os.path.join(folder.path, 'baseline'))
    others = train(other, baseline, None)
    alone = training.train_locally(
      settings, catalog.LOCAL_STEPS, os.path.join(folder.path, 'alone.json')
    )
    name = f'{methods.title(other.method_names[0])} (without correction)'
    figures.save_convergence(
      rows, settings.title, folder.picture, {name: others}, alone
    )
    print(verdict(settings, folder, rows, others, alone))
  print(f'Results in {folder.path}: convergence.png, meta_model.keras, …')


def verdict(
  settings: settings_lib.Settings,
  folder: folder_lib.RunFolder,
  rows: Sequence[Mapping[str, float]],
  others: Sequence[Mapping[str, float]],
  alone: float,
) -> str:
  """A run against the uncorrected one and training alone: lines for people."""
  from tasks.reports import savings

  other = settings.uncorrected()
  targets = catalog.TASKS[settings.task].targets.get(
    (str(settings.partition), settings.personalization_in_tests), ()
  )[:1]
  names, means, needs = [], [], []
  for own, metrics in ((settings, rows), (other, others)):
    curve = savings.curve(own, folder_lib.evaluations(metrics)[1:])
    names.append(methods.title(own.method_names[0]))
    means.append(statistics.mean(curve.tests[-_LAST_TESTS:]))
    needs += [savings.need(curve, target, 3) for target in targets]
  first = (
    f'Mean of the last {_LAST_TESTS} tests: {names[0]} {means[0]:.3f},'
    f' {names[1]} {means[1]:.3f} ({means[0] - means[1]:+.3f}); each device'
    f' alone {alone:.3f}.'
  )
  if needs:
    when = [f'round {n.rounds}' if n.is_reached else 'never' for n in needs]
    first += (
      f' At {targets[0]:g} for three tests: {names[0]} from {when[0]},'
      f' {names[1]} from {when[1]}.'.replace('from never', 'never')
    )
  flags = ['--seeds=0,1,2,3,4', f'--task={settings.task}']
  flags += [f'--partition={settings.partition}']
  flags += [f'--personalizations={settings.personalization_in_tests}']
  # What is a default of the corrected method may be none of the other.
  changes = other.changes() | settings.changes()
  flags += [f'--{name}={value}' for name, value in changes.items()]
  if settings.data_dir:
    flags.append(f'--data_dir={settings.data_dir}')
  if len(rows) - 1 != settings.defaults()['rounds']:
    flags.append(f'--rounds={len(rows) - 1}')
  if settings.method:
    flags.append(f'--methods={other.method},{settings.method}')
  else:
    flags += [
      f'--methods={other.method}',
      f'--correction={settings.correction}',
    ]
  return (
    f'{first}\nOne seed decides nothing. For five: python -m tasks.compare'
    f' {shlex.join(flags)}\nNext, device by device: python -m tasks.evaluate'
    f' --run={shlex.quote(folder.path)}'
  )


if __name__ == '__main__':
  cli.run(prepare)
