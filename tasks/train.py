"""Trains one method on one task: `python -m tasks.train --help`.

Run the same command again to resume. Only do that in a folder of your own, or
of somebody whose programs you would run.
"""

from collections.abc import Sequence
import os
import shlex
import sys

from tasks import catalog
from tasks import cli
from tasks.runs import errors
from tasks.runs import folder as folder_lib
from tasks.runs import methods
from tasks.runs import settings as settings_lib

_USAGE = """
Trains one method on one task. The same command again resumes the run.

method:
  --tuned=NAME  The file tuned.json of tasks.tune. Its task, its partition and
    its choice for the method are taken where no flag gives the setting.

training:
  --rounds=N  The number of rounds, at least 1. A finished run goes on if the
    number is larger.
  --workers=NAME,NAME,…  TFF's workers that simulate the clients, HOST:PORT; by
    default this process does. All of them must see the folder of the run.
  --[no]baseline  Trains the method without its correction too, in the folder
    `baseline` of the run, and each device alone; then compares them. By default
    only for the task digits, where that takes a minute.

output:
  --output_dir=NAME  The folder of the run, for its results and its checkpoints.
    By default a folder in runs/ with a name made of the settings.
  --run=NAME  Goes on with the run in this folder and its settings, whatever
    they are.
  --rounds_per_checkpoint=N  The number of rounds from one checkpoint to the
    next, at least 1. [10]
  --from_round=N  Goes back to the checkpoint of this round, at least 0, and
    removes what came later. By default a run goes on from its last checkpoint.
    The last two are kept.
  --[no]show_settings  Prints all settings of the run and trains nothing.

Examples:
  python -m tasks.train
  python -m tasks.train --task=fashion_mnist_small --personalization=maml
  python -m tasks.train --run=runs/NAME --rounds=200
"""


def prepare(argv: Sequence[str]) -> cli.Job:
  """Checks the flags; gives what trains, draws the picture and compares."""
  shared = settings_lib.FLAGS.values()
  args = cli.parse(_USAGE, argv, shared, settings_lib.help_defaults)
  given = settings_lib.given(args)
  if args.run and (args.output_dir or args.tuned):
    raise errors.UserError(
      '--run names a folder with its settings: leave out --output_dir and'
      ' --tuned.'
    )
  if args.run is None:
    settings = settings_lib.resolve(
      **settings_lib.with_tuned(args.tuned, given)
    )
    path = args.output_dir or folder_lib.path_of(settings)
  else:
    path, settings = args.run, folder_lib.RunFolder(args.run).read()
    for name, value in given.items():
      if value != getattr(settings, name):
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
  catalog.check_data(settings.task, settings.data_dir)
  if args.baseline is None:
    is_short = catalog.TASKS[settings.task].local_steps > 0
    args.baseline = is_short and settings.correction != 'none'
  return lambda: _train(args, settings, folder_lib.RunFolder(path), rounds)


def _train(
  args: cli.Args,
  settings: settings_lib.Settings,
  folder: folder_lib.RunFolder,
  rounds: int,
) -> None:
  from tasks.reports import figures
  from tasks.reports import run_report
  from tasks.reports import savings
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
      args.workers or (),
    )
    curve = savings.curve(settings, rows)
    figures.save_convergence([curve], settings, folder.picture)
    print(f'{settings.title}\n{run_report.summary(settings, rows)}', flush=True)
    return rows

  runs = [(settings, train(settings, folder, args.from_round))]
  if args.baseline:
    other = settings.uncorrected()
    baseline = folder_lib.RunFolder(os.path.join(folder.path, 'baseline'))
    runs.append((other, train(other, baseline, None)))
    alone = training.train_locally(
      settings, catalog.LOCAL_STEPS, os.path.join(folder.path, 'alone.json')
    )
    curves = [savings.curve(*run) for run in runs]
    figures.save_convergence(curves, settings, folder.picture, alone)
    # The initial model is none of training.
    curves = [savings.curve(own, rows[1:]) for own, rows in runs]
    print(run_report.verdict(settings, curves, alone))
    print(
      'Next, device by device: python -m tasks.evaluate'
      f' --run={shlex.quote(folder.path)}'
    )
  print(f'Results in {folder.path}: convergence.png, meta_model.keras, …')


if __name__ == '__main__':
  cli.run(prepare)
