"""Evaluates a run device by device: `python -m tasks.evaluate --help`.

The run may have ended or still go on; none of its files is changed. It should
be your own, or of somebody whose programs you would run.
"""

from collections.abc import Sequence

from tasks import catalog
from tasks import cli
from tasks.runs import errors
from tasks.runs import folder as folder_lib

_USAGE = """
Evaluates a run of tasks.train device by device.

what:
  --run=NAME  The folder of the run.
  --round=N  The round of the checkpoint, at least 0; by default that of the
    newest.
  --max_clients=N  The number of devices to evaluate, at least 1, chosen by the
    seed of the run; by default all.

tests:
  --few_shot=N,N,…  The numbers of local examples of the few-shot curve, each at
    least 1. By default 1,2,5,10,20,50,… up to the most that a device has. Empty
    for no curve.
  --steps=N  The last step of the curve against MAML steps, at least 1; by
    default twice the steps of the run's tests.
  --local_training=N  Trains each device alone besides, and counts the devices
    that the run has hurt: this number of steps, at least 0, from the initial
    model, on all examples of a device. By default 100 for the task digits and
    0, for none, for others.

Examples:
  python -m tasks.evaluate --run=runs/NAME
  python -m tasks.evaluate --run=runs/NAME --few_shot= --max_clients=50
  python -m tasks.evaluate --run=runs/NAME --round=90 --steps=10
"""


def prepare(argv: Sequence[str]) -> cli.Job:
  """Checks the flags; gives what evaluates and prints the summary."""
  args = cli.parse(_USAGE, argv)
  if args.run is None:
    raise errors.UserError('Name the folder of the run: --run=runs/NAME.')
  folder = folder_lib.RunFolder(args.run)
  settings = folder.read()
  if args.local_training is None:
    args.local_training = catalog.TASKS[settings.task].local_steps

  def evaluate() -> None:
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

  return evaluate


if __name__ == '__main__':
  cli.run(prepare)
