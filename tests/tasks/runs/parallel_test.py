import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from tasks.runs import errors
from tasks.runs import folder as folder_lib
from tasks.runs import parallel
from tasks.runs import settings as settings_lib

# Writes what a finished run has, and the time of its start and of its end.
_TRAIN = """
import sys, time
path, seed = sys.argv[1:]
start = time.time()
time.sleep(60 if seed == '2' else 0.5)
if seed == '1':
  sys.exit('some words\\nError: no data')
open(path + '/metrics.csv', 'w').write('round,x\\n0,1\\n1,1\\n2,1\\n3,1\\n')
open(path + '/meta_model.keras', 'w').close()
print(start, time.time())
"""


@pytest.fixture
def make(tmp_path, monkeypatch):
  """Makes runs whose processes sleep; with the seed 1 they fail."""

  def start(run):
    with open(f'{run.folder.path}.log', 'w') as log:
      return subprocess.Popen(
        [sys.executable, '-c', _TRAIN]
        + [run.folder.path, str(run.settings.seed)],
        stdout=log,
        stderr=log,
      )

  def run(name, seed=0, rounds=3):
    (tmp_path / name).mkdir(exist_ok=True)
    folder = folder_lib.RunFolder(str(tmp_path / name))
    return parallel.Run(settings_lib.Settings(seed=seed), folder, rounds)

  monkeypatch.setattr(parallel.Run, 'start', start)
  return run


def times(run):
  with open(f'{run.folder.path}.log') as log:
    return tuple(map(float, log.read().split()))


def test_two_at_a_time_train_all_runs(make):
  runs = [make(str(i)) for i in range(5)]
  parallel.train(runs, 2)
  assert all(run.is_finished() for run in runs)
  spans = [times(run) for run in runs]
  together = [sum(s <= t < e for s, e in spans) for t, _ in spans]
  assert max(together) == 2


def test_what_is_finished_does_not_run_again(make, tmp_path):
  run = make('run')
  parallel.train([run], 2)
  first = times(run)
  parallel.train([run], 2)
  assert times(run) == first
  assert not make('run', rounds=4).is_finished()
  assert make('run', rounds=2).is_finished()
  # A meta-model that is older than the metrics is not of the last round.
  os.utime(tmp_path / 'run' / 'meta_model.keras', (1, 1))
  assert not run.is_finished()


def test_a_run_that_fails_says_why_and_the_others_go_on(make, tmp_path):
  runs = [make('failing', seed=1), *(make(str(i)) for i in range(3))]
  with pytest.raises(errors.UserError) as error:
    parallel.train(runs, 2)
  assert str(error.value) == (
    f'A run failed, see {tmp_path}/failing.log: Error: no data'
  )
  assert all(run.is_finished() for run in runs[1:])


def test_an_interrupt_ends_the_runs(make):
  runs = [make(str(i), seed=2) for i in range(2)]
  timer = threading.Timer(1, os.kill, (os.getpid(), signal.SIGINT))
  timer.start()
  start = time.monotonic()
  with pytest.raises(KeyboardInterrupt):
    parallel.train(runs, 2)
  assert time.monotonic() - start < 30


def test_the_process_of_a_run_is_tasks_train(tmp_path):
  folder = folder_lib.RunFolder(str(tmp_path / 'run'))
  settings = settings_lib.Settings(clients_per_round=101)
  with pytest.raises(errors.UserError, match='clients_per_round=101 must be'):
    parallel.train([parallel.Run(settings, folder, 3)], 2)
