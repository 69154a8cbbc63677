"""Compares methods on one task: `python -m tasks.compare --help`.

The methods start from the same model and train with the same participants on
the same partition, for several seeds. Each is a run of `tasks.train` in a
folder of its own; the same command again goes on, and trains nothing twice.
"""

import dataclasses
import itertools
import os
import pathlib

from absl import flags

from tasks import cli
from tasks.runs import errors
from tasks.runs import folder as folder_lib
from tasks.runs import queue
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
  'A setting for some runs only, METHOD/PERSONALIZATION:NAME=VALUE, for'
  ' example --override=pfl_dyn/maml:alpha=0.03; can be given several times.',
)
_ROUNDS = flags.DEFINE_integer(
  'rounds', None, "The rounds; by default the task's.", lower_bound=1
)
# The settings that belong to a method. The others are the same for all.
_OVERRIDABLE = (
  *('alpha', 'learning_rate', 'learning_rate_decay', 'maml_first_order'),
  *('maml_learning_rate', 'maml_steps', 'max_grad_norm', 'weight_decay'),
)
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
_SMOOTHING = flags.DEFINE_integer(
  'smoothing',
  1,
  'The number of tests whose mean is the accuracy: each test and those before'
  ' it.',
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
_WORKER_NETWORK = cli.define_worker_network()
settings_lib.define_flags(
  without=('method', 'correction', 'personalization', 'seed')
)
flags.adopt_module_key_flags(settings_lib)


def _settings() -> list[settings_lib.Settings]:
  """The settings of every run."""
  overrides = {text: _parse_override(text) for text in _OVERRIDES.value}
  unused = set(overrides)
  results = {}
  for seed, method in itertools.product(_SEEDS.value, _METHODS.value):
    _, personalizes = settings_lib.METHODS.get(method, (None, False))
    for personalization in _PERSONALIZATIONS.value if personalizes else [None]:
      settings = settings_lib.from_flags(
        only_with_effect=True,
        method=method,
        personalization=personalization,
        seed=settings_lib.parse('seed', seed),
      )
      run = (method, settings.personalization)
      chosen = [text for text in overrides if overrides[text][0] == run]
      unused.difference_update(chosen)
      changes = dict(overrides[text][1] for text in chosen)
      results[dataclasses.replace(settings, **changes)] = None
  if not results:
    raise errors.UserError(
      '--methods, --personalizations and --seeds must not be empty.'
    )
  if unused:
    raise errors.UserError(f'--override={min(unused)} is for none of the runs.')
  return list(results)


def _parse_override(text: str) -> tuple[tuple[str, str], tuple[str, object]]:
  """The method and personalization, and the setting and its value."""
  run, _, setting = text.partition(':')
  method, _, personalization = run.partition('/')
  name, equals, value = setting.partition('=')
  if not (personalization and equals):
    raise errors.UserError(
      f'--override={text} must be METHOD/PERSONALIZATION:NAME=VALUE, for'
      ' example pfl_dyn/maml:alpha=0.03.'
    )
  value = settings_lib.parse(name, value)
  if name not in _OVERRIDABLE:
    raise errors.UserError(
      f'--override={text} would make the runs unequal: {name} must be the'
      ' same for all. The settings that may differ between methods are'
      f' {", ".join(_OVERRIDABLE)}.'
    )
  return (method, personalization), (name, value)


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


def _check_flags() -> None:
  folder_lib.check_output_dir(_OUTPUT_DIR.value)
  _settings()
  _targets()


def main() -> None:
  """Trains the runs that are not finished, and writes the results."""
  from tasks.reports import figures
  from tasks.reports import method_report
  from tasks.reports import provenance
  from tasks.reports import savings
  from tasks.reports import tables
  from tasks.runs import experiment as experiment_lib

  all_settings = _settings()
  # Loads the data first: an error about them comes before a process starts.
  experiment = experiment_lib.Experiment(all_settings[0])
  parent = _OUTPUT_DIR.value or os.path.join(
    'runs',
    f'compare_{experiment.settings.task}_{experiment.settings.partition}',
  )
  rounds = _ROUNDS.value or experiment.default_rounds
  step = experiment.settings.rounds_per_evaluation
  if rounds % step:
    raise errors.UserError(
      f'--rounds={rounds} must be a multiple of --rounds_per_evaluation={step}:'
      ' the last test counts.'
    )
  runs = [
    queue.Run(
      s,
      folder_lib.RunFolder(
        os.path.join(parent, '_'.join((*s.method_names, f'seed{s.seed}')))
      ),
      rounds,
      (f'--worker_network={_WORKER_NETWORK.value}',),
    )
    for s in all_settings
  ]
  with folder_lib.RunFolder(parent).lock():
    for run in runs:
      if os.path.exists(run.folder.settings):
        run.folder.claim(experiment_lib.resolve(experiment.task, run.settings))
    queue.run_all(
      runs, _RUNS_AT_A_TIME.value or max(1, (os.cpu_count() or 1) // 2)
    )
    curves = []
    for run in runs:
      # The tests that all runs have.
      tests = [
        test
        for test in folder_lib.evaluations(run.folder.read_metrics())
        if 0 < test['round'] <= rounds and not test['round'] % step
      ]
      curve = savings.curve(run.settings, tests)
      curves.append(curve.smoothed(_SMOOTHING.value))
    targets = _targets()
    if targets is None:
      targets = sorted(getattr(experiment.task, 'targets', ()))
    origin = method_report.Origin(
      _SMOOTHING.value,
      _TESTS_AT_TARGET.value,
      ' '.join(_OVERRIDES.value),
      provenance.version(),
      provenance.today(),
    )
    title = f'{experiment.data_title}, {rounds} rounds'
    markdown = method_report.to_markdown(curves, targets, origin)
    text = f'{title}\n\n{markdown}\n'
    path = os.path.join(parent, 'comparison')
    pathlib.Path(f'{path}.md').write_text(text)
    rows = method_report.to_rows(curves, targets, origin)
    tables.write_csv(rows, f'{path}.csv')
    figures.save_comparison(curves, targets, title, f'{path}.png')
    print(text)
    print(f'results in {parent}: comparison.md, .csv, .png and .pdf')


if __name__ == '__main__':
  cli.run(main, _check_flags)
