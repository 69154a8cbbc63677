"""Manages the folder of a run: its owner, its lock and its files.

A folder is to be trusted like a program: a checkpoint is a TensorFlow graph,
and `settings.json` can name modules to import. What can be checked is checked.
"""

from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import contextlib
import csv
import dataclasses
import fcntl
import json
import os
import re
import shutil
from typing import Any
from typing import TextIO
import uuid

from tasks.runs import errors
from tasks.runs import settings as settings_lib

_MODELS = ('distributor/models', 'aggregator/models')
_ACCURACY = 'evaluation/by_client/accuracy'
# What a process leaves that is killed while it writes: ours, and TFF's.
_LEFTOVER = re.compile(
  r'settings\.json\.new|metrics\.csv\.new|meta_model\.new\.keras'
  r'|(metrics\.csv|program_state_\d+)_temp\d{4}',
  re.ASCII,
)
# What may be in the folder of a run that has not begun.
_UNIMPORTANT = frozenset({'lock', '.DS_Store'})


class RunFolderError(ValueError):
  """The folder cannot be used for this run, and why."""


def _file(name: str) -> property:
  return property(lambda self: os.path.join(self.path, name))


@dataclasses.dataclass(frozen=True)
class RunFolder:
  """The paths of a run's files in the folder `path`; see `claim`."""

  path: str

  settings = _file('settings.json')
  #: The server's state, for `tff.program`'s state manager.
  checkpoints = _file('checkpoints')
  #: The clients' own states, for `tff_debias.ClientStorage`.
  storage = _file('storage')
  metrics = _file('metrics.csv')
  tensorboard = _file('tensorboard')
  picture = _file('convergence.png')
  #: The Keras model of the last round.
  meta_model = _file('meta_model.keras')
  worker_log = _file('worker.log')
  #: The results of `tasks.evaluate`, a folder for each round.
  evaluation = _file('evaluation')

  @contextlib.contextmanager
  def lock(self) -> Iterator[None]:
    """Keeps other processes out of the folder; makes it if it is not there.

    The lock is of the operating system, which releases it when the process ends
    in any way. It is on the folder itself, as a file could be deleted, and on
    the file `lock`, which names the process: some network file systems have no
    locks of folders. (The package filelock would empty the file before it has
    the lock.)
    """
    with contextlib.ExitStack() as resources:
      try:
        os.makedirs(self.path, exist_ok=True)
        folder = os.open(self.path, os.O_RDONLY)
        resources.callback(os.close, folder)
        path = os.path.join(self.path, 'lock')
        file = resources.enter_context(open(path, 'a+'))
      except OSError as e:
        raise RunFolderError(
          f'Cannot write to {self.path}: {e.strerror}.'
        ) from e
      for lock in (folder, file):
        try:
          fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as e:
          file.seek(0)
          raise RunFolderError(
            f'Process {file.read().strip() or "unknown"} is running in'
            f' {self.path}. Wait for it, or name another --output_dir.'
          ) from e
        except OSError:
          if lock is file:
            raise
      file.truncate(0)
      file.write(str(os.getpid()))
      file.flush()
      yield

  def claim(self, settings: settings_lib.Settings) -> str:
    """Takes the folder for a run, or checks that it is the run's already.

    A folder is refused that holds a run of other settings or of another
    version, is damaged, or holds other files or symbolic links. Nothing but
    what a killed process left is changed then. Gives the name of the run, new
    or as it was.
    """
    self._refuse_links()
    self._remove_leftovers()
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
    others = set(os.listdir(self.path)) - _UNIMPORTANT
    if others:
      raise RunFolderError(
        f'{self.path} holds no run (no settings.json), but'
        f' {", ".join(sorted(others)[:5])}. Name another --output_dir.'
      )
    run = uuid.uuid4().hex
    write(self.settings, json.dumps({'run': run, 'settings': wanted}, indent=1))
    return run

  def _refuse_links(self) -> None:
    """Refuses symbolic links.

    Through one, a run could overwrite or delete files outside its folder.
    """
    for entry in os.scandir(self.path):
      if entry.is_symlink():
        raise RunFolderError(
          f'{entry.path} is a symbolic link, which no run has. Remove it, or'
          ' name another --output_dir.'
        )

  def _remove_leftovers(self) -> None:
    for folder in (self.path, self.checkpoints):
      if os.path.isdir(folder):
        for name in filter(_LEFTOVER.fullmatch, os.listdir(folder)):
          path = os.path.join(folder, name)
          shutil.rmtree(path) if os.path.isdir(path) else os.remove(path)

  def read(self) -> tuple[settings_lib.Settings, str]:
    """The settings of the run and its name."""
    try:
      with _open(self.settings) as file:
        content = json.load(file)
      settings, run = content['settings'], content['run']
      self._check_version(settings)
      return settings_lib.Settings(**settings), run
    except RunFolderError:
      raise
    except FileNotFoundError as e:
      raise RunFolderError(self._why_no_run()) from e
    # Deeply nested JSON is a RecursionError.
    except (ValueError, LookupError, TypeError, OSError, RecursionError) as e:
      raise RunFolderError(
        f'{self.settings} is damaged ({errors.first_line(e)}). Put it back from'
        ' a copy, or name another folder.'
      ) from e

  def _why_no_run(self) -> str:
    """The reason for which there is no run, and the nearest path of one."""
    reason = 'there is no settings.json in it'
    if not os.path.isdir(self.path):
      reason = 'there is no such folder'
    elif not os.listdir(self.path):
      reason = 'it is empty'
    parent, name = os.path.split(self.path)
    hint = errors.did_you_mean(
      name,
      _runs_in(parent),
      os.path.join(parent, '{}'),
      [os.path.join(self.path, run) for run in _runs_in(self.path)],
    )
    return f'{self.path} holds no run: {reason}.{hint}'

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

  def read_metrics(self) -> list[dict[str, float]]:
    """The metrics of every round, oldest first, as far as there are any.

    A last line without its end, which is being written or was when the process
    was killed, is left out.
    """
    try:
      with _open(self.metrics) as file:
        content = file.read()
      lines = csv.DictReader(content[: content.rfind('\n') + 1].splitlines())
      rows = [
        {name: float(value) for name, value in line.items() if value}
        for line in lines
      ]
      rounds = [row['round'] for row in rows]
      if rounds != list(range(len(rows))):
        raise ValueError('its rounds are not 0, 1, 2, …')
      return rows
    except FileNotFoundError:
      return []
    except (ValueError, LookupError, TypeError, OSError, csv.Error) as e:
      raise RunFolderError(
        f'{self.metrics} is damaged ({errors.first_line(e)}). The command of'
        ' the run, given again, restores it from the last checkpoint.'
      ) from e

  def is_current(self, path: str) -> bool:
    """Whether a file is there and not older than the metrics."""
    try:
      return os.path.getmtime(path) >= os.path.getmtime(self.metrics)
    except FileNotFoundError:
      return False


