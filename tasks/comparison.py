"""Trains the runs that `tasks.compare` and `tasks.tune` compare.

Each is as a run of `tasks.train`, in a folder of its own. The flags here are
those that both programs have.
"""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import itertools
import os
import pathlib
import shlex
import sys
from typing import Any

from absl import flags

from tasks.reports import provenance
from tasks.reports import savings
from tasks.reports import tables
from tasks.runs import errors
from tasks.runs import folder as folder_lib
from tasks.runs import methods
from tasks.runs import parallel
from tasks.runs import settings as settings_lib

#: The settings that belong to a method. The others are the same for all.
OVERRIDABLE = sorted(
  ['learning_rate', 'learning_rate_decay', 'max_grad_norm', 'weight_decay']
  + [k for k, (owner, _) in methods.ONLY_WITH.items() if owner != 'partition']
)

_METHODS = flags.DEFINE_list(
  'methods',
  list(methods.METHODS),
  f'The methods, by default all: {", ".join(methods.METHODS)}.',
)
_CORRECTIONS = flags.DEFINE_multi_string(
  'correction',
  [],
  'A correction of your own besides the methods, such as'
  ' my_module:MyCorrection(gamma=0.5); can be given several times.',
)
_PERSONALIZATIONS = flags.DEFINE_list(
  'personalizations',
  ['maml', 'proto'],
  'The personalizations: maml, proto. The methods that train without one are'
  ' tested with each, in a run for each; with none they are tested without.',
)
_SEEDS = flags.DEFINE_list('seeds', ['0', '1', '2'], 'The seeds.')
_ROUNDS = flags.DEFINE_integer(
  'rounds', None, "The rounds; by default the task's.", lower_bound=1
)
_SMOOTHING = flags.DEFINE_integer(
  'smoothing',
  1,
  'The number of tests whose mean is the accuracy: a test and those before it.',
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
  'The folder of the runs and results. By default a folder in runs/ with a name'
  ' made of the task, the partition and the settings that all runs share.',
)
_WORKERS = settings_lib.define_workers()
_FIXED = ('method', 'correction', 'personalization', 'tested_personalization')
settings_lib.define_flags(without=(*_FIXED, 'seed'))

#: The settings of a run, and the values of those that only it has.
Member = tuple[settings_lib.Settings, Mapping[str, Any]]


def settings_from_flags() -> list[settings_lib.Settings]:
  """The settings of every run: each seed, method and personalization."""
  chosen: list[dict[str, Any]] = [{'method': name} for name in _METHODS.value]
  chosen += [{'correction': text} for text in _CORRECTIONS.value]
  found: dict[settings_lib.Settings, None] = {}
  for seed, own, personalization in itertools.product(
    _SEEDS.value, chosen, _PERSONALIZATIONS.value
  ):
    row = methods.METHODS.get(own.get('method', ''))
    given = {**own, 'seed': settings_lib.parse('seed', seed)}
    if row is None or row.personalizes:
      given['personalization'] = personalization
    elif personalization != 'none':
      given['tested_personalization'] = personalization
    found[_with_effect(given)] = None
  if not found:
    raise errors.UserError(
      '--methods, --personalizations and --seeds must not be empty.'
    )
  for name, value in settings_lib.given_by_flags().items():
    if value is not None and not any(s.has_effect(name) for s in found):
      raise errors.UserError(
        f'--{name}={value} has no effect on any of the methods. Leave it out.'
      )
  return list(found)


def _with_effect(given: Mapping[str, Any]) -> settings_lib.Settings:
  """The settings of flags and of `given`, without those that have no effect."""
  values = {**settings_lib.given_by_flags(), 'correction': None, **given}
  of_all = values.keys() - methods.ONLY_WITH.keys()
  known = settings_lib.Settings(**{name: values[name] for name in of_all})
  return settings_lib.Settings(
    **{name: value for name, value in values.items() if known.has_effect(name)}
  )


def parse(flag: str, assignment: str) -> tuple[str, list[Any]]:
  """The setting and the values of NAME=VALUE,VALUE in a flag.

  Raises:
    UserError: If they are none, or if the setting must be the same for all.
  """
  name, equals, values = assignment.partition('=')
  if not (equals and values):
    raise errors.UserError(f'{flag} must give NAME=VALUE, such as alpha=0.03.')
  if name not in OVERRIDABLE:
    raise errors.UserError(
      f'{flag}: {name} is not one of the settings that may differ between'
      f' methods, {", ".join(OVERRIDABLE)}.'
      + errors.did_you_mean(name, OVERRIDABLE)
    )
  return name, [settings_lib.parse(name, value) for value in values.split(',')]


