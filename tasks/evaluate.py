"""Evaluates a run device by device: `python -m tasks.evaluate --help`.

The run may have ended or still go on; none of its files is changed. It should
be your own, or of somebody whose programs you would run.
"""

import argparse
from collections.abc import Sequence

from tasks import catalog
from tasks import cli
from tasks.runs import errors
from tasks.runs import folder as folder_lib
from tasks.runs import settings as settings_lib


def _parser() -> cli.Parser:
  parser = cli.Parser(
    'evaluate',
    'Evaluates a run of tasks.train device by device.',
    [
      '--run=runs/NAME',
      '--run=runs/NAME --few_shot= --max_clients=50',
      '--run=runs/NAME --round=90 --steps=10',
    ],
  )
  parser.add('what', 'run', 'The folder of the run.')
  parser.add(
    'what',
    'round',
    'The round of the checkpoint; by default that of the newest.',
    kind=int,
    at_least=0,
  )
  parser.add(
    'what',
    'max_clients',
    'The number of devices to evaluate, chosen by the seed of the run; by'
    ' default all.',
    kind=int,
    at_least=1,
  )
  parser.add(
    'tests',
    'few_shot',
    'The numbers of local examples of the few-shot curve, as 1,2,5; by default'
    ' 1,2,5,10,20,50,… up to the most that a device has. Empty for no curve.',
    kind=list,
  )
  parser.add(
    'tests',
    'steps',
    'The last step of the curve against MAML steps; by default twice the steps'
    " of the run's tests.",
    kind=int,
    at_least=1,
  )
  parser.add(
    'tests',
    'local_training',
    'Trains each device alone besides, and counts the devices that the run has'
    ' hurt: this number of steps from the initial model, on all examples of a'
    ' device. By default 100 for the task digits and 0, for none, for others.',
    kind=int,
    at_least=0,
  )
  return parser


def prepare(argv: Sequence[str]) -> cli.Job:
  """Checks the flags; gives what evaluates and prints the summary."""
  args = _parser().parse(argv)
  if args.run is None:
    raise errors.UserError('Name the folder of the run: --run=runs/NAME.')
  folder = folder_lib.RunFolder(args.run)
  settings = folder.read()
  texts = args.few_shot
  if texts is not None:
    if not all(text.isdecimal() and int(text) for text in texts):
      raise errors.UserError(
        f'--few_shot={",".join(texts)} must be positive integers, as 1,2,5.'
      )
    args.few_shot = sorted({int(text) for text in texts})
  if args.local_training is None:
    args.local_training = catalog.TASKS[settings.task].local_steps
  return lambda: _evaluate(args, folder, settings)


def _evaluate(
  args: argparse.Namespace,
  folder: folder_lib.RunFolder,
  settings: settings_lib.Settings,
) -> None:
  from tasks.reports import client_report
  from tasks.runs import experiment as experiment_lib
  from tasks.runs import per_client
  from tasks.runs import training
  from tff_debias import runtime

  experiment = experiment_lib.Experiment(settings)
  with runtime.local_context():
    weights, round_num = training.load(experiment, folder, args.round)
    result = per_client.evaluate(
      experiment,
      weights,
      round_num,
      max_clients=args.max_clients,
      few_shot=args.few_shot,
      num_steps=args.steps,
      local_steps=args.local_training,
    )
  print(client_report.save(result, folder.evaluation))


if __name__ == '__main__':
  cli.run(prepare)
