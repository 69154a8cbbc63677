"""Trains the runs that `tasks.compare` and `tasks.tune` compare.

Each is as a run of `tasks.train`, in a folder of its own. The flags here are
those that both programs have.
"""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
import itertools
import os
import pathlib
import shlex
import subprocess
import sys
import time
from typing import Any

from tasks import catalog
from tasks import cli
from tasks.runs import errors
from tasks.runs import folder as folder_lib
from tasks.runs import methods
from tasks.runs import settings as settings_lib

_FLAGS = f"""
method:
  --methods=NAME,NAME,…  The methods, by default all.
    [{','.join(methods.METHODS)}]
  --correction=NAME…  A correction of your own besides the methods, such as
    my_module:MyCorrection(gamma=0.5); can be given several times.
  --personalizations=NAME,NAME,…  The personalizations. The methods that train
    without one are tested with each, in a run for each; with none they are
    tested without. [maml,proto]

training:
  --seeds=N,N,…  The seeds. [0,1,2]
  --rounds=N  The number of rounds, at least 1.
  --runs_at_a_time=N  How many runs at a time, at least 1. By default one for
    two cores.
  --workers=NAME,NAME,…  TFF's workers that simulate the clients, HOST:PORT; by
    default this process does. All of them must see the folder of the runs.

tests:
  --smoothing=N  The number of tests whose mean is the accuracy: a test and
    those before it, at least 1. [1]

output:
  --output_dir=NAME  The folder of the runs and results. By default a folder in
    runs/ with a name made of the task, the partition and the settings that all
    runs share.
  --[no]show_settings  Prints the settings of each run and trains nothing.
"""

#: The settings that belong to a method. The others are the same for all.
OVERRIDABLE = sorted(
  ['learning_rate', 'learning_rate_decay', 'max_grad_norm', 'weight_decay']
  + [k for k, (owner, _) in methods.ONLY_WITH.items() if owner != 'partition']
)


def parse(usage: str, argv: Sequence[str]) -> cli.Args:
  """The flags of a program, with those that both programs have."""
  # Of these there are several values, in flags of their own.
  own = (*methods.PARTS, 'method', 'seed')
  shared = [f for name, f in settings_lib.FLAGS.items() if name not in own]
  shared += cli.read_flags(_FLAGS)

  def defaults(args: cli.Args) -> dict[str, Any]:
    """Those that are the same for all methods."""
    settings = settings_lib.resolve(task=args.task, data_dir=args.data_dir)
    of_task = {'task': settings.task, **settings.defaults()}
    return {k: v for k, v in of_task.items() if k not in OVERRIDABLE}

  return cli.parse(usage, argv, shared, defaults)


def _runs(args: cli.Args) -> list[dict[str, Any]]:
  """What is given for every run: each seed, method and personalization."""
  shared = settings_lib.given(args)
  del shared['correction']
  chosen: list[dict[str, Any]] = [{'method': name} for name in args.methods]
  chosen += [{'correction': text} for text in args.correction]
  runs = []
  for seed, own, personalization in itertools.product(
    args.seeds, chosen, args.personalizations
  ):
    values = {**shared, **own, 'seed': seed}
    row = methods.METHODS.get(own.get('method', ''))
    if row is None or row.personalizes:
      values['personalization'] = personalization
    elif personalization != 'none':
      values['tested_personalization'] = personalization
    runs.append(settings_lib.with_effect(values))
  if not runs:
    raise errors.UserError(
      '--methods, --personalizations and --seeds must not be empty.'
    )
  for name, value in shared.items():
    if not any(name in run for run in runs):
      raise errors.UserError(
        f'--{name}={value} has no effect on any of the methods. Leave it out.'
      )
  return runs


def read_values(flag: str, assignment: str) -> tuple[str, list[Any]]:
  """The setting and the values of NAME=VALUE,VALUE in a flag.

  Raises:
    UserError: If they are none, or if the setting must be the same for all.
  """
  name, _, values = assignment.partition('=')
  if not values:
    raise errors.UserError(f'{flag} must give NAME=VALUE, such as alpha=0.03.')
  if name not in OVERRIDABLE:
    raise errors.UserError(
      f'{flag}: {name} is not one of the settings that may differ between'
      f' methods, {", ".join(OVERRIDABLE)}.'
      + errors.did_you_mean(name, OVERRIDABLE)
    )
  return name, list(map(settings_lib.FLAGS[name].read, values.split(',')))