def _train(runs: Sequence[parallel.Run]) -> None:
  """Trains the runs that are not finished, and draws those."""
  from tasks.reports import figures

  for run in runs:
    if os.path.exists(run.folder.settings):
      run.folder.claim(run.settings)
  cores = os.cpu_count() or 1
  parallel.train(runs, _RUNS_AT_A_TIME.value or max(1, cores // 2))
  for run in runs:
    if not run.folder.is_current(run.folder.picture):
      rows, title = run.folder.read_metrics(), run.settings.title
      figures.save_convergence(rows, title, run.folder.picture)


class Comparison:
  """The runs, each in a folder of its own, and the folder of them all."""

  def __init__(self, program: str, members: Sequence[Member]) -> None:
    """Loads the data, so that an error about them comes before the training."""
    from tasks.runs import components
    from tasks.runs import experiment as experiment_lib

    self.experiment = experiment_lib.Experiment(members[0][0])
    s = self.experiment.settings
    self.rounds = _ROUNDS.value or experiment_lib.default_rounds(s)
    self.title = f'{s.data_title}, {self.rounds} rounds'
    shared: dict[str, Any] = {}
    runs = []
    for given, own in members:
      settings = experiment_lib.resolve(given)
      components.build('correction', settings)
      changes = experiment_lib.changes(settings)
      shared |= {k: v for k, v in changes.items() if k not in own}
      parts = [*settings.method_names, *experiment_lib.assignments(own)]
      runs.append((settings, [*parts, f'seed{settings.seed}']))
    parts = [program, s.task, s.partition, *experiment_lib.assignments(shared)]
    self.path = _OUTPUT_DIR.value or os.path.join(
      'runs', experiment_lib.folder_name(parts)
    )
    self._runs = [self._run(*run, self.rounds) for run in runs]

  def _run(
    self, settings: settings_lib.Settings, name: Sequence[str], rounds: int
  ) -> parallel.Run:
    from tasks.runs import experiment as experiment_lib

    path = os.path.join(self.path, experiment_lib.folder_name(name))
    folder = folder_lib.RunFolder(path)
    return parallel.Run(settings, folder, rounds, _WORKERS.value)

  def train(self) -> list[savings.Curve]:
    """Trains what is not finished; gives the curve of each run, in order."""
    _train(self._runs)
    # The last round is always tested, also that of a run with fewer rounds.
    step = self.experiment.settings.rounds_per_evaluation
    tested = {*range(step, self.rounds, step), self.rounds}
    return [
      savings.curve(
        run.settings,
        [test for test in run.tests() if test['round'] in tested],
        _SMOOTHING.value,
      )
      for run in self._runs
    ]

  def train_locally(self, num_steps: int) -> list[float]:
    """The accuracy of local training alone, for each seed.

    MAML's steps from the initial model are local training. We therefore train
    one round with that number of MAML steps and read the test of round 0.
    """
    from tasks.runs import experiment as experiment_lib

    local = {
      'method': 'fed_avg',
      'tested_personalization': 'maml',
      'maml_steps': num_steps,
      'maml_learning_rate': self.experiment.settings.learning_rate,
      'partition': self.experiment.settings.partition,
    }
    runs = []
    for seed in dict.fromkeys(run.settings.seed for run in self._runs):
      settings = experiment_lib.resolve(_with_effect({**local, 'seed': seed}))
      name = [f'local_{num_steps}_steps_seed{seed}']
      runs.append(self._run(settings, name, rounds=1))
    _train(runs)
    return [run.tests()[0]['accuracy'] for run in runs]

  def report(
    self,
    name: str,
    rows: Sequence[Mapping[str, Any]],
    to_markdown: Callable[[str], str],
  ) -> None:
    """Writes NAME.md and NAME.csv with their origin, and prints the first.

    `to_markdown` takes a note on the origin, which stands below the tables.
    """
    origin = {
      'smoothing': _SMOOTHING.value,
      'flags': shlex.join(sys.argv[1:]),
      'version': provenance.version(),
      'date': provenance.today(),
    }
    path = os.path.join(self.path, name)
    note = ', '.join(f'{name}: {value}' for name, value in origin.items())
    text = f'{self.title}\n\n{to_markdown(note)}\n'
    pathlib.Path(f'{path}.md').write_text(text)
    tables.write_csv([{**row, **origin} for row in rows], f'{path}.csv')
    print(f'{text}\nresults in {self.path}')
