"""Trains the runs that `tasks.compare` and `tasks.tune` compare.

Each is as a run of `tasks.train`, in a folder of its own. The flags here are
those that both programs have.
"""

import argparse
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
import itertools
import os
import pathlib
import shlex
import sys
from typing import Any

from tasks import cli
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

# The others have flags of their own, for several values.
_OF_A_RUN = (*methods.PARTS, 'method', 'seed')

#: The settings of a run, and the values of those that only it has.
Member = tuple[settings_lib.Settings, Mapping[str, Any]]


def parser(program: str, about: str, examples: Sequence[str]) -> cli.Parser:
  """The flags that both programs have."""
  made = cli.Parser(program, about, examples)
  settings_lib.add_flags(made, without=_OF_A_RUN)
  made.add(
    'method',
    'methods',
    f'The methods, by default all: {", ".join(methods.METHODS)}.',
    list(methods.METHODS),
    list,
  )
  made.add(
    'method',
    'correction',
    'A correction of your own besides the methods, such as'
    ' my_module:MyCorrection(gamma=0.5); can be given several times.',
    [],
    repeated=True,
  )
  made.add(
    'method',
    'personalizations',
    'The personalizations: maml, proto. The methods that train without one are'
    ' tested with each, in a run for each; with none they are tested without.',
    ['maml', 'proto'],
    list,
  )
  made.add('training', 'seeds', 'The seeds.', ['0', '1', '2'], list)
  made.add('training', 'rounds', 'The number of rounds.', None, int, 1)
  made.add(
    'training',
    'runs_at_a_time',
    'How many runs at a time. By default one for two cores.',
    None,
    int,
    1,
  )
  settings_lib.add_workers(made)
  made.add(
    'tests',
    'smoothing',
    'The number of tests whose mean is the accuracy: a test and those before'
    ' it.',
    1,
    int,
    1,
  )
  made.add(
    'output',
    'output_dir',
    'The folder of the runs and results. By default a folder in runs/ with a'
    ' name made of the task, the partition and the settings that all runs'
    ' share.',
  )
  made.add(
    'output',
    'show_settings',
    'Prints the settings of each run and trains nothing.',
    False,
    bool,
  )
  return made


def help_defaults(args: argparse.Namespace) -> dict[str, Any]:
  """The values of `--help`: those that are the same for all methods."""
  settings = settings_lib.Settings(task=args.task, data_dir=args.data_dir)
  defaults = settings.defaults()
  return {k: v for k, v in defaults.items() if k not in OVERRIDABLE}


def settings_of(args: argparse.Namespace) -> list[settings_lib.Settings]:
  """The settings of every run: each seed, method and personalization."""
  chosen: list[dict[str, Any]] = [{'method': name} for name in args.methods]
  chosen += [{'correction': text} for text in args.correction]
  found: dict[settings_lib.Settings, None] = {}
  for seed, own, personalization in itertools.product(
    args.seeds, chosen, args.personalizations
  ):
    row = methods.METHODS.get(own.get('method', ''))
    given = {**own, 'seed': settings_lib.parse('seed', seed)}
    if row is None or row.personalizes:
      given['personalization'] = personalization
    elif personalization != 'none':
      given['tested_personalization'] = personalization
    found[_with_effect(args, given)] = None
  if not found:
    raise errors.UserError(
      '--methods, --personalizations and --seeds must not be empty.'
    )
  for name, value in settings_lib.given(args).items():
    if value is not None and not any(s.has_effect(name) for s in found):
      raise errors.UserError(
        f'--{name}={value} has no effect on any of the methods. Leave it out.'
      )
  return list(found)


def _with_effect(
  args: argparse.Namespace, given: Mapping[str, Any]
) -> settings_lib.Settings:
  """The settings of flags and of `given`, without those that have no effect."""
  values = {**settings_lib.given(args), 'correction': None, **given}
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


