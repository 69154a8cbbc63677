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


class Fake(queue.Run):
  """A run whose process is some Python."""

  program = ''

  @property
  def command(self):
    return [sys.executable, '-c', self.program, self.folder.path]


FINISHES = """
import os, sys, time
open(sys.argv[1] + '.started', 'w').write(str(time.time()))
time.sleep(0.3)
os.makedirs(sys.argv[1], exist_ok=True)
rows = 'round,x\\n0,1\\n1,1\\n2,1\\n3,1\\n'
open(sys.argv[1] + '/metrics.csv', 'w').write(rows)
open(sys.argv[1] + '/convergence.png', 'w').close()
open(sys.argv[1] + '.ended', 'w').write(str(time.time()))
"""


def fake(path, program=FINISHES, rounds=3):
  run = Fake(settings_lib.Settings(), folder_lib.RunFolder(str(path)), rounds)
  object.__setattr__(run, 'program', program)
  return run


def test_the_command_gives_the_same_settings():
  settings = settings_lib.Settings(
    alpha=0.03, maml_first_order=True, method='pfl_dyn', personalization='maml'
  )
  run = queue.Run(
    settings, folder_lib.RunFolder('/tmp/x'), 7, ('--worker_network=shared',)
  )
  program = """
import sys
from absl import flags
from tasks import cli
from tasks.runs import settings
settings.define_flags()
flags.DEFINE_integer('rounds', None, '')
flags.DEFINE_string('output_dir', None, '')
cli.define_worker_network()
flags.FLAGS(sys.argv)
print(settings.from_flags(), flags.FLAGS.rounds, flags.FLAGS.output_dir)
print(flags.FLAGS.worker_network)
"""
  result = subprocess.run(
    [sys.executable, '-c', program, *run.command[3:]],
    capture_output=True,
    text=True,
  )
  assert result.stdout == f'{settings} 7 /tmp/x\nshared\n', result.stderr


def test_all_run_two_at_a_time(tmp_path):
  runs = [fake(tmp_path / str(i)) for i in range(4)]
  queue.run_all(runs, 2)
  assert [run.done for run in runs] == [3] * 4
  spans = [
    [
      float((tmp_path / f'{i}.{what}').read_text())
      for what in ('started', 'ended')
    ]
    for i in range(4)
  ]
  together = [
    sum(start <= other[0] < end for other in spans) for start, end in spans
  ]
  assert max(together) == 2


def test_what_is_finished_does_not_run_again(tmp_path):
  run = fake(tmp_path / 'run')
  queue.run_all([run], 1)
  (tmp_path / 'run.started').unlink()
  queue.run_all([run], 1)
  assert not (tmp_path / 'run.started').exists()
  # With more rounds it does.
  assert fake(tmp_path / 'run', rounds=4).done == 3
  # Its picture is not of all rounds.
  os.utime(tmp_path / 'run' / 'convergence.png', (1, 1))
  assert run.done == 2
  # Without its picture it is not at its end, but with fewer rounds nothing is
  # to be done.
  (tmp_path / 'run' / 'convergence.png').unlink()
  assert run.done == 2
  assert fake(tmp_path / 'run', rounds=2).done == 2


def test_a_run_that_fails_says_why_and_the_others_go_on(tmp_path):
  bad = fake(tmp_path / 'bad', "print('Error: no data'); raise SystemExit(2)")
  good = fake(tmp_path / 'good')
  with pytest.raises(errors.UserError, match='bad.*Error: no data'):
    queue.run_all([bad, good], 1)
  assert good.done == 3


def test_an_interrupt_ends_the_runs(tmp_path):
  program = (
    "import os, sys, time; open(sys.argv[1] + '.pid', 'w')"
    '.write(str(os.getpid())); time.sleep(60)'
  )
  runs = [fake(tmp_path / str(i), program) for i in range(2)]
  pids = [tmp_path / f'{i}.pid' for i in range(2)]

  def interrupt():
    while not all(path.exists() and path.read_text() for path in pids):
      time.sleep(0.02)
    os.kill(os.getpid(), signal.SIGINT)

  threading.Thread(target=interrupt).start()
  with pytest.raises(KeyboardInterrupt):
    queue.run_all(runs, 2)
  for path in pids:
    result = subprocess.run(['ps', '-p', path.read_text()], capture_output=True)
    assert result.returncode == 1


def test_a_kill_ends_the_runs(tmp_path):
  program = f"""
import sys
from tasks.runs import folder as folder_lib, queue, settings

class Run(queue.Run):
  @property
  def command(self):
    return [
      sys.executable, '-c',
      "import os, sys, time; open(sys.argv[1] + '.pid', 'w')"
      ".write(str(os.getpid())); time.sleep(60)",
      self.folder.path,
    ]

folder = folder_lib.RunFolder({str(tmp_path / 'run')!r})
queue.run_all([Run(settings.Settings(), folder, 3)], 1)
"""
  queue = subprocess.Popen([sys.executable, '-c', program])
  path = tmp_path / 'run.pid'
  while not (path.exists() and path.read_text()):
    assert queue.poll() is None
    time.sleep(0.05)
  queue.kill()
  queue.wait()
  deadline = time.monotonic() + 20
  while (
    subprocess.run(
      ['ps', '-p', path.read_text()], capture_output=True
    ).returncode
    == 0
  ):
    assert time.monotonic() < deadline
    time.sleep(0.1)