class Comparison:
  """Runs, each in a folder of its own, and the folder of them all.

  `variants` gives what is given for each run, of what is given for all.

  Attributes:
    settings: The settings of the first run, for what all runs share.
    rounds: The number of rounds.
    path: The folder.
    runs: The settings of each run by its folder.
  """

  def __init__(
    self,
    program: str,
    args: cli.Args,
    variants: Callable[[Mapping[str, Any]], Iterable[Mapping[str, Any]]],
  ) -> None:
    """Resolves the settings; `--show_settings` prints them and ends here."""
    self._args = args
    shared: dict[str, Any] = {}
    named: dict[str, settings_lib.Settings] = {}
    for given in _runs(args):
      for varied in variants(given):
        settings = settings_lib.resolve(**varied)
        own = {
          name: value
          for name, value in varied.items()
          if name in OVERRIDABLE and value != given.get(name)
        }
        shared |= {k: v for k, v in settings.changes().items() if k not in own}
        values = [f'{k}={value}' for k, value in own.items()]
        parts = [*settings.method_names, *values, f'seed{settings.seed}']
        named[folder_lib.name_of(*parts)] = settings
    self.settings = s = next(iter(named.values()))
    self.rounds = args.rounds or s.defaults()['rounds']
    self.path = args.output_dir or os.path.join(
      'runs', folder_lib.name_of(program, s.task, s.partition, **shared)
    )
    self.runs = {
      folder_lib.RunFolder(os.path.join(self.path, name)): settings
      for name, settings in named.items()
    }
    if args.show_settings:
      for folder, settings in self.runs.items():
        flags = [f'--rounds={self.rounds}', *settings.to_flags()]
        print(f'{folder.path}: {shlex.join(flags)}')
      sys.exit(0)
    catalog.check_data(s.task, s.data_dir)

  def train(self) -> list[Any]:
    """Trains what is not finished; gives the `savings.Curve` of each run."""
    from tasks.reports import savings
    from tasks.runs import experiment as experiment_lib

    # An error about the data or a class of your own comes before the training.
    experiment_lib.Experiment(self.settings)
    for folder, settings in self.runs.items():
      methods.build('correction', settings)
      if os.path.exists(folder.settings):
        folder.claim(settings)
    self._train_all()
    # The last round is always tested, also that of a run with fewer rounds.
    step = self.settings.rounds_per_evaluation
    tested = {*range(step, self.rounds, step), self.rounds}
    curves = []
    for folder, settings in self.runs.items():
      rows = [row for row in folder.read_metrics() if row['round'] in tested]
      curves.append(savings.curve(settings, rows, self._args.smoothing))
    return curves

  def _train_all(self) -> None:
    """Trains here, or several runs at a time in processes.

    There the others go on after one has failed; then a `UserError` says which.
    """
    at_a_time = self._args.runs_at_a_time or max(1, (os.cpu_count() or 1) // 2)
    waiting = [f for f in self.runs if not f.is_finished(self.rounds)]
    running: dict[subprocess.Popen, folder_lib.RunFolder] = {}
    failed: list[str] = []
    try:
      while waiting or running:
        while waiting and len(running) < at_a_time:
          folder = waiting.pop(0)
          print(f'{folder.path}, {len(waiting)} more', file=sys.stderr)
          if at_a_time == 1:
            self._train_here(folder)
          else:
            running[self.start(folder)] = folder
        for process in [p for p in running if p.poll() is not None]:
          log = f'{running.pop(process).path}.log'
          if process.returncode:
            *_, said = pathlib.Path(log).read_text().strip().split('\n')
            failed.append(f'A run failed, see {log}: {said}')
        time.sleep(0.1)
    finally:
      for process in running:
        process.terminate()
      for process in running:
        process.wait()
    if failed:
      raise errors.UserError('\n'.join(failed))

  def _train_here(self, folder: folder_lib.RunFolder) -> None:
    import tensorflow as tf

    from tasks.reports import figures
    from tasks.reports import savings
    from tasks.runs import experiment as experiment_lib
    from tasks.runs import training

    # Keras numbers the layers of a process, and keeps its graphs.
    tf.keras.backend.clear_session()
    settings = self.runs[folder]
    experiment = experiment_lib.Experiment(settings)
    workers = self._args.workers or ()
    rows = training.run(experiment, folder, self.rounds, workers=workers)
    curve = savings.curve(settings, rows)
    figures.save_convergence([curve], settings, folder.picture)

  def start(self, folder: folder_lib.RunFolder) -> subprocess.Popen:
    """Trains a run in another process, whose messages are in FOLDER.log."""
    flags = [f'--rounds={self.rounds}', f'--output_dir={folder.path}']
    flags += ['--nobaseline', *self.runs[folder].to_flags()]
    if self._args.workers:
      flags.append(f'--workers={",".join(self._args.workers)}')
    command = [sys.executable, '-m', 'tasks.train', *flags]
    with open(f'{folder.path}.log', 'w') as log:
      return subprocess.Popen(command, stdout=log, stderr=log)

  def report(
    self,
    name: str,
    rows: Sequence[Mapping[str, Any]],
    table: str,
    notes: Iterable[str],
  ) -> None:
    """Writes NAME.md and NAME.csv with their origin, and prints the first."""
    from tasks.reports import provenance
    from tasks.reports import tables

    origin = {
      'smoothing': self._args.smoothing,
      'flags': shlex.join(self._args.argv),
      **provenance.origin(),
    }
    made = ', '.join(f'{name}: {value}' for name, value in origin.items())
    listed = '\n'.join(f'* {note}' for note in (*notes, made))
    text = f'{self.settings.data_title}\n\n{table}\n\n{listed}\n'
    path = os.path.join(self.path, name)
    pathlib.Path(f'{path}.md').write_text(text)
    tables.write_csv([{**row, **origin} for row in rows], f'{path}.csv')
    print(f'{text}\nresults in {self.path}')