class Comparison:
  """The runs, each in a folder of its own, and the folder of them all.

  Attributes:
    rounds: The number of rounds.
    path: The folder.
    runs: The runs, in the order of the members.
    title: What is compared, for people.
  """

  def __init__(
    self, program: str, args: argparse.Namespace, members: Iterable[Member]
  ) -> None:
    """Resolves the settings; `--show_settings` prints them and ends here."""
    self._args = args
    shared: dict[str, Any] = {}
    named: list[tuple[settings_lib.Settings, list[str]]] = []
    for given, own in members:
      settings = given.resolve()
      shared |= {k: v for k, v in settings.changes().items() if k not in own}
      parts = [*settings.method_names, *folder_lib.assignments(own)]
      named.append((settings, [*parts, f'seed{settings.seed}']))
    s = named[0][0]
    self.rounds = args.rounds or s.defaults()['rounds']
    self.title = f'{s.data_title}, {self.rounds} rounds'
    parts = [program, s.task, str(s.partition)]
    self.path = args.output_dir or folder_lib.join(
      'runs', parts=[*parts, *folder_lib.assignments(shared)]
    )
    self.runs = [
      parallel.Run(
        settings,
        folder_lib.RunFolder(folder_lib.join(self.path, parts=name)),
        self.rounds,
        args.workers,
      )
      for settings, name in named
    ]
    if args.show_settings:
      for run in self.runs:
        flags = [f'--rounds={self.rounds}', *run.settings.to_flags()]
        print(f'{run.folder.path}: {shlex.join(flags)}')
      sys.exit(0)

  def train(self) -> list[Any]:
    """Trains what is not finished; gives the `savings.Curve` of each run."""
    from tasks.reports import figures
    from tasks.reports import savings
    from tasks.runs import components
    from tasks.runs import experiment as experiment_lib

    # An error about the data or a class of your own comes before the training.
    experiment_lib.Experiment(self.runs[0].settings)
    for run in self.runs:
      components.build('correction', run.settings)
      if os.path.exists(run.folder.settings):
        run.folder.claim(run.settings)
    cores = os.cpu_count() or 1
    parallel.train(self.runs, self._args.runs_at_a_time or max(1, cores // 2))
    for run in self.runs:
      if not run.folder.is_current(run.folder.picture):
        rows, title = run.folder.read_metrics(), run.settings.title
        figures.save_convergence(rows, title, run.folder.picture)
    # The last round is always tested, also that of a run with fewer rounds.
    step = self.runs[0].settings.rounds_per_evaluation
    tested = {*range(step, self.rounds, step), self.rounds}
    return [
      savings.curve(
        run.settings,
        [test for test in run.tests() if test['round'] in tested],
        self._args.smoothing,
      )
      for run in self.runs
    ]

  def train_locally(self, num_steps: int) -> list[float]:
    """The accuracy of devices that train alone, for each seed."""
    from tasks.runs import training

    seeds = {run.settings.seed: run.settings for run in self.runs}
    path = os.path.join(self.path, 'alone_seed')
    return [
      training.train_locally(settings, num_steps, f'{path}{seed}.json')
      for seed, settings in seeds.items()
    ]

  def report(
    self,
    name: str,
    rows: Sequence[Mapping[str, Any]],
    to_markdown: Callable[[str], str],
  ) -> None:
    """Writes NAME.md and NAME.csv with their origin, and prints the first.

    `to_markdown` takes a note on the origin, which stands below the tables.
    """
    from tasks.reports import provenance
    from tasks.reports import tables

    origin = {
      'smoothing': self._args.smoothing,
      'flags': shlex.join(self._args.argv),
      'version': provenance.version(),
      'date': provenance.today(),
    }
    path = os.path.join(self.path, name)
    note = ', '.join(f'{name}: {value}' for name, value in origin.items())
    text = f'{self.title}\n\n{to_markdown(note)}\n'
    pathlib.Path(f'{path}.md').write_text(text)
    tables.write_csv([{**row, **origin} for row in rows], f'{path}.csv')
    print(f'{text}\nresults in {self.path}')