def evaluations(rows: Sequence[Mapping[str, float]]) -> list[dict[str, float]]:
  """The results of the personalized tests, of the rounds that have one.

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
  """The folder of a run that is there and whose settings can be read."""
  folder = RunFolder(path.rstrip(os.sep) or path)
  folder.read()
  return folder


def check_output_dir(path: str | None) -> None:
  """Raises an error if the value of --output_dir can be no path of a folder."""
  if path is not None and (
    not path.strip() or not path.isprintable() or set(path) & set('*?[]\\')
  ):
    raise RunFolderError(
      f'--output_dir={path!r} must be the path of a folder, without line breaks'
      ' and without any of * ? [ ] \\.'
    )


def write(path: str, content: str) -> None:
  """Writes a file as a whole, which is on the disk afterwards."""
  with open(f'{path}.new', 'w', newline='') as file:
    file.write(content)
    file.flush()
    os.fsync(file.fileno())
  os.replace(f'{path}.new', path)
  sync(os.path.dirname(path))


def sync(path: str) -> None:
  """Waits until a file or a folder is on the disk."""
  descriptor = os.open(path, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)


def _open(path: str) -> TextIO:
  """Opens a file for reading; a named pipe would be waited for without end."""
  if os.path.exists(path) and not os.path.isfile(path):
    raise OSError('it is not a file')
  return open(path, newline='')


def _runs_in(path: str) -> list[str]:
  with contextlib.suppress(OSError):
    return [
      name
      for name in sorted(os.listdir(path or os.curdir))
      if os.path.exists(RunFolder(os.path.join(path, name)).settings)
    ]
  return []
