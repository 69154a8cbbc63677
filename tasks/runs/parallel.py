"""Trains runs: one after the other here, or several at a time in processes."""

from collections.abc import Sequence
import dataclasses
import pathlib
import subprocess
import sys
import time
from typing import Any

from tasks.runs import errors
from tasks.runs import folder as folder_lib
from tasks.runs import settings as settings_lib


@dataclasses.dataclass(frozen=True)
class Run:
  """A run of `tasks.train` with resolved settings, to the round `rounds`."""

  settings: settings_lib.Settings
  folder: folder_lib.RunFolder
  rounds: int
  workers: Sequence[str] = ()

  def tests(self) -> list[dict[str, float]]:
    """The personalized tests so far, see `folder.evaluations`."""
    return folder_lib.evaluations(self.folder.read_metrics())

  def is_finished(self) -> bool:
    """Whether all rounds are there, and the meta-model, which comes last."""
    rows = self.folder.read_metrics()
    last = rows[-1]['round'] if rows else 0
    if last == self.rounds:
      return self.folder.is_current(self.folder.meta_model)
    return last > self.rounds

  def train(self) -> list[dict[str, Any]]:
    """Trains in this process; gives the metrics of all rounds."""
    import tensorflow as tf

    from tasks.runs import experiment as experiment_lib
    from tasks.runs import training

    # Keras numbers the layers of a process, and keeps its graphs.
    tf.keras.backend.clear_session()
    experiment = experiment_lib.Experiment(self.settings)
    return training.run(
      experiment, self.folder, self.rounds, workers=self.workers
    )

  def start(self) -> subprocess.Popen:
    """Trains in another process, whose messages are in FOLDER.log."""
    command = [sys.executable, '-m', 'tasks.train', '--nobaseline']
    command += [f'--rounds={self.rounds}', f'--output_dir={self.folder.path}']
    command += [f'--workers={",".join(self.workers)}']
    with open(f'{self.folder.path}.log', 'w') as log:
      return subprocess.Popen(
        command + self.settings.to_flags(), stdout=log, stderr=log
      )


def train(runs: Sequence[Run], at_a_time: int) -> None:
  """Trains the runs that are not finished.

  In processes, the others go on after one has failed; then a `UserError` says
  which have failed.
  """
  waiting = [run for run in runs if not run.is_finished()]
  running: dict[subprocess.Popen, Run] = {}
  failed: list[str] = []
  try:
    while waiting or running:
      while waiting and len(running) < at_a_time:
        run = waiting.pop(0)
        print(f'{run.folder.path}, {len(waiting)} more', file=sys.stderr)
        if at_a_time == 1:
          run.train()
        else:
          running[run.start()] = run
      for process in [p for p in running if p.poll() is not None]:
        log = f'{running.pop(process).folder.path}.log'
        if process.returncode:
          *_, said = pathlib.Path(log).read_text().strip().split('\n')
          failed.append(f'A run failed, see {log}: {said}')
      time.sleep(0.1)
  finally:
    for process in running:
      process.terminate()
      process.wait()
  if failed:
    raise errors.UserError('\n'.join(failed))
