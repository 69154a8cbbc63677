"""Runs `tasks.train` in processes of their own, several at a time."""

from collections.abc import Sequence
import dataclasses
import os
import pathlib
import subprocess
import sys
import time

from tasks.runs import errors
from tasks.runs import folder as folder_lib
from tasks.runs import progress
from tasks.runs import settings as settings_lib

_SECONDS_BETWEEN_LOOKS = 1


@dataclasses.dataclass(frozen=True)
class Run:
  """A run of an experiment, with its settings as the user gave them.

  `rounds` is the round to train to, `options` are further flags of
  `tasks.train`.
  """

  settings: settings_lib.Settings
  folder: folder_lib.RunFolder
  rounds: int
  options: tuple[str, ...] = ()

  @property
  def command(self) -> list[str]:
    """The command that starts the run or goes on with it."""
    given = dataclasses.asdict(self.settings)
    return [
      *(sys.executable, '-m', 'tasks.train'),
      *(
        f'--{name}={value}'
        for name, value in given.items()
        if value is not None
      ),
      f'--rounds={self.rounds}',
      f'--output_dir={self.folder.path}',
      *self.options,
    ]

  @property
  def log(self) -> str:
    """The file with the messages of the run's process."""
    return f'{self.folder.path}.log'

  @property
  def done(self) -> int:
    """The number of rounds in its metrics; `rounds` only if it has ended."""
    try:
      rows = self.folder.read_metrics()
    except folder_lib.RunFolderError:
      return 0  # The run restores them.
    last = int(rows[-1]['round']) if rows else 0
    has_ended = last > self.rounds or self._has_new_picture()
    return min(last, self.rounds if has_ended else self.rounds - 1)

  def _has_new_picture(self) -> bool:
    """Whether the picture, the last file that a run writes, is up to date."""
    try:
      drawn = os.path.getmtime(self.folder.picture)
      return drawn >= os.path.getmtime(self.folder.metrics)
    except FileNotFoundError:
      return False


def run_all(runs: Sequence[Run], at_a_time: int) -> None:
  """Trains the runs that have not finished.

  The progress bar needs a look at all runs each second. So one loop both looks
  and starts processes, and there is no pool of threads. If a run fails, an
  error says so after the others have ended.
  """
  # It imports TensorFlow, for which errors in flags should not wait.
  from tasks.runs import state_manager

  waiting = [
    run
    for run in runs
    if run.done < run.rounds
    or not state_manager.StateManager(run.folder).has_metrics()
  ]
  running: dict[subprocess.Popen, Run] = {}
  failed: dict[str, str] = {}
  total = sum(run.rounds for run in runs)
  with progress.progress(total, 'round') as bar:
    bar.initial = bar.n = sum(run.done for run in runs)
    try:
      while waiting or running:
        while waiting and len(running) < at_a_time:
          run = waiting.pop(0)
          running[_start(run)] = run
        time.sleep(_SECONDS_BETWEEN_LOOKS)
        for process in [p for p in running if p.poll() is not None]:
          run = running.pop(process)
          if process.returncode:
            said = pathlib.Path(run.log).read_text(errors='replace')
            failed[run.folder.path] = errors.last_line(said)
        bar.set_postfix_str(
          ', '.join(os.path.basename(r.folder.path) for r in running.values())
        )
        under_way = [*waiting, *running.values()]
        remaining = sum(run.rounds - run.done for run in under_way)
        bar.update(bar.total - remaining - bar.n)
    finally:
      for process in running:
        process.terminate()
      for process in running:
        process.wait()
  if failed:
    raise errors.UserError(
      '\n'.join(
        f'The run in {path} failed. {said}' for path, said in failed.items()
      )
    )


def _start(run: Run) -> subprocess.Popen:
  # It imports TensorFlow, for which errors in flags should not wait.
  from tff_debias import runtime

  os.makedirs(os.path.dirname(run.log) or '.', exist_ok=True)
  with open(run.log, 'w') as log:
    # In a session of its own the process does not get the terminal's Ctrl-C:
    # this program gets it, and then ends the process.
    return subprocess.Popen(
      runtime.dies_with_parent(run.command),
      stdin=subprocess.DEVNULL,
      stdout=log,
      stderr=subprocess.STDOUT,
      start_new_session=True,
    )
