import asyncio
import collections
import concurrent.futures
import gc
import os
import subprocess
import sys
import threading

import computations
import numpy as np
import psutil
import pytest
import small_models
import tensorflow as tf
import tensorflow_federated as tff

import tff_debias
from tff_debias import runtime as runtime_lib

pytestmark = pytest.mark.usefixtures('runtime')


def fed_avg():
  return tff_debias.build_fed_avg(small_models.linear_model())


@pytest.fixture(scope='module')
def process(runtime):
  """A process whose clients keep no state."""
  return fed_avg()


def participants(count, num_batches=2):
  return [
    small_models.client(f'{i}', *data, num_batches)['data']
    for i, data in enumerate(small_models.linear_data(count))
  ]


def weights(state):
  return np.asarray(state.global_model_weights.trainable[0])


@pytest.mark.parametrize('name', list(computations.CALLS))
def test_a_computation_gives_what_tffs_runtime_gives(name, tffs_results):
  result = computations.CALLS[name]()
  expected = tffs_results[name]
  tf.nest.assert_same_structure(result, expected)
  pairs = zip(*map(tf.nest.flatten, (result, expected)), strict=True)
  for one, other in pairs:
    assert np.asarray(one).dtype == np.asarray(other).dtype
    np.testing.assert_array_equal(one, other)


@pytest.fixture(scope='module')
def tffs_results():
  """The results in TFF's own context, in a process that it may stay behind."""
  context = tff.backends.test.create_sync_test_cpp_execution_context()
  with tff.framework.get_context_stack().install(context):
    results = {name: call() for name, call in computations.CALLS.items()}
  del context
  gc.collect()
  return results


def test_contexts_are_nested_and_restored():
  stack = tff.framework.get_context_stack()
  before = stack.current
  with runtime_lib.local_context(max_concurrency=1) as outer:
    with pytest.raises(ZeroDivisionError), runtime_lib.local_context() as inner:
      assert stack.current is inner
      assert computations.total([1, 2]) == 3
      raise ZeroDivisionError
    assert stack.current is outer
    assert computations.total([4]) == 4
  assert stack.current is before


@pytest.mark.parametrize('max_concurrency', [1, 2])
def test_clients_run_so_many_at_a_time(max_concurrency, tmp_path):
  names = [str(tmp_path / name) for name in 'ab']
  with runtime_lib.local_context(max_concurrency):
    met = computations.number_that_met([names, names[::-1]])
  # One after the other, only the last one finds that another has come.
  assert met == max_concurrency


