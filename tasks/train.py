"""Trains one method on one task: `python -m tasks.train --help`.

The same command again goes on where the last one stopped.
"""

import os
import signal
import sys

from absl import app
from absl import flags
from absl import logging

from tasks import run_folder as run_folder_lib
from tasks import settings as settings_lib

_OUTPUT_DIR = flags.DEFINE_string(
  'output_dir',
  None,
  'The folder of the run, for its results and to go on from. By default'
  ' runs/ and what the settings say.',
)
_ROUNDS = flags.DEFINE_integer(
  'rounds',
  None,
  "The rounds to train; by default the task's. A finished run goes on if it"
  ' is given more.',
  lower_bound=1,
)
_ROUNDS_PER_CHECKPOINT = flags.DEFINE_integer(
  'rounds_per_checkpoint',
  10,
  'The rounds from one checkpoint to the next.',
  lower_bound=1,
)
settings_lib.define_flags()


def main(argv: list[str]) -> None:
  """Trains, and exits with 2 on a wrong setting, 130 when interrupted."""
  if len(argv) > 1:
    raise app.UsageError(f'Unexpected argument {argv[1]!r}.')
  signal.signal(signal.SIGTERM, signal.default_int_handler)
  try:
    train(settings_lib.from_flags(), _OUTPUT_DIR.value, _ROUNDS.value)
  except ValueError as e:
    print(f'Error: {e}', file=sys.stderr)
    sys.exit(2)
  except KeyboardInterrupt:
    print(
      'Stopped. The same command goes on from the last checkpoint.',
      file=sys.stderr,
    )
    sys.exit(130)


def train(
  settings: settings_lib.Settings, output_dir: str | None, rounds: int | None
) -> None:
  """Trains to the given round, from the last checkpoint if there is one.

  Args:
    settings: The settings; those that are `None` become the task's defaults.
    output_dir: The folder of the run, or `None` for one under `runs`.
    rounds: The round to train to, or `None` for the task's default.

  Raises:
    ValueError: If a setting is wrong, or the folder holds something else.
  """
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
  logging.set_verbosity(logging.ERROR)
  # Only now: it takes seconds, and wrong flags should not wait for it.
  from tasks import experiment as experiment_lib
  from tasks import training

  experiment = experiment_lib.Experiment(settings)
  rounds = rounds or experiment.task.defaults['rounds']
  folder = run_folder_lib.RunFolder(
    output_dir or os.path.join('runs', experiment.name)
  )
  with folder.lock():
    training.run(experiment, folder, rounds, _ROUNDS_PER_CHECKPOINT.value)
    print(training.summary(experiment, folder))


def run() -> None:
  """The console script."""
  app.run(main)


if __name__ == '__main__':
  run()
