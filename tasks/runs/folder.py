"""Manages the folder of a run: its owner, its lock and its files."""

from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import contextlib
import csv
import dataclasses
import fcntl
import json
import os
from typing import Any
import uuid

from tasks.runs import errors
from tasks.runs import settings as settings_lib

_MODELS = ('distributor/models', 'aggregator/models')
_ACCURACY = 'evaluation/by_client/accuracy'


class RunFolderError(ValueError):
  """The folder cannot be used for this run, and why."""


def _file(name: str, doc: str) -> property:
  return property(lambda self: os.path.join(self.path, name), doc=doc)


@dataclasses.dataclass(frozen=True)
class RunFolder:
  """The paths of a run's files; see `claim`.

  Attributes:
    path: The folder.
  """

  path: str

  settings = _file('settings.json', 'The settings and the name of the run.')
  checkpoints = _file(
    'checkpoints', "The server's state, for `tff.program`'s state manager."
  )
  storage = _file(
    'storage', "The clients' own states, for `tff_debias.ClientStorage`."
  )
  metrics = _file('metrics.csv', 'The metrics of every round.')
  tensorboard = _file('tensorboard', 'The metrics of every round.')
  picture = _file('convergence.png', 'The picture of the convergence.')
  meta_model = _file('meta_model.keras', 'The Keras model of the last round.')
  worker_log = _file('worker.log', "The messages of TFF's worker process.")
  evaluation = _file(
    'evaluation', 'The results of `tasks.evaluate`, a folder for each round.'
  )

  @contextlib.contextmanager
  def lock(self) -> Iterator[None]:
    """Keeps other processes out of the folder; makes it if it is not there.

    The lock is of the operating system, which releases it when the process
    ends in any way. (The package filelock would empty the file before it has
    the lock, and so lose the number of the process that the error names.)

    Yields:
      Nothing.

    Raises:
      RunFolderError: If another process has it, or it cannot be written.
    """
    try:
      os.makedirs(self.path, exist_ok=True)
      file = open(os.path.join(self.path, 'lock'), 'a+')
    except OSError as e:
      raise RunFolderError(f'Cannot write to {self.path}: {e.strerror}.') from e
    with file:
      try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
      except OSError as e:
        file.seek(0)
        raise RunFolderError(
          f'Process {file.read().strip()} is running in {self.path}. Wait for'
          ' it, or name another --output_dir.'
        ) from e
      file.truncate(0)
      file.write(str(os.getpid()))
      file.flush()
      yield

  def claim(self, settings: settings_lib.Settings) -> str:
    """Takes the folder for a run, or checks that it is the run's already.

    Args:
      settings: The resolved settings.

    Returns:
      The name of the run, new or as it was.

    Raises:
      RunFolderError: If the folder holds a run of other settings or of another
        version, is damaged, or holds other files. Nothing is changed then.
    """
    wanted = dataclasses.asdict(settings)
    if os.path.exists(self.settings):
      found, run = self.read()
      found = dataclasses.asdict(found)
      different = [
        f'--{name}={found[name]} there, {wanted[name]} here'
        for name in wanted
        if found[name] != wanted[name]
      ]
      if different:
        raise RunFolderError(
          f'{self.path} holds a run with other settings:'
          f' {"; ".join(different)}. Name another --output_dir, or give the'
          ' settings of that run to go on with it.'
        )
      return run
    others = set(os.listdir(self.path)) - {'lock'}
    if others:
      raise RunFolderError(
        f'{self.path} holds no run (no settings.json), but'
        f' {", ".join(sorted(others)[:5])}. Name another --output_dir.'
      )
    run = uuid.uuid4().hex
    with open(self.settings + '.new', 'w') as file:
      json.dump({'run': run, 'settings': wanted}, file, indent=1)
    os.rename(self.settings + '.new', self.settings)
    return run

  def read(self) -> tuple[settings_lib.Settings, str]:
    """The settings of the run and its name.

    Returns:
      The pair.

    Raises:
      RunFolderError: If there is no run in the folder, or the file is damaged
        or of another version.
    """
    try:
      with open(self.settings) as file:
        content = json.load(file)
      settings, run = content['settings'], content['run']
      self._check_version(settings)
      return settings_lib.Settings(**settings), run
    except RunFolderError:
      raise
    except FileNotFoundError as e:
      raise RunFolderError(
        f'{self.path} holds no run: there is no settings.json in it.'
      ) from e
    except (ValueError, KeyError, TypeError, OSError) as e:
      raise RunFolderError(
        f'{self.settings} is damaged ({e}). Put it back from a copy, or name'
        ' another folder.'
      ) from e

  def _check_version(self, settings: Mapping[str, Any]) -> None:
    known = {field.name for field in dataclasses.fields(settings_lib.Settings)}
    surplus, missing = set(settings) - known, known - set(settings)
    if surplus or missing:
      parts = (('unknown here', surplus), ('missing there', missing))
      raise RunFolderError(
        f'{self.path} holds a run of another version of this program, whose'
        ' settings have other names ('
        + '; '.join(f'{k}: {", ".join(sorted(v))}' for k, v in parts if v)
        + '). Use that version, or name another folder.'
      )

  def repair_metrics(self) -> None:
    """Removes an unfinished last line, which a killed process leaves."""
    with contextlib.suppress(FileNotFoundError), open(self.metrics, 'rb+') as f:
      content = f.read()
      f.truncate(content.rfind(b'\n') + 1)

  def read_metrics(self) -> list[dict[str, float]]:
    """The metrics of every round, oldest first, as far as there are any."""
    try:
      with open(self.metrics, newline='') as file:
        return [
          {name: float(value) for name, value in row.items() if value}
          for row in csv.DictReader(file)
        ]
    except FileNotFoundError:
      return []


