import os
import signal
import subprocess
import sys
import threading

import pytest

from tasks import comparison as comparison_lib
from tasks.runs import errors

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
def compare(tmp_path, monkeypatch):
  """Makes comparisons whose runs sleep; with the seed 1 they fail."""

  def start(self, folder):
    os.makedirs(folder.path, exist_ok=True)
    seed = str(self.runs[folder].seed)
    with open(f'{folder.path}.log', 'w') as log:
      return subprocess.Popen(
        [sys.executable, '-c', _TRAIN, folder.path, seed],
        stdout=log,
        stderr=log,
      )

  def make(*flags):
    flags = ['--methods=fed_avg', '--personalizations=none', *flags]
    flags += [f'--output_dir={tmp_path}', '--runs_at_a_time=2', '--rounds=3']
    args = comparison_lib.parse('', flags)
    return comparison_lib.Comparison('compare', args, lambda given: [given])

  monkeypatch.setattr(comparison_lib.Comparison, 'start', start)
  return make


def times(folder):
  with open(f'{folder.path}.log') as log:
    return tuple(map(float, log.read().split()))


def test_two_at_a_time_train_what_is_not_finished(compare):
  comparison = compare('--seeds=0,3,4,5,6')
  comparison._train_all()
  assert all(folder.is_finished(3) for folder in comparison.runs)
  spans = list(map(times, comparison.runs))
  together = [sum(s <= t < e for s, e in spans) for t, _ in spans]
  assert max(together) == 2
  folder, *_ = comparison.runs
  # A meta-model that is older than the metrics is not of the last round.
  os.utime(folder.meta_model, (1, 1))
  comparison._train_all()
  again = list(map(times, comparison.runs))
  assert again[1:] == spans[1:] and again[0] > spans[0]
  assert not folder.is_finished(4) and folder.is_finished(2)


def test_a_run_that_fails_says_why_and_the_others_go_on(compare, tmp_path):
  comparison = compare('--seeds=1,3,4')
  with pytest.raises(errors.UserError) as error:
    comparison._train_all()
  assert str(error.value) == (
    f'A run failed, see {tmp_path}/fed_avg_none_seed1.log: Error: no data'
  )
  finished = [folder.is_finished(3) for folder in comparison.runs]
  assert finished == [False, True, True]


def test_an_interrupt_ends_the_runs(compare):
  comparison, started = compare('--seeds=2'), []
  start = comparison.start
  comparison.start = lambda folder: started.append(start(folder)) or started[0]
  threading.Timer(1, os.kill, (os.getpid(), signal.SIGINT)).start()
  with pytest.raises(KeyboardInterrupt):
    comparison._train_all()
  assert started[0].returncode == -signal.SIGTERM


def test_the_process_of_a_run_is_tasks_train(compare, monkeypatch):
  monkeypatch.undo()
  comparison = compare('--rounds=3', '--workers=nowhere')
  command = []
  monkeypatch.setattr(subprocess, 'Popen', lambda c, **_: command.extend(c))
  folder, *_ = comparison.runs
  os.makedirs(folder.path)
  comparison.start(folder)
  assert command[:3] == [sys.executable, '-m', 'tasks.train']
  from tasks import train

  assert train.prepare(command[3:])
  assert '--workers=nowhere' in command and '--rounds=3' in command
