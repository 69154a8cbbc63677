"""Evaluates a run device by device: `python -m tasks.evaluate --help`.

The run may have ended or still go on; none of its files is changed. It should
be your own, or of somebody whose programs you would run.
"""

from absl import flags

from tasks import cli
from tasks.runs import errors
from tasks.runs import folder as folder_lib

_RUN = flags.DEFINE_string('run', None, 'The folder of the run.')
_ROUND = flags.DEFINE_integer(
  'round',
  None,
  'The round of the checkpoint; by default that of the newest.',
  lower_bound=0,
)
_MAX_CLIENTS = flags.DEFINE_integer(
  'max_clients',
  None,
  'The number of devices to evaluate, chosen by the seed of the run; by default'
  ' all.',
  lower_bound=1,
)
_FEW_SHOT = flags.DEFINE_list(
  'few_shot',
  None,
  'The numbers of local examples of the few-shot curve, as 1,2,5; by default'
  ' 1,2,5,10,20,50,… up to the most that a device has. Empty for no curve.',
)
_STEPS = flags.DEFINE_integer(
  'steps',
  None,
  'The last step of the curve against MAML steps; by default twice the steps of'
  ' the training.',
  lower_bound=1,
)


def main() -> None:
  """Evaluates, writes the files and prints the summary."""
  from tasks.reports import client_report
  from tasks.runs import checkpoint
  from tasks.runs import experiment as experiment_lib
  from tasks.runs import per_client
  from tff_debias import runtime

  folder = folder_lib.find(_RUN.value)
  experiment = experiment_lib.Experiment(folder.read()[0])
  with runtime.local_context():
    weights, round_num = checkpoint.load(experiment, folder, _ROUND.value)
    result = per_client.evaluate(
      experiment,
      weights,
      round_num,
      max_clients=_MAX_CLIENTS.value,
      few_shot=_few_shot(),
      num_steps=_STEPS.value,
    )
  print(client_report.save(result, folder.evaluation))


def _few_shot() -> list[int] | None:
  if _FEW_SHOT.value is None:
    return None
  try:
    sizes = sorted({int(size) for size in _FEW_SHOT.value})
  except ValueError:
    sizes = [0]
  if sizes and sizes[0] < 1:
    raise errors.UserError(
      f'--few_shot={",".join(_FEW_SHOT.value)} must be positive integers, as'
      ' 1,2,5.'
    )
  return sizes


def _check_flags() -> None:
  if _RUN.value is None:
    raise errors.UserError('Name the folder of the run: --run=runs/NAME.')
  folder_lib.find(_RUN.value)
  _few_shot()


if __name__ == '__main__':
  cli.run(main, _check_flags)
