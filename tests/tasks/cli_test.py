import subprocess
import sys

_PROGRAM = """
import gc, os, signal, time
from tasks import cli

def callback(phase, info):
  if phase == 'start' and not sent:
    sent.append(phase)
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0)

sent = []

def main():
  gc.disable()
  gc.callbacks.append(callback)
  gc.collect()
  time.sleep(60)
  print('not interrupted')

cli.run(main, lambda: None)
"""


def test_an_interrupt_in_the_garbage_collector_is_not_lost(tmp_path):
  (tmp_path / 'main.py').write_text(_PROGRAM)
  result = subprocess.run(
    [sys.executable, str(tmp_path / 'main.py')], capture_output=True, text=True
  )
  assert result.returncode == 130, result.stderr
  assert 'Stopped.' in result.stderr
  assert not result.stdout
