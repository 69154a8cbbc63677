"""Compares methods on one task: `python -m tasks.compare --help`.

The methods start from the same model and train with the same participants on
the same partition, for several seeds. Each is a run of `tasks.train` in a
folder of its own; the same command again goes on, and trains nothing twice.
"""

import dataclasses
import os

from absl import flags

from tasks import cli as program
from tasks.runs import folder as run_folder_lib
from tasks.runs import queue as run_queue
from tasks.runs import settings as settings_lib

_METHODS = flags.DEFINE_list(
  'methods',
  ['per_fed_avg', 'pfl_dyn', 'pfl_scaf'],
  f'The methods: {", ".join(settings_lib.METHODS)}.',
)
_PERSONALIZATIONS = flags.DEFINE_list(
  'personalizations',
  ['maml', 'proto'],
  'The personalizations of the methods that personalize: maml, proto.',
)
_SEEDS = flags.DEFINE_list('seeds', ['0', '1', '2'], 'The seeds.')
_OVERRIDES = flags.DEFINE_multi_string(
  'override',
  [],
  'Other settings for some runs, METHOD/PERSONALIZATION:NAME=VALUE, for'
  ' example --override=pfl_dyn/maml:alpha=0.03; can be given several times.',
)
_ROUNDS = flags.DEFINE_integer(
  'rounds', None, "The rounds; by default the task's.", lower_bound=1
)
# What belongs to a method: the rest is the same for all that are compared.
_OVERRIDABLE = (
  'alpha',
  'learning_rate',
  'learning_rate_decay',
  'maml_first_order',
  'maml_learning_rate',
  'maml_steps',
  'max_grad_norm',
  'weight_decay',
)
_TARGETS = flags.DEFINE_list(
  'targets',
  [],
  'Target accuracies, between 0 and 1. By default what the methods reach.',
)
_SMOOTHING = flags.DEFINE_integer(
  'smoothing',
  1,
  'The tests whose mean counts as the accuracy: the last so many.',
  lower_bound=1,
)
_RUNS_AT_A_TIME = flags.DEFINE_integer(
  'runs_at_a_time',
  None,
  'How many runs at a time. By default one for two cores.',
  lower_bound=1,
)
_OUTPUT_DIR = flags.DEFINE_string(
  'output_dir',
  None,
  'The folder of the runs and results. By default a folder in runs/ with the'
  ' names of task and partition.',
)
settings_lib.define_flags(without=('method', 'personalization', 'seed'))
flags.adopt_module_key_flags(settings_lib)


def _settings() -> list[settings_lib.Settings]:
  """The settings of every run.

  Raises:
    SettingsError: If a flag is wrong.
  """
  overrides = [_parse_override(text) for text in _OVERRIDES.value]
  unused = set(_OVERRIDES.value)
  results = {}
  for seed in _SEEDS.value:
    for name in _METHODS.value:
      is_known = name in settings_lib.METHODS
      personalizes = is_known and settings_lib.METHODS[name][1]
      for personalization in (
        _PERSONALIZATIONS.value if personalizes else [None]
      ):
        settings = settings_lib.from_flags(
          method=name,
          personalization=personalization,
          seed=settings_lib.parse('seed', seed),
        )
        changes = {}
        for text, (method, other, setting, value) in zip(
          _OVERRIDES.value, overrides, strict=True
        ):
          if (method, other) == (name, settings.personalization):
            changes[setting] = value
            unused.discard(text)
        settings = dataclasses.replace(settings, **changes)
        results[settings] = None
  if not results:
    raise settings_lib.SettingsError(
      '--methods, --personalizations and --seeds must not be empty.'
    )
  if unused:
    raise settings_lib.SettingsError(
      f'--override={min(unused)} is for none of the runs.'
    )
  return list(results)