def test_memory_does_not_grow_with_the_number_of_participants():
  process = psutil.Process()
  size = 2_000_000  # A client's result is 8 MB.

  @tff.tensorflow.computation(np.float32)
  def large(x):
    return tf.fill([size], x)

  @tff.federated_computation(tff.FederatedType(np.float32, tff.CLIENTS))
  def total(x):
    return tff.federated_sum(tff.federated_map(large, x))

  peaks = []
  for count in (4, 4, 60):
    peak, is_done = [0], threading.Event()

    def watch(peak=peak, is_done=is_done):
      while not is_done.wait(0.002):
        peak[0] = max(peak[0], process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    result = total([1.0] * count)
    is_done.set()
    watcher.join()
    np.testing.assert_array_equal(result, np.full(size, count, 'f'))
    peaks.append(peak[0] / 2**20)
  assert peaks[2] < peaks[1] + 100  # The results of all would be 480 MB.


def test_threads_may_share_a_context(process):
  context = tff.framework.get_context_stack().current
  state = process.initialize()
  cohorts = [participants(count) for count in (2, 3, 4)]
  expected = [weights(process.next(state, cohort).state) for cohort in cohorts]

  def train(i):
    with tff.framework.get_context_stack().install(context):
      return [weights(process.next(state, cohorts[i]).state) for _ in range(5)]

  with concurrent.futures.ThreadPoolExecutor(3) as pool:
    for i, results in enumerate(pool.map(train, range(3))):
      for result in results:
        np.testing.assert_array_equal(result, expected[i])


def test_a_computation_that_nobody_refers_to_is_freed():
  context = tff.framework.get_context_stack().current

  def call(number):
    @tff.tensorflow.computation(np.int32)
    def add(x):
      return x + number

    assert add(1) == 1 + number

  call(1)
  gc.collect()
  before = len(context._programs), num_functions()
  for number in range(5):
    call(number)
  gc.collect()
  assert (len(context._programs), num_functions()) == before


def num_functions():
  from tff_debias import internals

  return len(internals.eager_context().list_function_names())


@tff.federated_computation(tff.FederatedType(np.float32, tff.CLIENTS))
def two_phases(x):
  mean = tff.federated_broadcast(tff.federated_mean(x))
  return tff.federated_mean(tff.federated_map(computations.subtract, (x, mean)))


def test_a_computation_of_another_form_names_tffs_context():
  with pytest.raises(NotImplementedError, match='create_sync_local_cpp'):
    two_phases([1.0, 2.0])


def wrong_data():
  x, y = small_models.linear_data(1)[0]
  data = tf.data.Dataset.from_tensor_slices((x, y)).batch(4)
  return {
    'endless': (data.repeat(), ValueError, "Client 1 .'1'.: .* has no end"),
    'of another shape': (
      data.map(lambda x, y: (x[:, :2], y)),
      TypeError,
      r"Client 1 .'1'.: .*float32\[\?,3\].*float32\[\?,2\]",
    ),
    'of another type': (
      data.map(lambda x, y: (x, tf.cast(y, tf.int32))),
      TypeError,
      r"Client 1 .'1'.: .*int32\[\?,1\]",
    ),
    'no data set': (5, TypeError, "Client 1 .'1'.: .*Dataset, got 5"),
    'failing': (
      data.map(lambda x, y: (tf.debugging.check_numerics(x * np.nan, ''), y)),
      runtime_lib.ComputationError,
      "Client 1 .'1'. failed: .*NaN",
    ),
  }


@pytest.fixture(scope='module')
def process_of_states(runtime, tmp_path_factory):
  return tff_debias.build_fed_dyn(
    small_models.linear_model(),
    alpha=0.5,
    num_clients=4,
    storage=tff_debias.ClientStorage(tmp_path_factory.mktemp('states')),
  )


@pytest.mark.parametrize('what', list(wrong_data()))
def test_an_error_names_the_client_and_the_reason(what, process_of_states):
  data, error, message = wrong_data()[what]
  process = process_of_states
  clients = [
    collections.OrderedDict(client_id=f'{i}', data=own)
    for i, own in enumerate(participants(3))
  ]
  clients[1]['data'] = data
  state = process.initialize()
  for _ in range(3):  # The reason, not that another operation was canceled.
    with pytest.raises(error, match=f'(?s){message}'):
      process.next(state, clients)


def test_an_endless_data_set_inside_of_the_computation_is_an_error(process):
  client_data = small_models.linear_client_data(['a', 'b']).preprocess(
    lambda data: data.batch(4).repeat()
  )
  composed = tff_debias.compose_with_client_data(process, client_data)
  with pytest.raises(runtime_lib.ComputationError, match="'a'.*has no end"):
    composed.next(composed.initialize(), ['a'])


def test_a_label_out_of_range_is_named():
  model, _ = small_models.network()
  process = tff_debias.build_fed_avg(model)
  data = tf.data.Dataset.from_tensors(small_models.batch(4, [0, 1, 2, 3]))
  with pytest.raises(
    runtime_lib.ComputationError,
    match='Client 0 failed: A label .* from 0 to 2, got 3',
  ):
    process.next(process.initialize(), [data])


def test_only_clients_that_keep_a_state_have_ids(process, process_of_states):
  client = collections.OrderedDict(client_id='a', data=participants(1)[0])
  with pytest.raises(TypeError, match="'a'.*give the data set without an id"):
    process.next(process.initialize(), [client])
  with pytest.raises(TypeError, match='client_id=str'):
    process_of_states.next(process_of_states.initialize(), [client['data']])


@pytest.mark.parametrize(
  'argument', [[], 7, [1], {'a': 1}], ids=['none', 'number', 'list', 'dict']
)
def test_a_wrong_argument_is_a_type_error(argument, process):
  with pytest.raises(TypeError):
    process.next(argument, participants(2))


_PROGRAM = """
import os, signal, sys, threading, time
os.environ['TF_CPP_MIN_LOG_LEVEL'] = '3'
sys.path[:0] = {path!r}
import numpy as np
import psutil
from contexts_test import fed_avg, participants, weights
from tff_debias import runtime

def interrupted(function):
  main = threading.main_thread().ident
  threading.Timer(1, signal.pthread_kill, (main, signal.SIGINT)).start()
  start = time.monotonic()
  try:
    function()
  except KeyboardInterrupt:
    return time.monotonic() - start - 1

runtime.start_local_context()
runtime.start_local_context()
process = fed_avg()
state = process.initialize()
before = weights(process.next(state, participants(3)).state)
# Of an unknown length: the batches are not counted.
forever = [
  d.unbatch().batch(1).filter(lambda *_: True)
  for d in participants(3, 10**7)
]
print(interrupted(lambda: process.next(state, forever)))
np.testing.assert_array_equal(
  weights(process.next(state, participants(3)).state), before
)
me = psutil.Process()
print(me.children(recursive=True), me.connections('inet'))
"""


@pytest.mark.slow
def test_a_program_is_interrupted_goes_on_and_opens_no_process_or_port():
  folder = os.path.dirname(__file__)
  text = _PROGRAM.format(path=[folder, os.path.dirname(folder)])
  program = subprocess.run(
    [sys.executable, '-c', text], capture_output=True, text=True, timeout=300
  )
  seconds, opened = program.stdout.splitlines()
  assert float(seconds) < 20 and opened == '[] []', program.stderr
  assert 'Traceback' not in program.stderr


def test_a_call_can_be_awaited_and_canceled(process):
  context = tff.framework.get_context_stack().current
  state = process.initialize()
  expected = weights(process.next(state, participants(3)).state)
  arg = tff.structure.Struct([('state', state), ('clients', participants(3))])
  long = tff.structure.Struct(
    [('state', state), ('clients', participants(3, 300_000))]
  )

  async def calls():
    invoke = runtime_lib.AsyncLocalContext(context).invoke
    ticks = 0

    async def tick():
      nonlocal ticks
      while True:
        await asyncio.sleep(0.01)
        ticks += 1

    ticking = asyncio.create_task(tick())
    with pytest.raises(asyncio.TimeoutError):
      await asyncio.wait_for(invoke(process.next, long), 1)
    ticking.cancel()
    return ticks, await asyncio.gather(*[invoke(process.next, arg)] * 2)

  ticks, outputs = asyncio.run(calls())
  assert ticks > 5  # The event loop went on meanwhile.
  for output in outputs:
    np.testing.assert_array_equal(weights(output.state), expected)
