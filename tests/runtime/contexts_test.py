import collections
import concurrent.futures
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time

import computations
import grpc
import numpy as np
import processes
import pytest
import small_models
import tensorflow as tf
import tensorflow_federated as tff

import tff_debias
from tff_debias import runtime as runtime_lib
from tff_debias.runtime import contexts
from tff_debias.runtime import executor
from tff_debias.runtime import worker as worker_lib

_PROGRAM = """
import atexit, os, subprocess, sys, threading, time
os.environ['TF_CPP_MIN_LOG_LEVEL'] = '3'
sys.path.insert(0, {tests!r})
import tensorflow_federated as tff
from computations import hang_once, total
from processes import worker_pids
from tff_debias import runtime

def late():
  time.sleep(0.5)
  with tff.framework.get_context_stack().install(context):
    print('in a thread', total([1, 2]), flush=True)

runtime.start_local_context(worker_network={network!r})
runtime.start_local_context(worker_network={network!r})
context = tff.framework.get_context_stack().current
print(total([1, 2, 3]))
(pid,) = worker_pids()
print(pid, *worker_pids(pid), flush=True)
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


@pytest.fixture
def two_workers():
  with contextlib.ExitStack() as stack:
    yield [
      stack.enter_context(
        contextlib.closing(runtime_lib.Worker(1, worker_network=network))
      )
      for network in ('shared', 'private')
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
  ('end', 'network'),
  [*((end, 'private') for end in _ENDS), ('SIGKILL', 'shared')],
)
def test_nothing_is_left_behind(end, network, tmp_path):
  marker = tmp_path / 'in the middle of a call'
  program = _PROGRAM.format(
    tests=os.path.dirname(__file__),
    network=network,
    end=_ENDS[end].format(marker=str(marker)),
  )
  # Short, for the path of a socket has at most 107 characters.
  temporary = tempfile.mkdtemp(dir='/tmp')
  process = subprocess.Popen(
    [sys.executable, '-c', program],
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    env={**os.environ, 'TMPDIR': temporary},
    text=True,
  )
  if end.startswith('SIG'):
    processes.wait_until(lambda: marker.exists() or process.poll() is not None)
    process.send_signal(getattr(signal, end))
  # As in `program | tail`: a pipe ends only when nobody holds it.
  out, err = process.communicate(timeout=120)
  result, pids, *late = out.splitlines()
  assert result == '6', err
  pids = [int(pid) for pid in pids.split()]
  assert len(pids) == (2 if network == 'private' else 1)
  processes.wait_until(lambda: not any(processes.is_alive(pid) for pid in pids))
  assert os.listdir(temporary) == []
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
  before, pids = stack.current, processes.worker_pids()
  with runtime_lib.local_context(max_concurrency=1) as outer:
    with pytest.raises(ZeroDivisionError), runtime_lib.local_context() as inner:
      assert stack.current is inner
      assert computations.total([1, 2]) == 3
      raise ZeroDivisionError
    assert stack.current is outer
    assert computations.total([4]) == 4
    inner.close()
    with (
      pytest.raises(runtime_lib.WorkerError, match='context is closed'),
      stack.install(inner),
    ):
      computations.total([1, 2, 3])
  assert stack.current is before
  assert processes.worker_pids() == pids


class _CancelledError(grpc.RpcError):
  def details(self):
    return 'Failed to run computation: Operation was cancelled'


def test_a_call_of_which_only_a_cancellation_is_known_runs_again(monkeypatch):
  failures = []
  own = tff.framework.SyncExecutionContext.invoke

  def invoke(context, comp, arg):
    if failures:
      raise failures.pop()
    return own(context, comp, arg)

  monkeypatch.setattr(tff.framework.SyncExecutionContext, 'invoke', invoke)
  with runtime_lib.local_context():
    failures = [_CancelledError()]
    assert computations.total([1, 2]) == 3
    failures = [_CancelledError(), _CancelledError()]
    with pytest.raises(runtime_lib.ComputationError, match='was cancelled'):
      computations.total([1, 2])


def test_a_worker_that_dies_in_a_call_is_replaced(tmp_path):
  log, marker = tmp_path / 'log', tmp_path / 'marker'
  log.write_text('A run before.\n')
  before = processes.worker_pids()
  with (
    runtime_lib.local_context(log_file=log),
    concurrent.futures.ThreadPoolExecutor(1) as pool,
  ):
    (pid,) = set(processes.worker_pids()) - set(before)
    kill = pool.submit(
      lambda: (
        processes.wait_until(marker.exists),
        os.kill(pid, signal.SIGKILL),
      )
    )
    assert computations.hang_once(str(marker)) == 7
    kill.result()
    assert computations.total([1, 2, 5]) == 8
    assert len(processes.worker_pids()) == len(before) + 1
  assert processes.worker_pids() == before
  text = log.read_text()
  assert text.startswith('A run before.\n')
  assert text.count('ExecutorService started') == 2


def dyn_rounds(folder, sizes, before_round=lambda number: None, num_batches=2):
  """The weights after each round; round i has `sizes[i]` clients."""
  process = tff_debias.build_learning_process(
    small_models.linear_model(),
    tff_debias.NoPersonalization(),
    tff_debias.Dyn(0.5),
    num_clients=8,
    storage=tff_debias.ClientStorage(folder),
  )
  clients = [
    small_models.client(f'{i}', *data, num_batches)
    for i, data in enumerate(small_models.linear_data(3))
  ]
  state, weights = process.initialize(), []
  for number, size in enumerate(sizes):
    before_round(number)
    state = process.next(state, clients[:size]).state
    weights.append(process.get_model_weights(state).trainable[0])
  return np.stack(weights)


@pytest.mark.parametrize('victim', ['worker', 'proxy'])
def test_rounds_are_the_same_if_workers_die_between_them(victim, tmp_path):
  """TFF keeps an executor for each number of clients, here 3, 2 and 1."""
  sizes = [3, 2, 1, 3, 2, 1, 3]
  with runtime_lib.local_context() as context:
    undisturbed = dyn_rounds(tmp_path / 'undisturbed', sizes)

    def kill(number):
      if number in (3, 5):
        pids.append(context.worker_pid)
        (proxy,) = processes.worker_pids(pids[-1])
        os.kill(proxy if victim == 'proxy' else pids[-1], signal.SIGKILL)
        if number == 3:  # In the other case it is found out in the call.
          processes.wait_until(lambda: not processes.is_alive(pids[-1]))

    pids = []
    disturbed = dyn_rounds(tmp_path / 'disturbed', sizes, kill)
    assert len({*pids, context.worker_pid}) == 3
  np.testing.assert_array_equal(disturbed, undisturbed)


def test_a_round_is_the_same_if_its_worker_dies_in_it(tmp_path):
  sizes, ended = [3, 2, 3, 2], []
  with (
    runtime_lib.local_context() as context,
    concurrent.futures.ThreadPoolExecutor(1) as pool,
  ):

    def kill_soon(pid):
      time.sleep(0.1)
      ended.append(len(begun))
      os.kill(pid, signal.SIGKILL)

    def kill(number):
      begun.append(number)
      if number == 2:
        killed.append(pool.submit(kill_soon, context.worker_pid))

    begun, killed = [], []
    undisturbed = dyn_rounds(tmp_path / 'undisturbed', sizes, num_batches=3_000)
    pid = context.worker_pid
    disturbed = dyn_rounds(tmp_path / 'disturbed', sizes, kill, 3_000)
    killed[0].result()
    # In the third round it was, and no other one had begun.
    assert ended == [3]
    assert context.worker_pid != pid
  np.testing.assert_array_equal(disturbed, undisturbed)


def test_calls_of_several_threads_survive_a_death():
  def call(number):
    with tff.framework.get_context_stack().install(context):
      while not killed.is_set():
        assert computations.total([number] * number) == number**2

  killed = threading.Event()
  with (
    runtime_lib.local_context() as context,
    concurrent.futures.ThreadPoolExecutor(4) as pool,
  ):
    results = [pool.submit(call, number) for number in (2, 3, 3, 4)]
    for _ in range(2):
      time.sleep(0.2)
      pid = context.worker_pid
      os.kill(pid, signal.SIGKILL)
      processes.wait_until(
        lambda pid=pid: (
          context.worker_pid != pid or any(r.done() for r in results)
        )
      )
    killed.set()
    for result in results:
      result.result()
    assert context.worker_pid != pid


def test_a_call_that_ends_every_worker_fails(monkeypatch):
  class Mortal(runtime_lib.Worker):
    def __init__(self, *args):
      super().__init__(*args)
      self._process.kill()
      self._process.wait()

  before = processes.worker_pids()
  monkeypatch.setattr(worker_lib, 'Worker', Mortal)
  with runtime_lib.local_context():
    for _ in range(2):
      with pytest.raises(
        runtime_lib.WorkerError, match='(?s)ended 3 workers.* ended with -9.*'
      ):
        computations.total([1])
  assert processes.worker_pids() == before


def test_close_ends_a_call_for_good(tmp_path):
  marker, before = tmp_path / 'marker', processes.worker_pids()

  def call(context):
    with tff.framework.get_context_stack().install(context):
      return computations.hang_once(str(marker))

  with concurrent.futures.ThreadPoolExecutor(1) as pool:
    with runtime_lib.local_context() as context:
      result = pool.submit(call, context)
      processes.wait_until(marker.exists)
    with pytest.raises(Exception, match='closed'):
      result.result(timeout=30)
  assert processes.worker_pids() == before


@pytest.fixture
def calls(monkeypatch):
  """The number of clients of every executor that is made."""
  numbers, original = [], executor._Executor.set_cardinalities

  def set_cardinalities(self, cardinalities):
    numbers.append(cardinalities[tff.CLIENTS])
    original(self, cardinalities)

  monkeypatch.setattr(
    executor._Executor, 'set_cardinalities', set_cardinalities
  )
  return numbers


@pytest.mark.parametrize(
  ('computation', 'result', 'limit', 'parts'),
  [
    (computations.total, 28, {'_CLIENTS_IN_MEMORY': 2}, {2, 1}),
    (computations.total, 28, {'_RESULT_BYTES_IN_MEMORY': 4 * 3}, {3, 2}),
    (computations.total, 28, {}, {7}),
    (computations.total, 28, {'_RESULT_BYTES_IN_MEMORY': 1}, {1}),
    (
      *(computations.of_each, ([2, 3, 4, 5, 6, 7, 8], 28)),
      *({'_RESULT_BYTES_IN_MEMORY': 8 * 2}, {2, 1}),
    ),
    (computations.total_times_number, 7 * 28, {'_CLIENTS_IN_MEMORY': 2}, {7}),
  ],
)
def test_many_clients_run_in_parts(
  computation, result, limit, parts, calls, monkeypatch
):
  for name, value in limit.items():
    monkeypatch.setattr(contexts, name, value)
  with runtime_lib.local_context(max_concurrency=1):
    assert computation([1, 2, 3, 4, 5, 6, 7]) == result
    assert set(calls) - {0} == parts
    assert computations.total([]) == 0
    assert computations.total([5]) == 5


def test_rounds_in_parts_are_the_same(tmp_path, monkeypatch):
  model = small_models.linear_model()
  data = small_models.linear_data(7)

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
        state, [small_models.client(f'{i}', *d, 2) for i, d in enumerate(data)]
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
    # The run's number and the times of its rounds are its own.
    del output.state.client_work['lineage']
    return output, metrics, tested

  with runtime_lib.local_context(max_concurrency=1):
    whole = train('whole')
    monkeypatch.setattr(contexts, '_CLIENTS_IN_MEMORY', 2)
    in_parts = train('in parts')
  tf.nest.assert_same_structure(whole, in_parts, check_types=True)
  for one, other in zip(*map(tf.nest.flatten, (whole, in_parts)), strict=True):
    np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_two_workers_work_at_the_same_time(two_workers, tmp_path):
  files = [str(tmp_path / name) for name in 'ab']
  with runtime_lib.remote_context([worker.address for worker in two_workers]):
    assert computations.number_that_met([files, files[::-1]]) == 2


def test_errors_of_remote_workers_are_explained(two_workers):
  @tff.tensorflow.computation(tff.SequenceType(np.int32))
  def largest(data):
    return data.reduce(0, lambda _, label: tf.gather([0, 0], label))

  @tff.federated_computation(
    tff.FederatedType(tff.SequenceType(np.int32), tff.CLIENTS)
  )
  def total(data):
    return tff.federated_sum(tff.federated_map(largest, data))

  with runtime_lib.remote_context([worker.address for worker in two_workers]):
    assert total([[0, 1], [1]]) == 0
    with pytest.raises(runtime_lib.ComputationError) as error:
      total([[0, 1], [7]])
    assert str(error.value).endswith('must be from 0 to 1, got 7.')
    with pytest.raises(TypeError):
      total([['a'], [1]])


def test_two_workers_share_the_clients(two_workers, monkeypatch):
  addresses = [worker.address for worker in two_workers]
  before = tff.framework.get_context_stack().current
  with runtime_lib.remote_context(addresses):
    assert computations.total([1, 2, 3, 4, 5]) == 15
    monkeypatch.setattr(worker_lib, 'READY_WITHIN_SECONDS', 0.5)
    two_workers[1].close()
    two_workers[1].close()
    assert [worker.is_alive for worker in two_workers] == [True, False]
    with pytest.raises(
      runtime_lib.WorkerError, match=f'No worker answers at {addresses[1]}'
    ):
      computations.total([1, 2, 3, 4, 5])
  assert tff.framework.get_context_stack().current is before
  with (
    pytest.raises(runtime_lib.WorkerError, match='No worker answers at'),
    runtime_lib.remote_context(addresses),
  ):
    pass
