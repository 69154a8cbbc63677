"""Trains one method on one task: `python -m tasks.train --help`.

The same command again goes on where the last one stopped.
"""

import os

from absl import flags

from tasks import cli
from tasks.runs import folder as folder_lib
from tasks.runs import settings as settings_lib

_OUTPUT_DIR = flags.DEFINE_string(
  'output_dir',
  None,
  'The folder of the run, for its results and to go on from. By default a'
  ' folder in runs/ with a name made of the settings.',
)
_ROUNDS = flags.DEFINE_integer(
  'rounds',
  None,
  "The rounds to train; by default the task's. A finished run goes on if it is"
  ' given more.',
  lower_bound=1,
)
_ROUNDS_PER_CHECKPOINT = flags.DEFINE_integer(
  'rounds_per_checkpoint',
  10,
  'The rounds from one checkpoint to the next.',
  lower_bound=1,
)
settings_lib.define_flags()
flags.adopt_module_key_flags(settings_lib)


def main() -> None:
  """Trains to the given round, from the last checkpoint if there is one."""
  from tasks.runs import experiment as experiment_lib
  from tasks.runs import training

  experiment = experiment_lib.Experiment(settings_lib.from_flags())
  folder = folder_lib.RunFolder(
    _OUTPUT_DIR.value or os.path.join('runs', experiment.name)
  )
  with folder.lock():
    training.run(
      experiment,
      folder,
      _ROUNDS.value or experiment.default_rounds,
      _ROUNDS_PER_CHECKPOINT.value,
    )
    print(training.summary(experiment, folder))


def run() -> None:
  """The console script."""
  cli.run(main, settings_lib.from_flags)


if __name__ == '__main__':
  run()
