import collections
import concurrent.futures
import contextlib
import os
import signal
import subprocess
import sys
import time

import numpy as np
import problems
import pytest
import tensorflow as tf
import tensorflow_federated as tff

import tff_debias
from tff_debias import runtime as runtime_lib

_PROGRAM = """
import atexit, os, subprocess, sys, threading, time
os.environ['TF_CPP_MIN_LOG_LEVEL'] = '3'
sys.path.insert(0, {tests!r})
import tensorflow_federated as tff
from runtime_test import hang_once, total, worker_pids
from tff_debias import runtime

def late():
  time.sleep(0.5)
  with tff.framework.get_context_stack().install(context):
    print('in a thread', total([1, 2]), flush=True)

runtime.start_local_context()
runtime.start_local_context()
context = tff.framework.get_context_stack().current
print(total([1, 2, 3]))
print(*worker_pids(), flush=True)
{end}
"""
_ENDS = {
  'exit': """
atexit.register(lambda: print('at exit', total([4, 5]), flush=True))
threading.Thread(target=late).start()
sys.exit(3)""",
  'exception': 'raise ZeroDivisionError',
  **dict.fromkeys(('SIGINT', 'SIGTERM', 'SIGKILL'), 'hang_once({marker!r})'),
}


@tff.federated_computation(tff.FederatedType(np.int32, tff.CLIENTS))
def total(x):
  return tff.federated_sum(x)


@tff.tensorflow.computation(np.int32)
def add_one(x):
  return x + 1


@tff.federated_computation(tff.FederatedType(np.int32, tff.CLIENTS))
def of_each(x):
  return tff.federated_map(add_one, x), tff.federated_sum(x)


@tff.federated_computation(tff.FederatedType(np.int32, tff.CLIENTS))
def total_times_number(x):
  everywhere = tff.federated_broadcast(tff.federated_sum(x))
  return tff.federated_sum(everywhere)


@tff.tensorflow.computation(np.str_, np.str_)
def meet(own, other):
  """Writes its own file and waits 20 seconds for the other; 1 if it came."""

  def has_come():
    return tf.size(tf.io.matching_files(other)) > 0

  end = tf.timestamp() + 20
  with tf.control_dependencies([tf.io.write_file(own, ''), end]):
    seconds_left = tf.while_loop(
      lambda left: ~has_come() & (left > 0),
      lambda left: [end - tf.timestamp()],
      [tf.constant(20.0, tf.float64)],
    )[0]
  return tf.cast(seconds_left > 0, tf.int32)


@tff.federated_computation(
  tff.FederatedType((np.str_, np.str_), tff.CLIENTS),
)
def number_that_met(files):
  return tff.federated_sum(tff.federated_map(meet, files))


@tff.tensorflow.computation(np.str_)
def hang_once(marker):
  """Without a marker file, writes it and never ends."""
  is_first = tf.equal(tf.size(tf.io.matching_files(marker)), 0)
  with tf.control_dependencies([is_first]):
    write = tf.io.write_file(marker, '')
  with tf.control_dependencies([write]):
    return tf.while_loop(lambda _: is_first, lambda i: [i + 1], [7])[0]


def worker_pids():
  return [
    int(pid)
    for pid in subprocess.run(
      ['pgrep', '-P', str(os.getpid()), '-f', 'worker_binary'],
      capture_output=True,
      text=True,
    ).stdout.split()
  ]


def is_alive(pid):
  try:
    with open(f'/proc/{pid}/stat') as file:
      return file.read().rsplit(')', 1)[1].split()[0] != 'Z'
  except FileNotFoundError:
    return False


def wait_until(condition):
  deadline = time.monotonic() + 60
  while not condition():
    assert time.monotonic() < deadline
    time.sleep(0.02)


@pytest.fixture
def two_workers():
  with contextlib.ExitStack() as stack:
    yield [
      stack.enter_context(contextlib.closing(runtime_lib.Worker(1)))
      for _ in range(2)
    ]


