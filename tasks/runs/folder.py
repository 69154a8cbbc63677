"""The folder of a run: its files, its lock, and whose it is.

Trust a folder as you trust a program: a checkpoint is a TensorFlow graph, and
`settings.json` can name modules to import.
"""

from collections.abc import Iterator
import contextlib
import csv
import dataclasses
import fcntl
import json
import os
import re
from typing import Any

from tasks.runs import errors
from tasks.runs import settings as settings_lib

_MAX_NAME_LENGTH = 200


def name_of(*parts: str, **values: Any) -> str:
  """The name of a folder, of its parts and of settings as NAME=VALUE."""
  settings = [f'{name}={value}' for name, value in values.items()]
  # Other characters have a meaning in a shell or in TensorFlow's file names.
  name = re.sub(r'[^\w.,=+-]+', '-', '_'.join([*parts, *settings]))
  return name[:_MAX_NAME_LENGTH]


def path_of(settings: settings_lib.Settings) -> str:
  """The folder of a run where none is given; other settings have another."""
  s = settings
  parts = (s.task, s.partition, *s.method_names, f'seed{s.seed}')
  return os.path.join('runs', name_of(*parts, **s.changes()))


def _file(name: str) -> property:
  return property(lambda self: os.path.join(self.path, name))


@dataclasses.dataclass(frozen=True)
class RunFolder:
  """The paths of a run's files in the folder `path`."""

  path: str

  settings = _file('settings.json')
  #: The server's state, for `tff.program`'s state manager.
  checkpoints = _file('checkpoints')
  #: The clients' own states, for `tff_debias.ClientStorage`.
  storage = _file('storage')
  metrics = _file('metrics.csv')
  tensorboard = _file('tensorboard')
  picture = _file('convergence.png')
  #: The Keras model after the last round; training writes it last.
  meta_model = _file('meta_model.keras')
  #: The results of `tasks.evaluate`, a folder for each round.
  evaluation = _file('evaluation')

  @contextlib.contextmanager
  def lock(self) -> Iterator[None]:
    """Makes the folder and keeps other processes out of it.

    The system releases the lock when this process ends in any way.
    """
    try:
      os.makedirs(self.path, exist_ok=True)
      file = open(os.path.join(self.path, 'lock'), 'a+')
    except OSError as e:
      raise errors.UserError(
        f'Cannot write to {self.path}: {e.strerror}.'
      ) from e
    with file:
      try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
      except BlockingIOError as e:
        file.seek(0)
        raise errors.UserError(
          f'Process {file.read()} is running in {self.path}. Wait for it, or'
          ' name another --output_dir.'
        ) from e
      file.truncate(0)
      file.write(str(os.getpid()))
      file.flush()
      yield

  def claim(self, settings: settings_lib.Settings) -> None:
    """Writes the settings of a new run, or compares them with the run's own.

    Other settings, another version's run and other files are an error.
    """
    given = vars(settings)
    if os.path.exists(self.settings):
      found = vars(self.read())
      different = [
        f'--{name}={found[name]} there, {value} here'
        for name, value in given.items()
        if found[name] != value
      ]
      if different:
        raise errors.UserError(
          f'{self.path} holds a run with other settings:'
          f' {"; ".join(different)}. Name another --output_dir, or give the'
          ' settings of that run to go on with it.'
        )
    elif others := set(os.listdir(self.path)) - {'lock', 'settings.json.new'}:
      raise errors.UserError(
        f'{self.path} holds no run, but {", ".join(sorted(others)[:5])}. Name'
        ' another --output_dir.'
      )
    else:
      # As a whole: a process may be killed meanwhile.
      with open(f'{self.settings}.new', 'w') as file:
        json.dump(given, file, indent=1)
      os.replace(f'{self.settings}.new', self.settings)

  def read(self) -> settings_lib.Settings:
    """The settings of the run."""
    try:
      with open(self.settings) as file:
        return settings_lib.resolve(**json.load(file))
    except (OSError, ValueError, LookupError, TypeError) as e:
      raise errors.UserError(
        f'{self.path} holds no run of this version: {e}.'
      ) from e

  def read_metrics(self) -> list[dict[str, float]]:
    """The metrics of every round, from round 0; none if there is no file."""
    with contextlib.suppress(FileNotFoundError), open(self.metrics) as file:
      return [
        {name: float(value) for name, value in row.items() if value}
        for row in csv.DictReader(file)
      ]
    return []

  def is_finished(self, rounds: int) -> bool:
    """Whether all rounds are there, and the meta-model, which comes last."""
    rows = self.read_metrics()
    last = rows[-1]['round'] if rows else 0
    if last != rounds or not os.path.exists(self.meta_model):
      return last > rounds
    return os.path.getmtime(self.meta_model) >= os.path.getmtime(self.metrics)
