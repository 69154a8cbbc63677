"""The folder of a run: whose it is, who is using it, and what is in it."""

from collections.abc import Mapping
from collections.abc import Sequence
import contextlib
import csv
import dataclasses
import difflib
import fcntl
import json
import os
import uuid

from tasks.runs import settings as settings_lib

_MODELS = ('distributor/models', 'aggregator/models')
_ACCURACY = 'evaluation/by_client/accuracy'


class RunFolderError(ValueError):
  """The folder cannot be used for this run, and why."""


@dataclasses.dataclass(frozen=True)
class RunFolder:
  """The paths of a run's files; see `claim`.

  Attributes:
    path: The folder.
  """

  path: str

  @property
  def settings(self) -> str:
    """The settings and the name of the run, JSON."""
    return os.path.join(self.path, 'settings.json')

  @property
  def checkpoints(self) -> str:
    """The server's state, for `tff.program.FileProgramStateManager`."""
    return os.path.join(self.path, 'checkpoints')

  @property
  def devices(self) -> str:
    """The devices' own storage."""
    return os.path.join(self.path, 'devices')

  @property
  def metrics(self) -> str:
    """The metrics of every round, CSV."""
    return os.path.join(self.path, 'metrics.csv')

  @property
  def tensorboard(self) -> str:
    """The same for TensorBoard."""
    return os.path.join(self.path, 'tensorboard')

  @property
  def picture(self) -> str:
    """The convergence picture, PNG."""
    return os.path.join(self.path, 'convergence.png')

  @property
  def meta_model(self) -> str:
    """The Keras model with the weights of the meta-model."""
    return os.path.join(self.path, 'meta_model.keras')

  @property
  def worker_log(self) -> str:
    """What TFF's worker process said."""
    return os.path.join(self.path, 'worker.log')

  @property
  def evaluation(self) -> str:
    """What `tasks.evaluate` found, a folder for each round."""
    return os.path.join(self.path, 'evaluation')

  @contextlib.contextmanager
  def lock(self):
    """Keeps other processes from the folder; makes it if it is not there.

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
    """Makes the folder this run's, or finds that it is.

    Args:
      settings: The resolved settings.

    Returns:
      The name of the run, new or as it was.

    Raises:
      RunFolderError: If the folder holds a run of other settings, is damaged,
        or holds something else. Nothing is changed then.
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
      RunFolderError: If there is no run in the folder, or the file is damaged.
    """
    try:
      with open(self.settings) as file:
        content = json.load(file)
      return settings_lib.Settings(**content['settings']), content['run']
    except FileNotFoundError as e:
      raise RunFolderError(
        f'{self.path} holds no run: there is no settings.json in it.'
      ) from e
    except (ValueError, KeyError, TypeError, OSError) as e:
      raise RunFolderError(
        f'{self.settings} is damaged or of another version ({e}). Put it back'
        ' from a copy, or name another folder.'
      ) from e

  def repair_metrics(self) -> None:
    """Removes the end of a line that a killed process began to write."""
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


def find(path: str) -> RunFolder:
  """The folder of a run that is there.

  Args:
    path: The path.

  Returns:
    The folder. Its settings can be read.

  Raises:
    RunFolderError: If there is no run at the path, with the nearest that there
      is, or if its settings are damaged.
  """
  folder = RunFolder(path.rstrip(os.sep) or path)
  if not os.path.exists(folder.settings):
    if not os.path.isdir(path):
      what = 'there is no such folder'
    elif os.listdir(path):
      what = 'there is no settings.json in it'
    else:
      what = 'it is empty'
    parent, name = os.path.split(folder.path)
    near = difflib.get_close_matches(name, _runs_in(parent), 1, 0.5)
    hints = [os.path.join(parent, run) for run in near]
    hints += [os.path.join(path, run) for run in _runs_in(path)]
    hint = f' Did you mean {" or ".join(hints[:3])}?' if hints else ''
    raise RunFolderError(f'{path} holds no run: {what}.{hint}')
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


def evaluations(
  rows: Sequence[Mapping[str, float]],
) -> list[dict[str, float]]:
  """The rounds with a personalized test.

  Args:
    rows: The metrics of the rounds.

  Returns:
    The `round` of each, the `models` transmitted until then (down and up), the
    mean `accuracy` over devices, and its 10 % and 90 % quantiles `low` and
    `high`.
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