@pytest.mark.slow
@pytest.mark.parametrize('end', _ENDS)
def test_nothing_is_left_behind(end, tmp_path):
  marker = tmp_path / 'in the middle of a call'
  program = _PROGRAM.format(
    tests=os.path.dirname(__file__), end=_ENDS[end].format(marker=str(marker))
  )
  process = subprocess.Popen(
    [sys.executable, '-c', program],
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  if end.startswith('SIG'):
    wait_until(lambda: marker.exists() or process.poll() is not None)
    process.send_signal(getattr(signal, end))
  # As in `program | tail`: a pipe ends only when nobody holds it.
  out, err = process.communicate(timeout=120)
  result, pid, *late = out.splitlines()
  assert result == '6', err
  wait_until(lambda: not is_alive(int(pid)))
  assert 'ServiceManager' not in err
  if end == 'exit':
    assert late == ['in a thread 3', 'at exit 9']
    assert (process.returncode, err) == (3, '')
  elif end == 'exception':
    assert process.returncode == 1 and err.endswith('ZeroDivisionError\n')
  else:
    assert process.returncode == -getattr(signal, end)


def test_contexts_are_nested_and_restored():
  stack = tff.framework.get_context_stack()
  before, pids = stack.current, worker_pids()
  with runtime_lib.local_context(max_concurrency=1) as outer:
    with pytest.raises(ZeroDivisionError), runtime_lib.local_context() as inner:
      assert stack.current is inner
      assert total([1, 2]) == 3
      raise ZeroDivisionError
    assert stack.current is outer
    assert total([4]) == 4
    inner.close()
    with (
      pytest.raises(runtime_lib.WorkerError, match='context is closed'),
      stack.install(inner),
    ):
      total([1, 2, 3])
  assert stack.current is before
  assert worker_pids() == pids


def test_a_worker_that_dies_in_a_call_is_replaced(tmp_path):
  log, marker = tmp_path / 'log', tmp_path / 'marker'
  log.write_text('A run before.\n')
  before = worker_pids()
  with (
    runtime_lib.local_context(log_file=log),
    concurrent.futures.ThreadPoolExecutor(1) as pool,
  ):
    (pid,) = set(worker_pids()) - set(before)
    kill = pool.submit(
      lambda: (wait_until(marker.exists), os.kill(pid, signal.SIGKILL))
    )
    assert hang_once(str(marker)) == 7
    kill.result()
    assert total([1, 2, 5]) == 8
    assert len(worker_pids()) == len(before) + 1
  assert worker_pids() == before
  text = log.read_text()
  assert text.startswith('A run before.\n')
  assert text.count('ExecutorService started') == 2


def test_a_call_that_ends_every_worker_fails(monkeypatch):
  class Mortal(runtime_lib.Worker):
    def __init__(self, *args):
      super().__init__(*args)
      self._process.kill()
      self._process.wait()

  before = worker_pids()
  monkeypatch.setattr(runtime_lib, 'Worker', Mortal)
  with runtime_lib.local_context():
    for _ in range(2):
      with pytest.raises(
        runtime_lib.WorkerError, match='(?s)ended 3 workers.* ended with -9.*'
      ):
        total([1])
  assert worker_pids() == before


def test_close_ends_a_call_for_good(tmp_path):
  marker, before = tmp_path / 'marker', worker_pids()

  def call(context):
    with tff.framework.get_context_stack().install(context):
      return hang_once(str(marker))

  with concurrent.futures.ThreadPoolExecutor(1) as pool:
    with runtime_lib.local_context() as context:
      result = pool.submit(call, context)
      wait_until(marker.exists)
    with pytest.raises(Exception, match='closed'):
      result.result(timeout=30)
  assert worker_pids() == before


@pytest.mark.parametrize(
  ('binary', 'mode', 'message'),
  [
    (None, 0, 'ended with 1. It said: .*No such file'),
    ('', 0o600, 'ended with 1. It said: .*Permission denied'),
    ('another machine', 0o700, 'ended with 1. It said: .*Exec format error'),
    ('#!/bin/sh\necho no GPU; exit 7', 0o700, 'ended with 7. It said: no GPU'),
    ('#!/bin/sh\nexec sleep 99', 0o700, 'is not ready after .* said: nothing'),
  ],
)
def test_a_worker_that_does_not_start_says_why(
  binary, mode, message, monkeypatch, tmp_path
):
  path, pids = tmp_path / 'worker_binary', []
  if binary is not None:
    path.write_text(binary)
    path.chmod(mode)

  def start(*args):
    pids.append(original(*args))
    return pids[-1]

  original = runtime_lib._start
  monkeypatch.setattr(runtime_lib, '_start', start)
  monkeypatch.setattr(runtime_lib, '_BINARY', str(path))
  if 'ready' in message:
    monkeypatch.setattr(runtime_lib, '_READY_WITHIN_SECONDS', 0.3)
  before = tff.framework.get_context_stack().current
  with (
    pytest.raises(runtime_lib.WorkerError, match=message),
    runtime_lib.local_context(),
  ):
    pass
  assert tff.framework.get_context_stack().current is before
  assert pids[0].returncode is not None


def test_a_proxy_is_not_asked_for_a_worker_here(monkeypatch):
  monkeypatch.setattr(runtime_lib, '_READY_WITHIN_SECONDS', 10)
  monkeypatch.setenv('http_proxy', 'http://localhost:9')
  for name in ('no_proxy', 'no_grpc_proxy'):
    monkeypatch.delenv(name, raising=False)
  runtime_lib.Worker().close()


@pytest.fixture
def calls(monkeypatch):
  """The participants of every executor that is made."""
  numbers, original = [], runtime_lib._executor

  def executor(stub, cardinalities):
    numbers.append(cardinalities.get(tff.CLIENTS))
    return original(stub, cardinalities)

  monkeypatch.setattr(runtime_lib, '_executor', executor)
  return numbers


@pytest.mark.parametrize(
  ('computation', 'result', 'limit', 'parts'),
  [
    (total, 28, {'_PARTICIPANTS_IN_MEMORY': 2}, {2, 1}),
    (total, 28, {'_RESULT_BYTES_IN_MEMORY': 4 * 3}, {3, 2}),
    (total, 28, {}, {7}),
    (total, 28, {'_RESULT_BYTES_IN_MEMORY': 1}, {1}),
    (
      *(of_each, ([2, 3, 4, 5, 6, 7, 8], 28)),
      *({'_RESULT_BYTES_IN_MEMORY': 8 * 2}, {2, 1}),
    ),
    (total_times_number, 7 * 28, {'_PARTICIPANTS_IN_MEMORY': 2}, {7}),
  ],
)
def test_many_participants_are_taken_some_after_the_other(
  computation, result, limit, parts, calls, monkeypatch
):
  for name, value in limit.items():
    monkeypatch.setattr(runtime_lib, name, value)
  with runtime_lib.local_context(max_concurrency=1):
    assert computation([1, 2, 3, 4, 5, 6, 7]) == result
    assert set(calls) - {None, 0} == parts
    assert total([]) == 0
    assert total([5]) == 5


def test_rounds_of_some_after_the_other_are_the_same(tmp_path, monkeypatch):
  model = problems.linear_model()
  data = problems.linear_data(7)

  def train(folder):
    process = tff_debias.build_learning_process(
      model,
      tff_debias.NoPersonalization(),
      tff_debias.Dyn(0.5),
      num_clients=8,
      storage=tff_debias.ClientStorage(tmp_path / folder),
      track_all=True,
    )
    output, metrics = None, []
    state = process.initialize()
    for _ in range(3):
      output = process.next(
        state, [problems.client(f'{i}', *d, 2) for i, d in enumerate(data)]
      )
      state = output.state
      metrics.append(output.metrics)
    test = tff_debias.build_client_evaluation(
      model, tff_debias.NoPersonalization()
    )
    tested = test(
      process.get_model_weights(state),
      [
        collections.OrderedDict.fromkeys(
          ('train', 'test'), tf.data.Dataset.from_tensors(d)
        )
        for d in data
      ],
    )
    return output, metrics, tested

  with runtime_lib.local_context(max_concurrency=1):
    whole = train('whole')
    monkeypatch.setattr(runtime_lib, '_PARTICIPANTS_IN_MEMORY', 2)
    in_parts = train('in parts')
  tf.nest.assert_same_structure(whole, in_parts, check_types=True)
  for one, other in zip(*map(tf.nest.flatten, (whole, in_parts)), strict=True):
    np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_two_workers_work_at_the_same_time(two_workers, tmp_path):
  files = [str(tmp_path / name) for name in 'ab']
  with runtime_lib.remote_context([worker.address for worker in two_workers]):
    assert number_that_met([files, files[::-1]]) == 2


def test_two_workers_share_the_devices(two_workers, monkeypatch):
  addresses = [worker.address for worker in two_workers]
  before = tff.framework.get_context_stack().current
  with runtime_lib.remote_context(addresses):
    assert total([1, 2, 3, 4, 5]) == 15
    monkeypatch.setattr(runtime_lib, '_READY_WITHIN_SECONDS', 0.5)
    two_workers[1].close()
    two_workers[1].close()
    assert [worker.is_alive for worker in two_workers] == [True, False]
    with pytest.raises(
      runtime_lib.WorkerError, match=f'No worker answers at {addresses[1]}'
    ):
      total([1, 2, 3, 4, 5])
  assert tff.framework.get_context_stack().current is before
  with (
    pytest.raises(runtime_lib.WorkerError, match='No worker answers at'),
    runtime_lib.remote_context(addresses),
  ):
    pass
