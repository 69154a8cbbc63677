"""Defines the runs that a comparison of methods consists of, and trains them.

Each is as a run of `tasks.train`, in a folder of its own. The flags here are
those that `tasks.compare` and `tasks.tune` share.
"""

from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import itertools
import os
from typing import Any
from typing import NamedTuple

from absl import flags

from tasks.runs import components
from tasks.runs import errors
from tasks.runs import folder as folder_lib
from tasks.runs import queue
from tasks.runs import settings as settings_lib

#: The settings that belong to a method. The others are the same for all.
OVERRIDABLE = (
  *('alpha', 'learning_rate', 'learning_rate_decay', 'maml_first_order'),
  *('maml_learning_rate', 'maml_steps', 'max_grad_norm', 'mu', 'weight_decay'),
)

_METHODS = flags.DEFINE_list(
  'methods',
  list(settings_lib.METHODS),
  f'The methods, by default all: {", ".join(settings_lib.METHODS)}.',
)
_CORRECTIONS = flags.DEFINE_multi_string(
  'correction',
  [],
  'A correction of your own besides the methods, MODULE:CLASS(NAME=VALUE), such'
  ' as my_module:MyCorrection(gamma=0.5); can be given several times.',
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
SMOOTHING = flags.DEFINE_integer(
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
  'The folder of the runs and results. By default a folder in runs/ with a name'
  ' made of the task, the partition and the settings that all runs share.',
)
settings_lib.define_flags(
  without=(
    *('method', 'correction', 'seed'),
    *('personalization', 'tested_personalization'),
  )
)


def settings_from_flags() -> list[settings_lib.Settings]:
  """The settings of every run: each seed, method and personalization."""
  results = {}
  methods = [(method, None) for method in _METHODS.value]
  methods += [(None, correction) for correction in _CORRECTIONS.value]
  for seed, (method, correction), personalization in itertools.product(
    _SEEDS.value, methods, _PERSONALIZATIONS.value
  ):
    _, personalizes = settings_lib.METHODS.get(method, (None, True))
    name = 'personalization' if personalizes else 'tested_personalization'
    as_it_is = personalization == 'none' and not personalizes
    settings = settings_lib.from_flags(
      only_with_effect=True,
      method=method,
      correction=correction,
      **{name: None if as_it_is else personalization},
      seed=settings_lib.parse('seed', seed),
    )
    results[settings] = None
  if not results:
    raise errors.UserError(
      '--methods, --personalizations and --seeds must not be empty.'
    )
  settings_lib.check_flags_have_effect(results)
  return list(results)


def check_overridable(flag: str, name: str) -> None:
  """Raises an error if a setting must be the same for all methods."""
  if name not in OVERRIDABLE:
    raise errors.UserError(
      f'{flag} would make the runs unequal: {name} must be the same for all.'
      ' The settings that may differ between methods are'
      f' {", ".join(OVERRIDABLE)}.'
    )


class Member(NamedTuple):
  """The settings of a run, and the values of those that only it has."""

  settings: settings_lib.Settings
  own: Mapping[str, Any]


class Comparison:
  """The runs, each in a folder of its own, and the folder of them all."""

  def __init__(self, program: str, members: Sequence[Member]) -> None:
    """Loads the data, so that an error about them comes before a process."""
    from tasks.runs import experiment as experiment_lib

    experiment = experiment_lib.Experiment(members[0].settings)
    s = experiment.settings
    self.experiment = experiment
    shared, runs = {}, {}
    for settings, own in members:
      components.check_own(settings)
      resolved = experiment_lib.resolve(settings)
      changes = experiment_lib.changes(resolved)
      shared |= {k: v for k, v in changes.items() if k not in own}
      parts = [*settings.method_names, *experiment_lib.assignments(own)]
      name = experiment_lib.folder_name([*parts, f'seed{settings.seed}'])
      if name in runs:
        raise errors.UserError(f'Two runs would be in the same folder, {name}.')
      runs[name] = settings
    parts = [program, s.task, s.partition, *experiment_lib.assignments(shared)]
    self.path = _OUTPUT_DIR.value or os.path.join(
      'runs', experiment_lib.folder_name(parts)
    )
    self.rounds = _ROUNDS.value or experiment_lib.default_rounds(s)
    if self.rounds % s.rounds_per_evaluation:
      raise errors.UserError(
        f'--rounds={self.rounds} must be a multiple of'
        f' --rounds_per_evaluation={s.rounds_per_evaluation}: the last test'
        ' counts.'
      )
    self.title = f'{s.data_title}, {self.rounds} rounds'
    self._runs = self._queue(runs, self.rounds)

  def _queue(
    self, runs: Mapping[str, settings_lib.Settings], rounds: int
  ) -> list[queue.Run]:
    return [
      queue.Run(
        settings,
        folder_lib.RunFolder(os.path.join(self.path, name)),
        rounds,
      )
      for name, settings in runs.items()
    ]

  def train(self) -> None:
    """Trains the runs that are not finished, in a locked folder."""
    self._train(self._runs)

  def _train(self, runs: Sequence[queue.Run]) -> None:
    from tasks.runs import experiment as experiment_lib

    for run in runs:
      if os.path.exists(run.folder.settings):
        run.folder.claim(experiment_lib.resolve(run.settings))
    at_a_time = _RUNS_AT_A_TIME.value or max(1, (os.cpu_count() or 1) // 2)
    queue.run_all(runs, at_a_time)

  def pictures(self) -> Iterator[tuple[list[dict[str, Any]], str, str]]:
    """The metrics, title and path of the runs' pictures that are not new."""
    for folder in (run.folder for run in self._runs):
      if not folder.is_current(folder.picture):
        yield folder.read_metrics(), folder.read().title, folder.picture

  def train_locally(self, num_steps: int) -> list[float]:
    """The accuracy of local training alone, for each seed.

    MAML's steps from the initial model are local training. We therefore train
    one round with that number of MAML steps and read the test of round 0.
    """
    partition = self.experiment.settings.partition
    runs = {
      f'local_{num_steps}_steps_seed{seed}': settings_lib.from_flags(
        only_with_effect=True,
        method='fed_avg',
        correction=None,
        tested_personalization='maml',
        maml_steps=num_steps,
        maml_learning_rate=self.experiment.settings.learning_rate,
        partition=partition,
        seed=seed,
      )
      for seed in dict.fromkeys(run.settings.seed for run in self._runs)
    }
    queued = self._queue(runs, 1)
    self._train(queued)
    first = [folder_lib.evaluations(r.folder.read_metrics())[0] for r in queued]
    return [test['accuracy'] for test in first]

  def targets(
    self, given: Sequence[float] | None
  ) -> dict[str, Sequence[float]]:
    """The targets by personalization: those given, or those of the task."""
    partition = self.experiment.settings.partition
    presets = self.experiment.task.targets
    names = {run.settings.method_names[1] for run in self._runs}
    return {
      name: presets.get((partition, name), ()) if given is None else given
      for name in names
    }

  def tests(
    self,
  ) -> Iterator[tuple[settings_lib.Settings, list[dict[str, Any]]]]:
    """The resolved settings of each run, and the tests that all runs have."""
    step = self.experiment.settings.rounds_per_evaluation
    for run in self._runs:
      tests = folder_lib.evaluations(run.folder.read_metrics())
      yield (
        run.folder.read(),
        [
          test
          for test in tests
          if 0 < test['round'] <= self.rounds and not test['round'] % step
        ],
      )