def _parse_override(text: str) -> tuple[str, str, str, object]:
  run, _, setting = text.partition(':')
  method, _, personalization = run.partition('/')
  name, equals, value = setting.partition('=')
  if not (personalization and equals):
    raise settings_lib.SettingsError(
      f'--override={text} must be METHOD/PERSONALIZATION:NAME=VALUE, for'
      ' example pfl_dyn/maml:alpha=0.03.'
    )
  value = settings_lib.parse(name, value)
  if name not in _OVERRIDABLE:
    raise settings_lib.SettingsError(
      f'--override={text} would compare what is not alike: {name} must be the'
      f' same for all. Its own a method can have {", ".join(_OVERRIDABLE)}.'
    )
  return method, personalization, name, value


def _targets() -> list[float]:
  """The targets given, in order.

  Raises:
    SettingsError: If one is no accuracy.
  """
  try:
    targets = sorted({float(text) for text in _TARGETS.value})
  except ValueError as e:
    raise settings_lib.SettingsError(
      f'--targets={",".join(_TARGETS.value)} must be numbers.'
    ) from e
  if targets and not 0 < targets[0] <= targets[-1] <= 1:
    raise settings_lib.SettingsError(
      f'--targets={",".join(_TARGETS.value)} must be above 0 and at most 1.'
    )
  return targets


def _check_flags() -> None:
  _settings()
  _targets()


def main() -> None:
  """Trains what is not trained, and writes the results."""
  import numpy as np

  from tasks.reports import figures as pictures
  from tasks.reports import savings as comparison
  from tasks.runs import experiment as experiment_lib

  all_settings = _settings()
  first = all_settings[0]
  # Loads the data: what is missing is said before a process is started.
  experiment = experiment_lib.Experiment(first)
  parent = _OUTPUT_DIR.value or os.path.join(
    'runs', f'compare_{first.task}_{experiment.settings.partition}'
  )
  rounds = _ROUNDS.value or experiment.default_rounds
  step = experiment.settings.rounds_per_evaluation
  if rounds % step:
    raise settings_lib.SettingsError(
      f'--rounds={rounds} must be a multiple of --rounds_per_evaluation={step}:'
      ' the last test counts.'
    )
  runs = [
    run_queue.Run(
      s,
      run_folder_lib.RunFolder(
        os.path.join(parent, f'{s.method}_{s.personalization}_seed{s.seed}')
      ),
      rounds,
    )
    for s in all_settings
  ]
  for run in runs:
    if os.path.exists(run.folder.settings):
      run.folder.claim(experiment_lib.resolve(experiment.task, run.settings))
  run_queue.run_all(
    runs, _RUNS_AT_A_TIME.value or max(1, (os.cpu_count() or 1) // 2)
  )
  curves = []
  for run in runs:
    tests = [
      test
      for test in pictures.evaluations(run.folder.read_metrics())
      if 0 < test['round'] <= rounds and not test['round'] % step
    ]
    curve = comparison.Curve(
      run.settings.method,
      run.settings.personalization,
      run.settings.seed,
      *(
        np.array([test[name] for test in tests])
        for name in ('round', 'models', 'accuracy')
      ),
    )
    curves.append(curve.smoothed(_SMOOTHING.value))
  targets = {}
  for personalization in dict.fromkeys(c.personalization for c in curves):
    group = [c for c in curves if c.personalization == personalization]
    targets[personalization] = _targets() or comparison.choose_targets(group)
  title = experiment.data_title
  markdown = comparison.to_markdown(curves, targets)
  with open(os.path.join(parent, 'comparison.md'), 'w') as file:
    file.write(f'{title}, {rounds} rounds\n\n{markdown}\n')
  comparison.write_csv(curves, targets, os.path.join(parent, 'comparison.csv'))
  pictures.save_comparison(
    curves, title, os.path.join(parent, 'comparison.png')
  )
  print(f'{title}, {rounds} rounds\n\n{markdown}\n')
  print(f'results in {parent}: comparison.md, comparison.csv, comparison.png')


def run() -> None:
  """The console script."""
  program.run(main, _check_flags)


if __name__ == '__main__':
  run()
