"""The same processes, unchanged, in TFF's own contexts and on its workers."""

import collections
import contextlib
import functools
import gc
import os
import socket
import subprocess

import computations
import numpy as np
import pytest
import small_models
import storage_runs
import tensorflow as tf
import tensorflow_federated as tff

import tff_debias
from tff_debias import runtime as runtime_lib

MAML = tff_debias.Maml(1, 0.1)
PROTO = tff_debias.Proto()
#: Every personalization and every correction once.
METHODS = {
  'per_fed_avg, MAML': (tff_debias.build_per_fed_avg, {'by': MAML}),
  'fed_prox': (tff_debias.build_fed_prox, {'mu': 0.1}),
  'pfl_dyn, prototypes': (
    tff_debias.build_pfl_dyn,
    {'by': PROTO, 'alpha': 0.3},
  ),
  'scaffold': (tff_debias.build_scaffold, {}),
}


def keeps_state(name):
  return 'dyn' in name or 'scaf' in name


def client(name, i):
  batches = [small_models.batch(5, seed=10 * i + j) for j in range(4)]
  data = tf.data.Dataset.from_tensor_slices(
    tuple(np.stack(part) for part in zip(*batches, strict=True))
  )
  if not keeps_state(name):
    return data
  return collections.OrderedDict(client_id=f'client {i}', data=data)


def train(name, process):
  """The weights after three rounds of a run of its own."""
  state = process.initialize()
  for cohort in ([0, 1, 2], [2, 3], [0, 3, 1]):
    state = process.next(state, [client(name, i) for i in cohort]).state
  return process.get_model_weights(state).trainable


@pytest.fixture(scope='module')
def trained(runtime, tmp_path_factory):
  """Gives the process of a method, and the weights that it has here."""

  @functools.cache
  def train_here(name):
    build, options = METHODS[name]
    by = [options['by']] if 'by' in options else []
    options = {key: o for key, o in options.items() if key != 'by'}
    if keeps_state(name):
      options['num_clients'] = 4
      options['storage'] = tff_debias.ClientStorage(
        tmp_path_factory.mktemp('states')
      )
    process = build(small_models.network()[0], *by, **options)
    return process, train(name, process)

  return train_here


def assert_same(weights, expected):
  for one, other in zip(weights, expected, strict=True):
    np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-6)
  assert any(np.abs(w).max() > 0.1 for w in expected)


@pytest.fixture(scope='module')
def native_context():
  context = tff.backends.native.create_sync_local_cpp_execution_context()
  yield context
  del context
  gc.collect()


@pytest.mark.slow
@pytest.mark.parametrize('name', list(METHODS))
def test_a_method_in_tffs_native_context(name, trained, native_context):
  process, expected = trained(name)
  with tff.framework.get_context_stack().install(native_context):
    assert_same(train(name, process), expected)


@pytest.mark.slow
def test_states_in_the_worker_of_tff(native_context, tmp_path):
  with tff.framework.get_context_stack().install(native_context):
    process = storage_runs.build(tmp_path)
    state = process.initialize()

    def play(*numbers):
      return process.next(state, storage_runs.clients(*numbers)).state

    state = play(0, 1)
    play(0, 2)  # An attempt that is not gone on from.
    state = play(1, 2)
    for twice in ([3, 0, 3], [4, 4]):
      with pytest.raises(Exception, match=f'take part once.*{twice[0]}'):
        play(*twice)
    state = play(0, 1, 2, 3, 4)
  storage_runs.assert_is_after(state, [0, 1], [1, 2], [0, 1, 2, 3, 4])


@pytest.fixture(scope='module')
def addresses():
  binary = os.path.join(os.path.dirname(tff.__file__), 'data', 'worker_binary')
  with contextlib.ExitStack() as stack:
    found = []
    for _ in range(2):
      with socket.socket() as free:
        free.bind(('localhost', 0))
        port = free.getsockname()[1]
      worker = stack.enter_context(
        subprocess.Popen([binary, f'--port={port}'], stderr=subprocess.DEVNULL)
      )
      stack.callback(worker.kill)
      found.append(f'localhost:{port}')
    yield found


@pytest.mark.slow
def test_a_method_on_two_workers(trained, addresses):
  name = 'pfl_dyn, prototypes'
  process, expected = trained(name)
  with runtime_lib.remote_context(addresses):
    assert_same(train(name, process), expected)


def test_two_workers_work_at_the_same_time(addresses, tmp_path):
  files = [str(tmp_path / name) for name in 'ab']
  with runtime_lib.remote_context(addresses):
    assert computations.number_that_met([files, files[::-1]]) == 2


def test_errors_of_workers_are_explained(addresses):
  @tff.tensorflow.computation(tff.SequenceType(np.int32))
  def largest(data):
    return data.reduce(0, lambda _, label: tf.gather([0, 0], label))

  @tff.federated_computation(computations.clients(tff.SequenceType(np.int32)))
  def total(data):
    return tff.federated_sum(tff.federated_map(largest, data))

  data = tf.data.Dataset.from_tensors(tf.constant(5))
  with (
    runtime_lib.remote_context(addresses),
    pytest.raises(
      runtime_lib.ComputationError, match='A label .* from 0 to 1, got 5'
    ),
  ):
    total([data])


def test_a_worker_that_does_not_answer_is_named(monkeypatch):
  monkeypatch.setattr(runtime_lib.remote, '_READY_WITHIN_SECONDS', 1)
  with (
    pytest.raises(
      runtime_lib.ComputationError, match='No worker .* localhost:1$'
    ),
    runtime_lib.remote_context(['localhost:1']),
  ):
    pass
