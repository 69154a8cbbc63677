import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow_federated as tff

from tff_debias import runtime as runtime_lib

_PROGRAM = """
import os, signal, subprocess, sys
os.environ['TF_CPP_MIN_LOG_LEVEL'] = '3'
import numpy as np, tensorflow_federated as tff
from tff_debias import runtime
@tff.federated_computation(tff.FederatedType(np.int32, tff.CLIENTS))
def total(x):
  return tff.federated_sum(x)
runtime.start_local_context()
print(total([1, 2, 3]), runtime._until_exit is not None)
pids = subprocess.run(
    ['pgrep', '-P', str(os.getpid()), '-f', 'worker_binary'],
    capture_output=True, text=True).stdout.split()
print(*pids, flush=True)
{end}
"""
_ENDS = {
  'normal': 'pass',
  'exception': 'raise ZeroDivisionError',
  'killed': 'os.kill(os.getpid(), signal.SIGKILL)',
  'interrupted': 'os.kill(os.getpid(), signal.SIGINT)',
}


@tff.federated_computation(tff.FederatedType(np.int32, tff.CLIENTS))
def total(x):
  return tff.federated_sum(x)


def is_alive(pid):
  try:
    with open(f'/proc/{pid}/stat') as file:
      return file.read().rsplit(')', 1)[1].split()[0] != 'Z'
  except FileNotFoundError:
    return False


@pytest.mark.parametrize('end', _ENDS)
def test_nothing_is_left_behind(end):
  # As in `program | tail`: the pipe ends only when nobody holds it.
  result = subprocess.run(
    [sys.executable, '-c', _PROGRAM.format(end=_ENDS[end])],
    capture_output=True,
    text=True,
    timeout=120,
  )
  first, second = result.stdout.splitlines()
  assert first == '6 True'
  assert second
  deadline = time.monotonic() + 10
  while any(map(is_alive, second.split())) and time.monotonic() < deadline:
    time.sleep(0.05)
  assert not any(map(is_alive, second.split()))
  assert 'ServiceManager' not in result.stderr
  if end == 'normal':
    assert (result.returncode, result.stderr) == (0, '')


def test_contexts_are_nested_and_restored():
  before = tff.framework.get_context_stack().current
  with runtime_lib.local_context(max_concurrency=1) as outer:
    with runtime_lib.local_context() as inner:
      assert tff.framework.get_context_stack().current is inner
      assert total([1, 2]) == 3
    assert tff.framework.get_context_stack().current is outer
    assert total([4]) == 4
  assert tff.framework.get_context_stack().current is before


def test_a_dead_worker_is_replaced(tmp_path):
  log = tmp_path / 'log'
  with runtime_lib.local_context(log_file=log):
    assert total([1, 2]) == 3
    pids = subprocess.run(
      ['pgrep', '-P', str(os.getpid()), '-f', 'worker_binary'],
      capture_output=True,
      text=True,
    ).stdout.split()
    os.kill(int(pids[-1]), signal.SIGKILL)
    assert total([1, 2, 5]) == 8
  assert log.exists()


def test_a_worker_that_does_not_start_says_why(monkeypatch, tmp_path):
  monkeypatch.setattr(runtime_lib, '_BINARY', str(tmp_path / 'nothing'))
  with pytest.raises(
    runtime_lib.WorkerError, match='nothing ended with 1. It said: .*No such'
  ):
    runtime_lib.Worker()


def test_two_workers_share_the_devices():
  workers = [runtime_lib.Worker(max_concurrency=1) for _ in range(2)]
  try:
    with runtime_lib.remote_context([worker.address for worker in workers]):
      assert total([1, 2, 3, 4, 5]) == 15
  finally:
    for worker in workers:
      worker.close()
      worker.close()
  assert not any(worker.is_alive for worker in workers)
