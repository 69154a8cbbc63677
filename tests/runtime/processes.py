"""Workers and their proxies as the system lists them."""

import os
import subprocess
import time


def worker_pids(parent=None):
  """The workers of this process; the proxies of a worker."""
  return [
    int(pid)
    for pid in subprocess.run(
      ['pgrep', '-P', str(parent or os.getpid()), '-f', 'worker_binary'],
      capture_output=True,
      text=True,
    ).stdout.split()
  ]


def is_alive(pid):
  try:
    with open(f'/proc/{pid}/stat') as file:
      return file.read().rsplit(')', 1)[1].split()[0] != 'Z'
  except (FileNotFoundError, ProcessLookupError):  # Before or while it is read.
    return False


def wait_until(condition):
  deadline = time.monotonic() + 60
  while not condition():
    assert time.monotonic() < deadline
    time.sleep(0.02)