def evaluations(rows: Sequence[Mapping[str, float]]) -> list[dict[str, float]]:
  """The results of the personalized tests, of the rounds that have one.

  Args:
    rows: The metrics of the rounds.

  Returns:
    For each test its `round`, `models` (transmitted so far, down and up),
    `accuracy` (the mean over clients), and the 10 % and 90 % quantiles over
    clients, `low` and `high`.
  """
  return [
    {
      'round': row['round'],
      'models': sum(row.get(name, 0.0) for name in _MODELS),
      'accuracy': row[f'{_ACCURACY}/mean'],
      'low': row[f'{_ACCURACY}/q10'],
      'high': row[f'{_ACCURACY}/q90'],
    }
    for row in rows
    if f'{_ACCURACY}/mean' in row
  ]


def find(path: str) -> RunFolder:
  """The folder of an existing run.

  Args:
    path: The path.

  Returns:
    The folder. Its settings can be read.

  Raises:
    RunFolderError: If there is no run at the path, with the nearest path that
      has one, or if its settings are damaged.
  """
  folder = RunFolder(path.rstrip(os.sep) or path)
  if not os.path.exists(folder.settings):
    if not os.path.isdir(path):
      reason = 'there is no such folder'
    elif os.listdir(path):
      reason = 'there is no settings.json in it'
    else:
      reason = 'it is empty'
    parent, name = os.path.split(folder.path)
    hint = errors.did_you_mean(
      name,
      _runs_in(parent),
      os.path.join(parent, '{}'),
      [os.path.join(path, run) for run in _runs_in(path)],
    )
    raise RunFolderError(f'{path} holds no run: {reason}.{hint}')
  folder.read()
  return folder


def _runs_in(path: str) -> list[str]:
  with contextlib.suppress(OSError):
    return [
      name
      for name in sorted(os.listdir(path or os.curdir))
      if os.path.exists(RunFolder(os.path.join(path, name)).settings)
    ]
  return []
