import dataclasses
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from tasks.runs import errors
from tasks.runs import folder as folder_lib
from tasks.runs import queue
from tasks.runs import settings as settings_lib


@dataclasses.dataclass(frozen=True)
class Fake(queue.Run):
  """A run that writes when and where it was trained."""

  def train(self):
    self._write('started')
    time.sleep(0.3)
    os.makedirs(self.folder.path, exist_ok=True)
    with open(self.folder.metrics, 'w') as file:
      file.write('round,x\n0,1\n1,1\n2,1\n3,1\n')
    open(self.folder.meta_model, 'w').close()
    self._write('ended')

  def _write(self, name):
    with open(f'{self.folder.path}.{name}', 'w') as file:
      file.write(f'{time.time()} {os.getpid()}')

  def read(self, name):
    with open(f'{self.folder.path}.{name}') as file:
      seconds, pid = file.read().split()
    return float(seconds), int(pid)


class Failing(Fake):
  def train(self):
    print('some words')
    raise errors.UserError('no data\nat all')


class Dying(Fake):
  def train(self):
    os.kill(os.getpid(), signal.SIGKILL)


class Waiting(Fake):
  def train(self):
    self._write('new')
    os.replace(f'{self.folder.path}.new', f'{self.folder.path}.started')
    time.sleep(60)


def make(path, kind=Fake, rounds=3):
  return kind(settings_lib.Settings(), folder_lib.RunFolder(str(path)), rounds)


def is_running(pid):
  result = subprocess.run(['ps', '-p', str(pid)], capture_output=True)
  return result.returncode == 0


def wait_for(condition):
  deadline = time.monotonic() + 60
  while not condition():
    assert time.monotonic() < deadline
    time.sleep(0.05)


def test_two_processes_train_all_runs(tmp_path):
  runs = [make(tmp_path / str(i)) for i in range(6)]
  queue.run_all(runs, 2)
  assert [run.done for run in runs] == [3] * 6
  started, pids = zip(*(run.read('started') for run in runs), strict=True)
  ended = [run.read('ended')[0] for run in runs]
  assert len(set(pids)) == 2 and os.getpid() not in pids
  for time_ in started:
    together = [
      start <= time_ < end for start, end in zip(started, ended, strict=True)
    ]
    assert sum(together) <= 2
  assert not any(map(is_running, pids))


def test_what_is_finished_does_not_run_again(tmp_path):
  run = make(tmp_path / 'run')
  queue.run_all([run], 1)
  (tmp_path / 'run.started').unlink()
  queue.run_all([run], 1)
  assert not (tmp_path / 'run.started').exists()
  # With more rounds it does.
  assert make(tmp_path / 'run', rounds=4).done == 3
  # Its meta-model is not of the last round.
  os.utime(tmp_path / 'run' / 'meta_model.keras', (1, 1))
  assert run.done == 2
  # Without its meta-model it is not at its end, but with fewer rounds nothing
  # is to be done.
  (tmp_path / 'run' / 'meta_model.keras').unlink()
  assert run.done == 2
  assert make(tmp_path / 'run', rounds=2).done == 2


def test_a_run_that_fails_or_dies_says_why_and_the_others_go_on(tmp_path):
  failing = make(tmp_path / 'failing', Failing)
  dying = make(tmp_path / 'dying', Dying)
  good = make(tmp_path / 'good')
  with pytest.raises(errors.UserError) as error:
    queue.run_all([failing, dying, good], 1)
  assert good.done == 3
  assert str(error.value) == (
    f'The run in {tmp_path}/failing failed. no data\nat all\n'
    f'The run in {tmp_path}/dying failed. Its process was killed; the same'
    ' command goes on.'
  )
  log = (tmp_path / 'failing.log').read_text()
  assert log.startswith('some words\n') and 'UserError: no data' in log


def test_an_interrupt_ends_the_runs(tmp_path):
  runs = [make(tmp_path / str(i), Waiting) for i in range(2)]

  def interrupt():
    wait_for(lambda: all((tmp_path / f'{i}.started').exists() for i in '01'))
    os.kill(os.getpid(), signal.SIGINT)

  threading.Thread(target=interrupt).start()
  with pytest.raises(KeyboardInterrupt):
    queue.run_all(runs, 2)
  assert not any(is_running(run.read('started')[1]) for run in runs)


def test_a_kill_ends_the_runs(tmp_path):
  program = f"""
import sys
sys.path[:] = {sys.path!r}
import {__name__} as queue_test
from tasks.runs import queue

if __name__ == '__main__':
  run = queue_test.make({str(tmp_path / 'run')!r}, queue_test.Waiting)
  queue.run_all([run], 1)
"""
  path = tmp_path / 'program.py'
  path.write_text(program)
  process = subprocess.Popen([sys.executable, path])
  run = make(tmp_path / 'run')

  def is_waiting():
    assert process.poll() is None
    return (tmp_path / 'run.started').exists()

  wait_for(is_waiting)
  process.kill()
  process.wait()
  wait_for(lambda: not is_running(run.read('started')[1]))
