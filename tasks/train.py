"""Trains one method on one task: `python -m tasks.train --help`.

The defaults of the settings depend on the task and the method; --show_settings
prints them. Run the same command again to resume. Only do that in a folder of
your own, or of somebody whose programs you would run.
"""

import os

from absl import flags

from tasks import cli
from tasks.runs import errors
from tasks.runs import folder as folder_lib
from tasks.runs import methods
from tasks.runs import settings as settings_lib
from tasks.runs import tuned

_OUTPUT_DIR = flags.DEFINE_string(
  'output_dir',
  None,
  'The folder of the run, for its results and its checkpoints. By default a'
  ' folder in runs/ with a name made of the settings.',
)
_ROUNDS = flags.DEFINE_integer(
  'rounds',
  None,
  'The number of rounds; by default the task decides. A finished run goes on if'
  ' the number is larger.',
  lower_bound=1,
)
_ROUNDS_PER_CHECKPOINT = flags.DEFINE_integer(
  'rounds_per_checkpoint',
  10,
  'The number of rounds from one checkpoint to the next.',
  lower_bound=1,
)
_FROM_ROUND = flags.DEFINE_integer(
  'from_round',
  None,
  'Goes back to the checkpoint of this round, and removes what came later. By'
  ' default a run goes on from its last checkpoint. The last two are kept.',
  lower_bound=0,
)
_TUNED = tuned.define_flag()
_WORKERS = settings_lib.define_workers()
_BASELINE = flags.DEFINE_boolean(
  'baseline',
  None,
  'Trains the method without the correction too, in the folder `baseline` of'
  ' the run, and draws its accuracy besides. By default only for the task'
  ' digits, where that takes half a minute.',
)
_SHOW_SETTINGS = flags.DEFINE_boolean(
  'show_settings',
  False,
  'Prints all settings of the run, also those that its task and method decide,'
  ' and trains nothing. It needs no data.',
)
settings_lib.define_flags()


def main() -> None:
  """Trains to the given round, draws the picture and prints the summary."""
  from tasks.reports import figures
  from tasks.reports import run_report
  from tasks.runs import experiment as experiment_lib
  from tasks.runs import training

  settings = _settings()
  rounds = _ROUNDS.value or experiment_lib.default_rounds(settings)
  if _SHOW_SETTINGS.value:
    shown = experiment_lib.resolve(settings).to_flags()
    print('\n'.join([f'--rounds={rounds}', *shown]))
    return
  experiment = experiment_lib.Experiment(settings)
  folder = folder_lib.RunFolder(
    _OUTPUT_DIR.value or os.path.join('runs', experiment.name)
  )
  rows = training.run(
    experiment,
    folder,
    rounds,
    _ROUNDS_PER_CHECKPOINT.value,
    _FROM_ROUND.value,
    _WORKERS.value,
  )
  title = experiment.settings.title
  figures.save_convergence(rows, title, folder.picture)
  print(f'{title}\n{run_report.summary(experiment.settings, rows)}')
  has_baseline = _BASELINE.value
  if has_baseline is None:
    has_baseline = experiment.task.has_baseline_by_default
  if has_baseline and experiment.settings.correction != 'none':
    uncorrected = experiment_lib.Experiment(experiment.settings.uncorrected())
    settings = uncorrected.settings
    baseline = folder_lib.RunFolder(os.path.join(folder.path, 'baseline'))
    others = training.run(
      uncorrected,
      baseline,
      rounds,
      _ROUNDS_PER_CHECKPOINT.value,
      workers=_WORKERS.value,
    )
    figures.save_convergence(others, settings.title, baseline.picture)
    name = f'{methods.title(settings.method)} (without correction)'
    figures.save_convergence(rows, title, folder.picture, {name: others})
    print(f'{name}:\n{run_report.summary(settings, others)}')
  print(f'results in {folder.path}: convergence.png, meta_model.keras, …')


def _settings() -> settings_lib.Settings:
  return tuned.apply(_TUNED.value, settings_lib.from_flags())


def _check_flags() -> None:
  settings = _settings()
  if _BASELINE.value and settings.correction == 'none':
    raise errors.UserError(
      f'--baseline has no effect with --method={settings.method}, which has no'
      ' correction. Leave it out.'
    )


if __name__ == '__main__':
  cli.run(main, _check_flags)
