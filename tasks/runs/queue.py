"""Trains runs in other processes, several at a time."""

from collections.abc import Sequence
import concurrent.futures
from concurrent.futures import process as process_pool
import dataclasses
import multiprocessing
import os
import runpy
import signal
import sys
import traceback
from typing import Any

from tasks.runs import errors
from tasks.runs import folder as folder_lib
from tasks.runs import progress
from tasks.runs import settings as settings_lib

_SECONDS_BETWEEN_LOOKS = 1


@dataclasses.dataclass(frozen=True)
class Run:
  """A run of an experiment to a round, with its settings as the user gave."""

  settings: settings_lib.Settings
  folder: folder_lib.RunFolder
  rounds: int

  def train(self) -> list[dict[str, Any]]:
    """Trains in this process, as `tasks.train` does; gives the metrics."""
    import tensorflow as tf

    from tasks.runs import experiment as experiment_lib
    from tasks.runs import training

    # Keras counts the layers of a process, and names them so.
    tf.keras.backend.clear_session()
    return training.run(
      experiment_lib.Experiment(self.settings), self.folder, self.rounds
    )

  @property
  def log(self) -> str:
    """The file with the messages of the run's process."""
    return f'{self.folder.path}.log'

  @property
  def done(self) -> int:
    """The number of rounds in its metrics; `rounds` only if it has ended."""
    rows = self.folder.read_metrics()
    last = int(rows[-1]['round']) if rows else 0
    # Training writes the meta-model last.
    has_ended = last > self.rounds or self.folder.is_current(
      self.folder.meta_model
    )
    return min(last, self.rounds if has_ended else self.rounds - 1)


def run_all(runs: Sequence[Run], at_a_time: int) -> None:
  """Trains the runs that have not finished.

  A process trains one run after the other, because it takes many seconds to
  start. If a run fails, an error says so after the others have ended.
  """
  waiting = [run for run in runs if run.done < run.rounds]
  free = [_new_process() for _ in range(at_a_time)]
  running: dict[concurrent.futures.Future, tuple[Run, Any]] = {}
  failed: dict[str, str] = {}
  total = sum(run.rounds for run in runs)
  done = sum(run.done for run in runs)
  with progress.progress(total, 'round', initial=done) as bar:
    try:
      while waiting or running:
        while waiting and free:
          run, process = waiting.pop(0), free.pop()
          running[process.submit(_train, run)] = run, process
        ended, _ = concurrent.futures.wait(running, _SECONDS_BETWEEN_LOOKS)
        for future in ended:
          run, process = running.pop(future)
          try:
            error = future.result()
          except process_pool.BrokenProcessPool:
            error = 'Its process was killed; the same command goes on.'
            process = _new_process()
          if error:
            failed[run.folder.path] = error
          free.append(process)
        under_way = [run for run, _ in running.values()]
        bar.set_postfix_str(
          ', '.join(os.path.basename(run.folder.path) for run in under_way)
        )
        remaining = sum(run.rounds - run.done for run in waiting + under_way)
        bar.update(bar.total - remaining - bar.n)
    except BaseException:
      for child in multiprocessing.active_children():
        child.terminate()
      raise
    finally:
      for process in [*free, *(process for _, process in running.values())]:
        process.shutdown()
  if failed:
    raise errors.UserError(
      '\n'.join(
        f'The run in {path} failed. {error}' for path, error in failed.items()
      )
    )


def _new_process() -> concurrent.futures.ProcessPoolExecutor:
  """A process, which starts with its first run."""
  from tff_debias.runtime import launcher

  return concurrent.futures.ProcessPoolExecutor(
    1,
    multiprocessing.get_context('spawn'),
    _begin,
    (launcher.__file__, os.getpid()),
  )


def _begin(launcher: str, parent: int) -> None:
  """Has this process end with its parent, before TensorFlow is imported."""
  # In a session of its own the process does not get the terminal's Ctrl-C: the
  # parent gets it, and then ends the process.
  os.setsid()
  runpy.run_path(launcher)['end_with'](parent, signal.SIGKILL)


def _train(run: Run) -> str | None:
  """Trains with all messages in the run's log; returns that of an error."""
  os.makedirs(os.path.dirname(run.log) or '.', exist_ok=True)
  with open(run.log, 'w') as log:
    for stream in (sys.stdout, sys.stderr):
      stream.flush()
      os.dup2(log.fileno(), stream.fileno())
  try:
    run.train()
  except Exception as e:
    traceback.print_exc()
    return str(e) if isinstance(e, errors.UserError) else errors.first_line(e)
  return None
